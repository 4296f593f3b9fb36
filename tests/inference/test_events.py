"""Server-sent events and timestamps: what OpenAI's clients read, and where each segment lies in the audio."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from conftest import Service, token, wait_for
from gate import Running
from maya1_tts.audio import FORMATS
from test_audio import by_ffmpeg

STORY = "The sun came up. The birds began to sing.\n\nThe cat went home."


def events(lines: Iterator[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def audio(received: list[dict[str, Any]]) -> bytes:
    deltas = (event for event in received if event["type"] == "speech.audio.delta")
    return b"".join(base64.b64decode(event["audio"]) for event in deltas)


@pytest.mark.parametrize("format", FORMATS)
def test_events_carry_the_audio_of_the_stream(service: Service, format: str) -> None:
    fields = {"response_format": format, "speed": 1.2}
    answer = service.speak(STORY, stream_format="sse", **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    received = events(answer.iter_lines())
    assert {event["type"] for event in received[:-1]} == {"speech.audio.delta"}
    done = received[-1]
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["input_tokens"] == len(STORY)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    samples = len(by_ffmpeg(audio(received), format))
    assert samples / 22050 == pytest.approx(done["audio_seconds"], abs=0.15)
    again = events(service.speak(STORY, stream_format="sse", **fields).iter_lines())
    assert len(by_ffmpeg(audio(again), format)) == pytest.approx(samples, abs=2400)


def test_openai_client_reads_the_events(service: Service) -> None:
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=token(), max_retries=0)
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="joe", input=STORY, response_format="pcm", stream_format="sse"
    ) as stream:
        received = events(stream.iter_lines())
    assert received[-1]["type"] == "speech.audio.done"
    assert audio(received) == service.speak(STORY).content


def test_events_say_where_each_segment_lies(service: Service) -> None:
    for _ in ("spoken", "cached"):
        received = events(
            service.speak(STORY, stream_format="sse", timestamps="segment", speed=0.9).iter_lines()
        )
        segments = [event for event in received if event["type"] == "speech.audio.segment"]
        assert [segment["text"] for segment in segments] == [
            "The sun came up.", "The birds began to sing.", "The cat went home."
        ]  # fmt: skip
        samples = np.frombuffer(audio(received), "<i2")
        ends = [round(segment["end"] * 22050) for segment in segments]
        assert ends[-1] == len(samples)
        assert [segment["start"] for segment in segments] == [
            0,
            *(segment["end"] for segment in segments[:-1]),
        ]
        for end in ends:  # segments are joined in silence, and the voice is loud in between
            assert not samples[end - 1]
        for start, end in zip([0, *ends], ends, strict=False):
            assert np.abs(samples[start:end]).max() > 3000


def test_a_whole_answer_with_timestamps(service: Service) -> None:
    answer = service.speak(STORY, timestamps="segment", response_format="wav").json()
    whole = service.speak(STORY, response_format="wav").content
    assert base64.b64decode(answer["audio"]) == whole
    assert answer["audio_seconds"] == answer["segments"][-1]["end"]
    assert [segment["text"] for segment in answer["segments"]][1] == "The birds began to sing."


@pytest.mark.parametrize("format", FORMATS)
def test_a_sample_rate_of_choice(service: Service, format: str) -> None:
    expected = len(service.speak(STORY).content) / 2 / 22050
    for rate in (8000, 16000, 24000, 48000):
        answer = service.speak(STORY, response_format=format, sample_rate=rate)
        assert answer.headers["x-sample-rate"] == str(rate)
        if format == "pcm":
            assert len(answer.content) / 2 / rate == pytest.approx(expected, abs=0.001)
        else:
            assert len(by_ffmpeg(answer.content, format)) / 22050 == pytest.approx(expected, abs=0.08)


@pytest.fixture
def gate() -> Iterator[Running]:
    running = Running()
    try:
        yield running.get_ready()
    finally:
        running.stop()


def test_an_event_leaves_as_soon_as_its_segment_is_spoken(gate: Running) -> None:
    request = gate.request("one two", stream_format="sse", timestamps="segment")
    gate.engine.permits.release(1)
    answer = gate.http.send(request, stream=True)
    lines = (line for line in answer.iter_lines() if line)
    assert len(audio(events(iter([next(lines)])))) == 1600
    assert events(iter([next(lines)])) == [
        {"type": "speech.audio.segment", "text": "one", "start": 0.0, "end": 0.1}
    ]
    assert "two" not in gate.engine.spoken
    gate.engine.permits.release(1)
    assert [event["type"].rpartition(".")[2] for event in events(lines)] == ["delta", "segment", "done"]


def test_a_failure_midway_is_an_event_and_one_before_is_an_http_error(gate: Running) -> None:
    gate.engine.permits.release(3)
    received = events(gate.http.send(gate.request("one explode", stream_format="sse")).iter_lines())
    assert [event["type"] for event in received] == ["speech.audio.delta", "error"]
    assert received[-1]["error"]["code"] == "synthesis_failed"
    answer = gate.http.send(gate.request("explode", stream_format="sse"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "synthesis_failed")


def test_a_client_that_leaves_the_events_stops_the_synthesis(gate: Running) -> None:
    gate.engine.permits.release(1)
    with httpx.Client(timeout=60) as client:
        answer = client.send(gate.request("one two three", stream_format="sse"), stream=True)
        next(answer.iter_lines())
        answer.close()
    wait_for(lambda: gate.outcomes("cancelled") == 1, "the synthesis is cancelled")
