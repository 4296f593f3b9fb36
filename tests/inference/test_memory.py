"""What a request held is free when the request is over, however it ended, without a garbage collection."""

import gc
from collections.abc import Iterator

import pytest
from conftest import wait_for
from gate import Running
from maya1_tts.audio import SndfileEncoder


@pytest.fixture
def ready() -> Iterator[Running]:
    running = Running().get_ready()
    gc.collect()
    gc.disable()
    yield running
    gc.enable()
    running.stop()


def encoders() -> int:
    return sum(isinstance(thing, SndfileEncoder) for thing in gc.get_objects())


@pytest.mark.parametrize("text", ["one two", "one explode", "one leave"])
def test_an_encoder_is_freed_when_its_request_is_over(ready: Running, text: str) -> None:
    body = {"model": "gate", "input": text, "response_format": "mp3", "stream": True}
    ready.engine.permits.release(1)
    with ready.http.stream("POST", "/v1/audio/speech", json=body) as answer:
        next(answer.iter_raw())
        if text != "one leave":
            ready.engine.permits.release(1)
            wait_for(lambda: not ready.metric("active_syntheses"), "it is over")
    wait_for(lambda: encoders() == 0, "the encoder is freed")
