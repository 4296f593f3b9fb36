"""Budgets of characters and seconds of audio: shared through a real Redis, and counted without it.

Nothing waits for a bucket to fill: buckets fill by Redis' clock, so tests look at what is left and how long a
client is told to wait.
"""

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from conftest import AUDIENCE, ISSUER, Redis, Service, free_port, token, wait_for
from gate import Running
from maya1_tts import budget
from maya1_tts.auth import ANYBODY, SCOPES, Subject
from maya1_tts.budget import Budgets, key_of
from maya1_tts.config import Settings
from maya1_tts.errors import ApiError
from maya1_tts.metrics import Metrics
from redis import Redis as Client
from test_grpc import Client as Grpc
from test_grpc import trailing

ME, YOU = Subject("me", "me", SCOPES), Subject("you", "you", SCOPES)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no Redis that is away: none of the tests inside this process depends on its speed."""
    monkeypatch.setattr(budget, "TIMEOUT_SECONDS", 60)


@pytest.fixture
def stored(redis: Redis) -> Iterator["Client[bytes]"]:
    """What is in Redis, which is empty at first."""
    with Client(unix_socket_path=str(redis.socket)) as client:
        client.flushall()
        yield client


def budgets(redis: Redis | None, characters: int = 100, seconds: float = 0) -> Budgets:
    settings = Settings(
        redis_url=redis.url if redis else None,
        budget_chars_per_minute=characters,
        budget_audio_seconds_per_minute=seconds,
    )
    return Budgets(settings, Metrics())


async def refusal(budgets: Budgets, subject: Subject, characters: int, seconds: float = 0) -> ApiError | None:
    try:
        await budgets.charge(subject, characters, seconds)
    except ApiError as error:
        return error
    return None


def expect_wait(error: ApiError | None, name: str, limit: float, cost: float) -> None:
    """The client is told to wait just until what is left now has grown to the cost."""
    assert error
    assert (error.status, error.code, error.param) == (429, "budget_exceeded", "input")
    left = int(error.headers[f"X-RateLimit-Remaining-{name}"])
    longest, shortest = ((cost - there) / limit * 60 for there in (left, left + 1))
    assert shortest <= int(error.headers["Retry-After"]) <= longest + 1
    assert int(error.headers["Retry-After"]) >= 1


@pytest.fixture(params=["redis", "local"])
def store(request: pytest.FixtureRequest, redis: Redis, stored: "Client[bytes]") -> Redis | None:
    """The same is expected of Redis and of a process on its own."""
    return redis if request.param == "redis" else None


def test_what_does_not_fit_waits_as_long_as_it_is_told(store: Redis | None) -> None:
    async def scenario() -> None:
        mine = budgets(store)
        charge = await mine.charge(ME, 60, 0)
        assert charge
        assert charge.headers["X-RateLimit-Limit-characters"] == "100"
        assert charge.headers["X-RateLimit-Remaining-characters"] == "40"
        assert charge.headers["X-RateLimit-Reset-characters"] == "36s"
        error = await refusal(mine, ME, 90)
        expect_wait(error, "characters", 100, 90)
        assert error
        assert error.body()["error"]["type"] == "rate_limit_error"
        assert re.search(
            r"90 characters, but 4\d characters of 100 characters a minute are left", error.message
        )
        assert await refusal(mine, ME, 40) is None  # a refusal costs nothing
        assert await refusal(mine, YOU, 100) is None
        async with mine.running():
            pass

    asyncio.run(scenario())


def test_both_budgets_are_paid_or_none(store: Redis | None) -> None:
    async def scenario() -> None:
        mine = budgets(store, characters=100, seconds=10)
        async with mine.running():
            assert await refusal(mine, ME, 50, 10) is None
            error = await refusal(mine, ME, 50, 5)
            expect_wait(error, "audio-seconds", 10, 5)
            assert error
            assert error.headers["X-RateLimit-Limit-audio-seconds"] == "10"
            assert int(error.headers["X-RateLimit-Remaining-characters"]) >= 50  # none was taken
            # Both are short, and the characters for longer.
            expect_wait(await refusal(mine, ME, 100, 1), "characters", 100, 100)

    asyncio.run(scenario())


def test_what_was_made_replaces_the_estimate_and_may_leave_a_debt(store: Redis | None) -> None:
    async def scenario() -> None:
        mine = budgets(store, characters=100, seconds=10)
        async with mine.running():
            charge = await mine.charge(ME, 50, 10)
            assert charge
            mine.settle(charge, 0, 4)
        mine = mine if store is None else budgets(store, characters=100, seconds=10)
        async with mine.running():
            charge = await mine.charge(ME, 100, 6)
            assert charge
            mine.settle(charge, 100, 16)  # 20 of 10 seconds
        mine = mine if store is None else budgets(store, characters=100, seconds=10)
        error = await refusal(mine, ME, 0, 1)
        assert error
        assert 6 < int(error.headers["Retry-After"]) <= 66  # 6 would do without a debt
        assert error.headers["X-RateLimit-Remaining-audio-seconds"] == "0"
        async with mine.running():
            pass

    asyncio.run(scenario())


def test_more_than_a_minute_holds_is_refused_for_good(store: Redis | None) -> None:
    async def scenario() -> None:
        mine = budgets(store, characters=100, seconds=10)
        async with mine.running():
            for characters, seconds, says in ((101, 1.0, "101 characters"), (1, 10.1, "10.1 s of audio")):
                error = await refusal(mine, ME, characters, seconds)
                assert error
                assert (error.status, error.code) == (400, "input_exceeds_budget")
                assert says in error.message
                assert "Retry-After" not in error.headers
            assert await refusal(mine, ME, 100, 10) is None

    asyncio.run(scenario())


def test_a_token_may_lower_a_budget_but_not_raise_it(store: Redis | None) -> None:
    async def scenario() -> None:
        mine = budgets(store, characters=100)
        async with mine.running():
            frugal = Subject("frugal", "frugal", SCOPES, budget_chars=10)
            greedy = Subject("greedy", "greedy", SCOPES, budget_chars=1000, budget_seconds=5)
            charges = [await mine.charge(subject, 10, 1) for subject in (frugal, greedy)]
            assert [charge.limits for charge in charges if charge] == [(10, 0), (100, 5)]
            assert (await refusal(mine, frugal, 10)) is not None

    asyncio.run(scenario())


def test_no_limit_asks_nobody(redis: Redis, stored: "Client[bytes]") -> None:
    async def scenario() -> None:
        mine = budgets(redis, characters=0)
        async with mine.running():
            assert await mine.charge(ME, 10**6, 10**6) is None

    asyncio.run(scenario())
    assert stored.keys() == []


def test_buckets_fill_by_the_clock_of_redis_and_are_forgotten_when_full(
    redis: Redis, stored: "Client[bytes]"
) -> None:
    async def remaining(characters: int) -> int:
        mine = budgets(redis)
        async with mine.running():
            charge = await mine.charge(ME, characters, 0)
            assert charge
            return int(charge.headers["X-RateLimit-Remaining-characters"])

    seconds, micros = stored.time()
    half_a_minute_ago = seconds + micros / 1e6 - 30
    stored.hset(key_of(ME), mapping={"at": half_a_minute_ago, "characters": 90, "audio_seconds": 0})
    assert 20 <= 100 - asyncio.run(remaining(0)) <= 40  # of the 90, 50 are there again
    assert 0 < stored.pttl(key_of(ME)) <= 25_000
    assert key_of(ME).count("me") == 0


def test_requests_at_the_same_time_do_not_overdraw(redis: Redis, stored: "Client[bytes]") -> None:
    async def scenario() -> list[ApiError | None]:
        several = [budgets(redis, characters=1000) for _ in range(4)]
        asked = [refusal(each, ME, 200) for each in several for _ in range(3)]
        try:
            return await asyncio.gather(*asked)
        finally:
            for each in several:
                async with each.running():
                    pass

    # 200 characters more are there after 12 s, of which this needs a fraction.
    assert asyncio.run(scenario()).count(None) == 5


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, secret_file: Path
) -> Iterator[tuple[Redis, list[Service]]]:
    """Two processes that share a Redis, and 60 characters and 12 s a minute."""
    shared = Redis(tmp_path_factory.mktemp("shared"))
    shared.start()
    processes = [
        Service(
            tmp_path_factory.mktemp(name), JWT_SECRET_FILE=secret_file, JWT_ISSUER=ISSUER,
            JWT_AUDIENCE=AUDIENCE, REDIS_URL=shared.url, BUDGET_CHARS_PER_MINUTE=60,
            BUDGET_AUDIO_SECONDS_PER_MINUTE=12,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    try:
        for process in processes:
            process.wait_until_ready()
            wait_for(lambda: shares(process), "its budgets are in Redis")  # noqa: B023
        yield shared, processes
    finally:
        for process in processes:
            process.stop()
        shared.kill()


def speak(service: Service, subject: str, text: str) -> httpx.Response:
    return service.http.post(
        "/v1/audio/speech",
        json={"model": "tts-1", "input": text, "response_format": "pcm"},
        headers={"Authorization": f"Bearer {token(sub=subject)}"},
    )


def shares(service: Service) -> bool:
    """Whether its budgets are in Redis, asked by somebody new."""
    speak(service, f"probe-{uuid.uuid4()}", "Hi.")
    return service.metric("budget_store_up") == 1


def test_two_processes_share_a_budget(pair: tuple[Redis, list[Service]]) -> None:
    _, (one, two) = pair
    text = "Forty characters are what this text has."
    first = speak(one, "shared", text)
    assert (first.status_code, first.headers["x-ratelimit-remaining-characters"]) == (200, "20")
    second = speak(two, "shared", text)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "budget_exceeded")
    assert 1 <= int(second.headers["retry-after"]) <= 20
    assert speak(two, "someone else", text).status_code == 200
    assert two.metric("budget_refusals_total", budget="characters") == 1
    assert two.metric("budget_store_up") == 1


def test_openai_clients_raise_a_rate_limit_error(pair: tuple[Redis, list[Service]]) -> None:
    _, (one, _) = pair
    client = openai.OpenAI(base_url=f"{one.url}/v1", api_key=token(sub="sdk"), max_retries=0)
    text = "Forty characters are what this text has."
    client.audio.speech.create(model="tts-1", voice="joe", input=text)
    with pytest.raises(openai.RateLimitError) as refused:
        client.audio.speech.create(model="tts-1", voice="joe", input=text)
    assert refused.value.code == "budget_exceeded"
    with pytest.raises(openai.BadRequestError) as never:
        client.audio.speech.create(model="tts-1", voice="joe", input=text * 2)
    assert never.value.code == "input_exceeds_budget"


def test_without_redis_each_process_counts_for_itself(pair: tuple[Redis, list[Service]]) -> None:
    shared, (one, two) = pair
    text = "Forty characters are what this text has."
    assert speak(one, "stranded", text).status_code == 200
    shared.kill()
    try:
        # One goes on from what it knew; two knows nothing of this subject, and has a limit all the same.
        assert speak(one, "stranded", text).status_code == 429
        assert [speak(two, "stranded", text).status_code for _ in range(2)] == [200, 429]
        assert [process.metric("budget_store_up") for process in (one, two)] == [0, 0]
    finally:
        shared.start()

    wait_for(lambda: shares(one) and shares(two), "the budgets are shared again")
    assert speak(one, "together", text).status_code == 200
    assert speak(two, "together", text).status_code == 429


@pytest.fixture
def gate() -> Iterator[Running]:
    """An engine whose words are 0.1 s each, and 1000 characters and 60 s a minute."""
    running = Running(budget_chars_per_minute=1000, budget_audio_seconds_per_minute=60)
    yield running.get_ready()
    running.stop()


def left(gate: Running) -> tuple[int, int]:
    """Whole characters and seconds."""
    charge = asyncio.run(gate.service.budgets.charge(ANYBODY, 0, 0))
    assert charge
    names = ("characters", "audio-seconds")
    characters, seconds = (int(charge.headers[f"X-RateLimit-Remaining-{name}"]) for name in names)
    return characters, seconds


@pytest.fixture
def settled(caplog: pytest.LogCaptureFixture) -> Callable[[str], None]:
    """Waits for the audit line of a request with that outcome: by then its budget is settled.

    Not for the budget to have some value: it would have that in the end anyhow, since it fills.
    """

    def wait(outcome: str) -> None:
        def outcomes() -> list[str]:
            return [line.fields["outcome"] for line in list(caplog.records) if line.name == "maya1_tts.audit"]

        wait_for(lambda: outcome in outcomes(), f"a request is {outcome}")

    return wait


Settled = Callable[[str], None]


def test_audio_costs_what_was_made_and_not_what_was_guessed(gate: Running, settled: Settled) -> None:
    gate.engine.permits.release(2)
    answer = gate.http.send(gate.request("a" * 300 + " " + "b" * 299, stream=False))  # looks like 40 s
    assert answer.headers["x-ratelimit-remaining-audio-seconds"] == "20"
    assert answer.headers["x-ratelimit-remaining-characters"] == "400"
    settled("done")
    characters, seconds = left(gate)
    assert seconds >= 59
    assert characters < 1000


def test_what_fails_before_its_first_sound_costs_nothing(gate: Running, settled: Settled) -> None:
    gate.engine.permits.release(1)
    assert gate.http.send(gate.request("explode " + "x" * 700)).status_code == 500
    settled("failed")
    assert left(gate) == (1000, 60)


def test_what_is_refused_by_overload_costs_nothing(gate: Running, settled: Settled) -> None:
    threads = [gate.in_background(word) for word in ("first", "second")]
    wait_for(lambda: gate.metric("active_syntheses") + gate.metric("queue_depth") == 2, "two are admitted")
    before = left(gate)
    refused = gate.http.send(gate.request("z" * 800))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    settled("refused")
    assert left(gate) >= before
    gate.engine.permits.release(2)
    for thread in threads:
        thread.join()


def test_who_leaves_pays_for_what_was_made_until_then(gate: Running, settled: Settled) -> None:
    gate.engine.permits.release(1)
    with httpx.Client(timeout=60) as client:
        answer = client.send(gate.request("a b c " + "d" * 594), stream=True)
        pieces = answer.iter_raw()
        next(pieces)
        assert left(gate)[1] < 59
        answer.close()
    settled("cancelled")
    characters, seconds = left(gate)
    assert seconds >= 59
    assert characters < 1000


def test_a_hit_costs_characters_but_no_seconds(pair: tuple[Redis, list[Service]]) -> None:
    shared, (one, _) = pair
    text = "Good evening to you."
    assert speak(one, "first", text).headers["x-cache"] == "miss"
    assert speak(one, "later", text).headers["x-cache"] == "hit"
    with Client(unix_socket_path=str(shared.socket)) as client:

        def paid(subject: str, name: str) -> float:
            return float(client.hget(key_of(Subject(subject, subject, SCOPES)), name) or 0)

        wait_for(lambda: paid("later", "audio_seconds") == 0, "the estimate is settled")
        assert paid("later", "characters") > 0
        assert paid("first", "audio_seconds") > 0


def test_grpc_pays_from_the_same_budget() -> None:
    port = free_port()
    running = Running(budget_chars_per_minute=100, grpc_port=port).get_ready()
    try:
        running.engine.permits.release(1)
        assert running.http.send(running.request("a" * 60)).status_code == 200
        error = Grpc(port).refusal("a" * 90, model="gate")
        assert error.code().name == "RESOURCE_EXHAUSTED"
        assert trailing(error)["error-code"] == "budget_exceeded"
        assert 1 <= int(trailing(error)["retry-after"]) <= 30
    finally:
        running.stop()
