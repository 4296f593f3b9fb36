"""Two service processes on one Redis: equal requests are spoken once, whatever happens to who speaks them."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis
from conftest import AUDIENCE, ISSUER, Redis, Service, token, wait_for
from maya1_tts.admission import Claim, Priority
from maya1_tts.cache import Seal
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Voice
from maya1_tts.flight import Flights, Lead
from maya1_tts.metrics import Metrics
from maya1_tts.studio import Order, Speech
from maya1_tts.tiers import RedisTier


def long(kind: str) -> str:
    return f"This text {kind} is so long that others can come along while it is still being spoken. " * 6


class Pair:
    """Two processes, with the settings of a fleet that keeps its tenants apart."""

    def __init__(self, folder: Path, secret_file: Path) -> None:
        self.redis = Redis(folder)
        self.redis.start()
        self.database = redis.Redis(unix_socket_path=str(self.redis.socket))
        self.services = []
        for name in ("first", "second"):
            (folder / name).mkdir()
            settings: dict[str, object] = {"REDIS_URL": self.redis.url, "CACHE_MEMORY_BYTES": 0, "WORKERS": 1}
            settings |= {"BUNDLE": "535", "CACHE_PER_TENANT": "true", "JWT_SECRET_FILE": secret_file}
            settings |= {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
            self.services.append(Service(folder / name, **settings))
        for service in self.services:
            service.wait_until_ready()

    def spoken(self) -> float:
        return sum(service.metric("syntheses_total", outcome="done") for service in self.services)

    def stop(self) -> None:
        for service in self.services:
            service.stop()
        self.database.close()
        self.redis.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, secret_file: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"), secret_file)
    yield pair
    pair.stop()


class Stream:
    """A request for streamed speech whose first sound is there, in a connection of its own."""

    def __init__(self, service: Service, text: str, format: str = "pcm", **claims: str) -> None:
        self._client = httpx.Client(timeout=60, headers={"Authorization": f"Bearer {token(**claims)}"})
        body = {"model": "tts-1", "input": text, "response_format": format, "stream": True}
        request = self._client.build_request("POST", f"{service.url}/v1/audio/speech", json=body)
        self.answer = self._client.send(request, stream=True)
        assert self.answer.status_code == 200
        self._pieces = self.answer.iter_raw()
        self._first = next(self._pieces)

    @property
    def cache(self) -> str:
        return self.answer.headers["x-cache"]

    def read(self) -> bytes:
        return self._first + b"".join(self._pieces)

    def hang_up(self) -> None:
        self.answer.close()
        self._client.close()


def test_equal_requests_to_both_are_spoken_once(pair: Pair) -> None:
    before, start = pair.spoken(), threading.Barrier(8)

    def ask(number: int) -> bytes:
        start.wait()
        service = pair.services[number % 2]
        return service.speak("Everybody wants to hear this at once. " * 4, stream=number < 4).content

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert len(answers) == 1
    assert pair.spoken() - before == 1


@pytest.mark.parametrize("format", ["pcm", "wav", "mp3", "opus"])
def test_a_follower_hears_what_the_leader_makes(pair: Pair, format: str) -> None:
    text, (first, second) = long(f"of {format}"), pair.services
    before = pair.spoken()
    leader = Stream(first, text, format)
    follower = Stream(second, text, format)
    assert (leader.cache, follower.cache) == ("miss", "joined")
    whole = second.speak(text, response_format=format)
    assert whole.headers["x-cache"] in ("joined", "hit")
    assert leader.read() == follower.read()
    assert pair.spoken() - before == 1
    stored = first.speak(text, response_format=format)
    assert stored.headers["x-cache"] == "hit"
    assert stored.content == whole.content  # the complete file, whose header knows the length
    assert stored.headers["x-audio-duration-seconds"] == whole.headers["x-audio-duration-seconds"]


def test_segments_reach_followers_too(pair: Pair) -> None:
    text, (first, second) = long("with segments"), pair.services
    leader = Stream(first, text)
    joined = second.speak(text, timestamps="segment")
    assert joined.headers["x-cache"] == "joined"
    leader.read()
    stored = first.speak(text, timestamps="segment")
    assert stored.json()["segments"] == joined.json()["segments"]
    assert len(joined.json()["segments"]) >= 6


def test_a_leader_whose_own_listener_left_goes_on_for_followers(pair: Pair) -> None:
    text, (first, second) = long("left by one"), pair.services
    before = pair.spoken()
    leader = Stream(first, text)
    follower = Stream(second, text)
    leader.hang_up()
    audio = follower.read()
    assert audio == first.speak(text).content
    assert pair.spoken() - before == 1
    assert second.metric("syntheses_total", outcome="cancelled") == 0


def test_a_leader_without_any_listener_stops(pair: Pair) -> None:
    text, (first, _) = long("left by all"), pair.services
    before = first.metric("syntheses_total", outcome="cancelled")
    Stream(first, text).hang_up()
    wait_for(lambda: first.metric("syntheses_total", outcome="cancelled") > before, "it stops")
    wait_for(lambda: not pair.database.keys("*:lease"), "the lease is given back")
    assert Stream(first, text).cache == "miss"


def test_a_leader_learns_how_urgently_others_wait(pair: Pair) -> None:
    """A batch synthesis that somebody waits for in another process goes on as a real-time one."""

    def follower(priority: Priority) -> Speech:
        order = Order("Hello.", Voice("joe", "Joe", "en", 22050, "1"), "pcm", Delivery("joe"))
        return Speech("urgent", order, Claim("", priority))

    async def body(tier: RedisTier) -> None:
        heard: list[Priority | None] = []

        async def until(expected: Priority | None) -> None:
            async with asyncio.timeout(20):
                while heard[-1:] != [expected]:
                    await asyncio.sleep(0.05)

        lead = await Flights(tier, Seal(b"")).board("urgent")
        assert isinstance(lead, Lead)
        lead.on_wanted = heard.append
        following = []
        async with lead:
            await until(None)
            for priority in ("batch", "realtime", "batch"):
                flight = await Flights(tier, Seal(b"")).board("urgent")
                assert flight
                following.append(asyncio.create_task(flight.follow(follower(priority))))
                await until("realtime" if "realtime" in (priority, *heard) else "batch")
        assert await asyncio.gather(*following) == [False] * 3  # it ended without a sound

    async def connected() -> None:
        tier = RedisTier(Settings(redis_url=pair.redis.url), Metrics())
        async with tier.running():
            await body(tier)

    asyncio.run(connected())


def test_tenants_share_neither_entries_nor_flights(pair: Pair) -> None:
    text, (first, second) = long("of a tenant"), pair.services
    before = pair.spoken()
    ours, theirs = Stream(first, text), Stream(second, text, tenant="another")
    assert (ours.cache, theirs.cache) == ("miss", "miss")
    assert ours.read() == theirs.read()
    assert pair.spoken() - before == 2
    again = [
        Stream(first, text),
        Stream(first, text, tenant="another"),
        Stream(first, text, tenant="a third"),
    ]
    assert [stream.cache for stream in again] == ["hit", "hit", "miss"]
    again[2].hang_up()


def test_refusals_are_not_kept(pair: Pair) -> None:
    before = set(pair.database.keys())
    codes = [service.speak("Привет").json()["error"]["code"] for service in pair.services]
    assert codes == ["unsupported_characters"] * 2
    wait_for(lambda: set(pair.database.keys()) <= before, "nothing is left of them")


def test_keys_say_whose_entries_they_are(pair: Pair) -> None:
    pair.services[0].speak("A key is readable.")
    assert pair.database.keys("maya1-tts:*:onnx_voice:535:*")


def test_redis_may_go_while_a_follower_listens(pair: Pair) -> None:
    text, (first, second) = long("without Redis"), pair.services
    leader = Stream(first, text)
    follower = Stream(second, text)
    pair.redis.kill()
    assert leader.read() == follower.read()
    pair.redis.start()
    for service in pair.services:
        wait_for(lambda: service.metric("cache_up", tier="redis") == 1, "Redis is back")  # noqa: B023
    assert Stream(second, text).cache == "miss"


def test_a_killed_leader_is_replaced(pair: Pair) -> None:
    """Last in this module, since it costs a process."""
    text, (first, second) = long("cut off"), pair.services
    before = second.metric("syntheses_total", outcome="done")
    leader = Stream(first, text)
    follower = Stream(second, text)
    whole: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: whole.append(second.speak(text)))
    waiting.start()
    first.process.kill()
    with pytest.raises(httpx.RemoteProtocolError):
        leader.read()
    audio = follower.read()
    waiting.join()
    assert follower.cache == "joined"
    assert second.metric("syntheses_total", outcome="done") - before == 1
    stored = second.speak(text)
    assert stored.headers["x-cache"] == "hit"
    assert audio == whole[0].content == stored.content
