"""Under way, under load, starting, stopping. A gate in the engine decides when things happen, not a clock."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Service as Subprocess
from conftest import wait_for
from gate import Running


@pytest.fixture
def loading() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def ready(loading: Running) -> Running:
    return loading.get_ready()


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
    assert int(refused.headers["retry-after"]) >= 1
    ready.engine.permits.release(2)
    for thread in waiting:
        thread.join()
    ready.engine.permits.release(1)
    assert ready.http.send(ready.request("third")).status_code == 200


def test_a_stream_that_would_begin_late_is_refused_and_a_whole_file_waits() -> None:
    running = Running(stream_deadline_seconds=0.05, queue_limit=3).get_ready()
    try:
        first = running.in_background("first")
        wait_for(lambda: running.metric("active_syntheses") == 1, "the only lane is held")
        late = running.http.send(running.request("stream"))
        assert (late.status_code, late.json()["error"]["code"]) == (503, "deadline_exceeded")
        assert int(late.headers["retry-after"]) >= 1
        whole = running.in_background("whole")
        wait_for(lambda: running.metric("queue_depth") == 1, "the whole one waits")
        running.engine.permits.release(2)
        first.join()
        whole.join()
        assert running.engine.spoken[3:] == ["first", "whole"]
    finally:
        running.stop()


def test_a_whole_file_has_its_segments_spoken_beside_each_other() -> None:
    running = Running(lanes=3).get_ready()
    try:
        running.engine.permits.release(3)
        streamed = running.http.send(running.request("one two three")).content
        waiting = running.in_background("four five six seven")
        wait_for(lambda: running.metric("active_syntheses") == 3, "all lanes are held")
        assert running.metric("queue_depth") == 0
        running.engine.permits.release(4)
        waiting.join()
        assert sorted(running.engine.spoken[6:]) == ["five", "four", "seven", "six"]
        running.engine.permits.release(3)
        whole = running.http.send(running.request("one two three", stream=False))
        assert whole.content == streamed
    finally:
        running.stop()


def test_whoever_leaves_a_whole_file_stops_all_its_segments() -> None:
    running = Running(lanes=3).get_ready()
    try:
        running.leave_early("one two three four")
        wait_for(lambda: running.outcomes("cancelled") == 1, "it is cancelled")
        assert running.metric("active_syntheses") == running.metric("queue_depth") == 0
        running.engine.permits.release(2)
        assert running.http.send(running.request("five six")).status_code == 200
        assert running.engine.spoken[3:] == ["five", "six"]
    finally:
        running.stop()


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
    # Each word is 0.1 s of audio; whoever listens to the long one has 0.3 s before its last.
    spoken = ready.engine.spoken[3:]
    assert sorted(spoken) == ["l1", "l2", "l3", "l4", "short"]
    assert spoken.index("short") < spoken.index("l4")


def test_a_client_that_does_not_read_blocks_nobody(ready: Running) -> None:
    words = " ".join(["word"] * 4000)  # 6 MB of samples, more than sockets hold
    ready.engine.permits.release(4001)
    with ready.http.stream("POST", "/v1/audio/speech", json=ready.body(words)) as unread:
        wait_for(lambda: len(ready.engine.spoken) == 4003, "it was all spoken")
        assert ready.http.send(ready.request("other")).status_code == 200
        assert sum(len(piece) for piece in unread.iter_raw()) == 4000 * 1600


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
