"""Under way, under load, starting, stopping. A gate in the engine decides when things happen, not a clock."""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Service as Subprocess
from conftest import free_port, wait_for
from maya1_tts.api import Service
from maya1_tts.audio import FloatArray
from maya1_tts.config import Settings
from maya1_tts.engine import Segment, Voice
from maya1_tts.server import Server


class Gate:
    """An engine whose every segment takes one permit. The service needs no more than the protocol of it."""

    name = "gate"

    def __init__(self) -> None:
        self.voices: Mapping[str, Voice] = {"tone": Voice("tone", "Tone", "en", 8000, "1")}
        self.permits = threading.Semaphore(0)
        self.spoken: list[str] = []

    def segments(self, text: str, voice: str, speed: float) -> list[Segment]:
        return [Segment(word, 0.0) for word in text.split()]

    async def stream(self, segment: Segment, voice: str, speed: float) -> AsyncIterator[FloatArray]:
        while not self.permits.acquire(blocking=False):
            await asyncio.sleep(0.005)
        if segment.text == "explode":
            raise RuntimeError("as asked")
        self.spoken.append(segment.text)
        yield np.zeros(800, dtype=np.float32)

    def close(self) -> None:
        pass


class Running:
    """The service in a thread of this process, with workers=1 and room for one in the queue."""

    def __init__(self) -> None:
        self.engine = Gate()
        self.may_load = threading.Event()
        self.port = free_port()
        settings = Settings(
            environment="development", auth="none", default_voice="tone", host="127.0.0.1", port=self.port,
            workers=1, queue_limit=1, model_aliases="",
        )  # fmt: skip
        self.service = Service(settings, self._load)
        self.server = Server(self.service)
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        wait_for(lambda: self.server.started, "the server listens")
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def _load(self, settings: Settings) -> Gate:
        self.may_load.wait()
        return self.engine

    def metric(self, name: str) -> float:
        return self.service.metrics.registry.get_sample_value(f"maya1_tts_{name}") or 0.0

    def outcomes(self, outcome: str) -> float:
        return (
            self.service.metrics.registry.get_sample_value("maya1_tts_syntheses_total", {"outcome": outcome})
            or 0.0
        )

    def request(self, text: str, stream: bool = True) -> httpx.Request:
        body = {"model": "gate", "input": text, "response_format": "pcm", "stream": stream}
        return httpx.Request("POST", f"http://127.0.0.1:{self.port}/v1/audio/speech", json=body)

    def in_background(self, text: str, stream: bool = False) -> threading.Thread:
        thread = threading.Thread(target=lambda: self.http.send(self.request(text, stream)))
        thread.start()
        return thread

    def leave_early(self, text: str) -> None:
        """Ask for something, and hang up before it comes."""
        with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
            client.send(self.request(text, stream=False))

    def stop(self) -> None:
        self.may_load.set()
        self.engine.permits.release(1000)
        self.http.close()
        self.server.should_exit = True
        self._thread.join()


@pytest.fixture
def loading() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def ready(loading: Running) -> Running:
    loading.may_load.set()
    loading.engine.permits.release(3)  # "Ready to speak."
    wait_for(lambda: loading.http.get("/readyz").status_code == 200, "warm-up")
    return loading


def test_ready_only_after_the_warm_up(loading: Running) -> None:
    def state() -> tuple[int, int, str]:
        ready = loading.http.get("/readyz")
        return loading.http.get("/livez").status_code, ready.status_code, ready.json()["status"]

    assert state() == (200, 503, "loading")
    refused = loading.http.send(loading.request("hello"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["retry-after"] == "1"
    assert loading.http.get("/v1/models").status_code == 503
    loading.may_load.set()
    loading.engine.permits.release(2)
    wait_for(lambda: len(loading.engine.spoken) == 2, "most of the warm-up")
    assert state() == (200, 503, "loading")  # it has not finished its first words
    loading.engine.permits.release(1)
    wait_for(lambda: state() == (200, 200, "ready"), "ready")


def test_the_first_sound_leaves_before_the_last_is_made(ready: Running) -> None:
    ready.engine.permits.release(1)
    answer = ready.http.send(ready.request("one two three"), stream=True)
    pieces = answer.iter_raw()
    assert len(next(pieces)) == 1600
    assert ready.engine.spoken[3:] == ["one"]
    ready.engine.permits.release(2)
    assert len(b"".join(pieces)) == 3200


def test_errors_before_the_first_sound_are_http_errors(ready: Running) -> None:
    ready.engine.permits.release(1)
    answer = ready.http.send(ready.request("explode"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "synthesis_failed")
    assert "as asked" not in answer.text
    assert ready.outcomes("failed") == 1


def test_errors_after_the_first_sound_break_the_stream(ready: Running) -> None:
    ready.engine.permits.release(2)
    with pytest.raises(httpx.RemoteProtocolError):
        ready.http.send(ready.request("one explode"))


def test_a_client_that_leaves_stops_its_synthesis(ready: Running) -> None:
    ready.engine.permits.release(1)
    with httpx.Client(timeout=60) as client:
        answer = client.send(ready.request("a b c"), stream=True)
        next(answer.iter_raw())
        answer.close()
    wait_for(lambda: ready.outcomes("cancelled") == 1, "the streamed one is cancelled")
    ready.leave_early("d e f")
    wait_for(lambda: ready.outcomes("cancelled") == 2, "the whole one is cancelled")
    assert ready.engine.spoken[3:] == ["a"]
    assert ready.metric("active_syntheses") == ready.metric("queue_depth") == 0


def test_overload_is_refused_at_once(ready: Running) -> None:
    waiting = [ready.in_background(text) for text in ("first", "second")]
    wait_for(lambda: ready.metric("active_syntheses") + ready.metric("queue_depth") == 2, "two are admitted")
    assert (ready.metric("active_syntheses"), ready.metric("queue_depth")) == (1, 1)
    refused = ready.http.send(ready.request("third"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    ready.engine.permits.release(2)
    for thread in waiting:
        thread.join()
    ready.engine.permits.release(1)
    assert ready.http.send(ready.request("third")).status_code == 200


def test_equal_requests_share_one_synthesis_and_one_leaving_does_not_stop_it(ready: Running) -> None:
    waiting = [ready.in_background("shared") for _ in range(6)]

    def joined() -> float:
        value = ready.service.metrics.registry.get_sample_value(
            "maya1_tts_cache_requests_total", {"result": "joined"}
        )
        return value or 0.0

    wait_for(lambda: joined() == 5, "five have joined the first")
    ready.leave_early("shared")
    ready.engine.permits.release(1)
    for thread in waiting:
        thread.join()
    assert ready.engine.spoken[3:] == ["shared"]
    assert (ready.outcomes("done"), ready.outcomes("cancelled")) == (1, 0)


def test_long_texts_take_turns_with_short_ones(ready: Running) -> None:
    threads = [ready.in_background("l1 l2 l3 l4")]
    wait_for(lambda: ready.metric("active_syntheses") == 1, "the long one speaks")
    threads.append(ready.in_background("short"))
    wait_for(lambda: ready.metric("queue_depth") == 1, "the short one waits")
    ready.engine.permits.release(5)
    for thread in threads:
        thread.join()
    assert ready.engine.spoken[3:] == ["l1", "short", "l2", "l3", "l4"]


def test_sigterm_lets_streams_finish(tmp_path: Path) -> None:
    service = Subprocess(tmp_path, ENVIRONMENT="development", AUTH="none")
    try:
        service.wait_until_ready()
        text = "This is a rather long text, of which the end must not get lost. " * 12
        expected = len(service.speak(text).content)
        body = {"model": "tts-1", "voice": "joe", "input": text, "response_format": "pcm", "stream": True}
        with service.http.stream("POST", "/v1/audio/speech", json=body) as stream:
            pieces = stream.iter_raw()
            received = len(next(pieces))
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{service.url}/readyz").status_code == 503, "unready")
            assert httpx.get(f"{service.url}/readyz").json() == {"status": "draining"}
            assert httpx.get(f"{service.url}/livez").status_code == 200
            refused = httpx.post(f"{service.url}/v1/audio/speech", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            received += sum(len(piece) for piece in pieces)
        assert received == expected
        assert service.process.wait(30) == 0
        messages = [json.loads(line)["message"] for line in service.log.splitlines()]
        assert {"draining", "drained"} <= set(messages)
    finally:
        service.stop()


def test_sigterm_does_not_wait_forever(tmp_path: Path) -> None:
    service = Subprocess(tmp_path, ENVIRONMENT="development", AUTH="none", DRAIN_SECONDS=0, WORKERS=1)
    try:
        service.wait_until_ready()
        body = {"model": "tts-1", "voice": "joe", "input": "Word after word. " * 200, "stream": True}
        with service.http.stream("POST", "/v1/audio/speech", json=body) as stream:
            next(stream.iter_raw())
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 0
    finally:
        service.stop()
