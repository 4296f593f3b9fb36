"""Redis: what is stored, what is shared, and that nothing depends on it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from conftest import Redis, Service, wait_for
from maya1_tts.audio import Format
from maya1_tts.cache import Entry, Memory, Seal
from maya1_tts.engine import Timing


def test_second_request_is_a_hit_in_every_way_of_asking(service: Service) -> None:
    text = "This sentence is spoken once."
    first = service.speak(text, response_format="flac")
    second = service.speak(text, response_format="flac")
    streamed = service.speak(text, response_format="flac", stream=True)
    assert [answer.headers["x-cache"] for answer in (first, second, streamed)] == ["miss", "hit", "hit"]
    assert first.content == second.content == streamed.content
    assert first.headers["x-audio-duration-seconds"] == second.headers["x-audio-duration-seconds"]


def test_a_stream_fills_the_cache(service: Service) -> None:
    text = "This one is streamed first."
    assert service.speak(text, stream=True).headers["x-cache"] == "miss"
    assert service.speak(text).headers["x-cache"] == "hit"


def test_all_that_changes_the_sound_is_part_of_the_key(service: Service) -> None:
    text = "Variations on a sentence."
    others = [service.speak(text), service.speak(text, speed=1.1), service.speak(text, response_format="wav")]
    others.append(service.speak(text + "!"))
    assert [answer.headers["x-cache"] for answer in others] == ["miss"] * 4


def test_equal_requests_at_the_same_time_are_spoken_once(service: Service) -> None:
    text = "Many people ask for the same thing. " * 4
    before = service.metric("syntheses_total", outcome="done")
    start = threading.Barrier(8)

    def ask(number: int) -> bytes:
        start.wait()
        return service.speak(text, stream=number % 2 == 0).content

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert len(answers) == 1
    assert service.metric("syntheses_total", outcome="done") - before == 1


def test_entries_check_themselves() -> None:
    seal = Seal(b"")
    value = seal.close("key", b"audio")
    assert seal.open("key", value) == b"audio"
    for damaged in (value[:-1], value[:-1] + b"x", value[1:], b""):
        assert seal.open("key", damaged) is None
    assert seal.open("another key", value) is None
    assert Seal(b"a secret").open("key", value) is None


def test_redis_may_come_and_go(tmp_path: Path) -> None:
    store = Redis(tmp_path)
    store.start()
    service = Service(
        tmp_path,
        ENVIRONMENT="development",
        AUTH="none",
        REDIS_URL=store.url,
        CACHE_MAX_ENTRY_BYTES=200_000,
        CACHE_MEMORY_BYTES=0,
    )
    try:
        service.wait_until_ready()
        expected = service.speak().content
        assert service.speak().headers["x-cache"] == "hit"

        database = redis.Redis(unix_socket_path=str(store.socket))
        wait_for(lambda: len(database.keys()) == 1, "nothing is left but the entry")
        (key,) = database.keys()
        assert 0 < database.ttl(key) <= 86400
        database.set(key, database.get(key)[:-100])
        answer = service.speak()
        assert (answer.headers["x-cache"], answer.content) == ("miss", expected)
        assert service.metric("cache_damaged_total", tier="redis") == 1
        assert service.speak().headers["x-cache"] == "hit"

        service.speak("This is far too long to be kept. " * 5)
        wait_for(lambda: len(database.keys()) == 1, "the long one has left nothing")
        database.close()

        store.kill()
        answer = service.speak()
        assert (answer.headers["x-cache"], answer.content) == ("bypass", expected)
        assert service.metric("cache_up", tier="redis") == 0
        assert service.metric("cache_errors_total", tier="redis") > 0
        assert service.status("/readyz") == 200

        store.start()
        wait_for(lambda: service.metric("cache_up", tier="redis") == 1, "the cache is found again")
        assert service.speak().headers["x-cache"] == "miss"
        assert service.speak().headers["x-cache"] == "hit"
    finally:
        service.stop()
        store.kill()


@pytest.mark.parametrize("format", ["pcm", "wav", "mp3", "flac", "opus"])
def test_entries_give_back_the_same_bytes_and_speech_is_kept_small(service: Service, format: Format) -> None:
    body = service.speak("These bytes come back.", response_format=format).content
    entry = Entry(12345, body, (Timing("These bytes come back.", 0, 12345),))
    packed = entry.pack(format)
    assert Entry.unpack(memoryview(packed)) == entry
    assert len(packed) < (0.55 if format in ("pcm", "wav") else 1.02) * len(body) + 200


def test_memory_keeps_what_was_used_last_and_no_more_than_it_may() -> None:
    memory = Memory(limit=800, ttl=1000)
    for key in "abcdefgh":
        memory.set(key, Entry(1, key.encode() * 100))
    assert memory.get("a") == Entry(1, b"a" * 100)  # and so "b" is the oldest
    memory.set("i", Entry(1, b"i" * 100))
    assert [key for key in "abcdefghi" if memory.get(key)] == list("acdefghi")
    memory.set("large", Entry(1, b"x" * 101))
    assert memory.get("large") is None
    expired = Memory(limit=800, ttl=0)
    expired.set("a", Entry(1, b"a"))
    assert expired.get("a") is None
