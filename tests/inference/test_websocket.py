"""Text in and audio out over one WebSocket, by a client of another make: the library websockets."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Service, token, wait_for
from gate import Running
from maya1_tts.sentences import LONGEST, Sentences
from test_audio import by_ffmpeg
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

JOE = {"model": "tts-1", "voice": "joe"}
TONE = {"model": "gate"}


class Talk:
    """What was received over a connection, in its order."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.audio = b""
        self.told: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        self.connection.send(json.dumps(message))

    def next(self) -> dict[str, Any]:
        """The next event; audio before it is kept."""
        while isinstance(message := self.connection.recv(timeout=60), bytes):
            self.audio += message
        self.told.append(json.loads(message))
        return self.told[-1]

    def until(self, type: str) -> dict[str, Any]:
        while (event := self.next())["type"] != type:
            pass
        return event

    def closed(self) -> int:
        """The code, after all that came before it."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.next()
        return self.connection.close_code or 0

    def texts(self) -> list[str]:
        return [event["text"] for event in self.told if event["type"] == "segment"]

    def errors(self) -> list[str]:
        return [event["error"]["code"] for event in self.told if event["type"] == "error"]


@contextlib.contextmanager
def talk(url: str, **options: Any) -> Iterator[Talk]:
    with connect(url.replace("http", "ws") + "/v1/audio/speech/ws", **options) as connection:
        yield Talk(connection)


def authorised(service: Service, **options: Any) -> Any:
    return talk(service.url, additional_headers={"Authorization": f"Bearer {token()}"}, **options)


@pytest.fixture
def gate() -> Iterator[Running]:
    running = Running(websocket_idle_seconds=0.3)
    try:
        yield running.get_ready()
    finally:
        running.stop()


@pytest.mark.parametrize("format", ["pcm", "wav", "mp3", "opus", "flac"])
def test_pieces_of_text_become_one_file(service: Service, format: str) -> None:
    with authorised(service) as session:
        session.send(**JOE, response_format=format, speed=1.2)
        started = session.until("started")
        assert (started["voice"], started["response_format"]) == ("joe", format)
        for piece in ("The sun", " came up. The ", "birds began to sing. And", " the cat went home"):
            session.send(type="text", text=piece)
        session.send(type="end")
        done = session.until("done")
        assert session.closed() == 1000
    texts = session.texts()
    assert texts == ["The sun came up.", "The birds began to sing.", "And the cat went home"]
    samples = by_ffmpeg(session.audio, format)
    assert len(samples) / 22050 == pytest.approx(done["audio_seconds"], abs=0.12)
    if format == "pcm":
        first = service.speak(texts[0], speed=1.2).content
        assert session.audio.startswith(first)
        second = [message for message in session.told if message["type"] == "segment"][1]
        assert session.audio[second["sample"] * 2 :].startswith(service.speak(texts[1], speed=1.2).content)
        assert not np.frombuffer(session.audio, "<i2")[len(first) // 2 : second["sample"]].any()


def test_a_sentence_is_spoken_before_the_next_is_written(gate: Running) -> None:
    with talk(str(gate.http.base_url)) as session:
        session.send(**TONE, type="start")
        session.send(type="text", text="One")
        session.send(type="text", text=". T")
        gate.engine.permits.release(1)
        assert session.until("segment")["text"] == "One."
        wait_for(lambda: gate.engine.spoken[3:] == ["One."], "the first sentence is spoken")
        session.send(type="text", text="wo")
        session.send(type="flush")
        gate.engine.permits.release(1)
        assert session.until("flushed")["end"] == pytest.approx(0.1 + 0.15 + 0.1)
        assert gate.engine.spoken[3:] == ["One.", "Two"]
        assert len(session.audio) == 2 * 8000 * 0.35
        session.send(type="end")
        assert session.until("done")["characters"] == 8


def test_who_may_talk(service: Service) -> None:
    with talk(service.url, subprotocols=["bearer", token()]) as session:
        assert session.connection.subprotocol == "bearer"
        session.send(**JOE)
        session.until("started")
    for options, status, code in (
        ({}, 401, "missing_token"),
        ({"subprotocols": ["bearer", "x.y.z"]}, 401, "invalid_token"),
        ({"subprotocols": ["bearer", token(scope="jobs")]}, 403, "insufficient_scope"),
    ):
        with pytest.raises(InvalidStatus) as refused, talk(service.url, **options):
            pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("messages", "close", "error"),
    [
        (["{"], 1008, "invalid_json"),
        ([JOE | {"voice": "alloy"}], 1008, "voice_not_found"),
        ([JOE | {"input": "a"}], 1008, "unknown_parameter"),
        ([JOE | {"response_format": "aac"}], 1008, "unsupported_format"),
        ([JOE, {"type": "shout"}], 1008, "invalid_value"),
        ([JOE, {"text": "a"}], 1008, "missing_parameter"),
        ([JOE, b"audio?"], 1003, "invalid_json"),
    ],
)
def test_wrong_messages_end_it(service: Service, messages: list[Any], close: int, error: str) -> None:
    with authorised(service) as session:
        for message in messages:
            session.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))
        assert session.closed() == close
    assert session.errors() == [error]


def test_a_message_that_is_too_large(service: Service) -> None:
    with authorised(service) as session:
        session.send(**JOE)
        session.until("started")
        session.send(type="text", text="word " * 20_000)
        assert session.closed() == 1009


def test_one_wrong_sentence_does_not_end_it(service: Service) -> None:
    with authorised(service) as session:
        session.send(**JOE)
        id = session.until("started")["request_id"]
        session.send(type="text", text="Hello there. こんにちは。 😀! Good bye.")
        session.send(type="end")
        assert session.until("done")["audio_seconds"] > 1
    types = [event["type"] for event in session.told]
    assert types == ["started", "segment", "error", "segment", "done"]
    assert session.errors() == ["unsupported_characters"]
    audited = [line for line in map(json.loads, service.log.splitlines()) if line.get("request_id") == id]
    codes = [(line["outcome"], line.get("code")) for line in audited if line["logger"] == "maya1_tts.audit"]
    assert codes == [
        ("done", None), ("refused", "unsupported_characters"), ("refused", "empty_input"), ("done", None)
    ]  # fmt: skip


def test_a_failure_of_the_engine_ends_it(gate: Running) -> None:
    gate.engine.permits.release(2)
    with talk(str(gate.http.base_url)) as session:
        session.send(**TONE)
        session.send(type="text", text="One.\nexplode\n")
        assert session.closed() == 1011
    assert session.errors() == ["synthesis_failed"]


def test_silence_is_cut_off_but_not_speech(gate: Running) -> None:
    with talk(str(gate.http.base_url)) as session:
        session.send(**TONE)
        session.send(type="text", text="slow\n")
        session.until("started")
        with pytest.raises(TimeoutError):  # the engine has no permit: longer than the idle timeout
            session.connection.recv(timeout=1)
        gate.engine.permits.release(1)
        assert session.until("segment")["text"] == "slow"
        assert session.closed() == 1008
    assert session.errors() == ["idle_timeout"]


def test_a_client_that_leaves_stops_its_synthesis(gate: Running) -> None:
    with talk(str(gate.http.base_url)) as session:
        session.send(**TONE)
        session.send(type="text", text="a b c.\n")
        wait_for(lambda: gate.metric("active_syntheses") == 1, "it is being spoken")
    wait_for(lambda: gate.outcomes("cancelled") == 1, "the synthesis is cancelled")


def test_a_client_that_writes_faster_than_it_is_spoken_has_to_wait(gate: Running) -> None:
    sent = 0

    def write(session: Talk) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionClosed):
            for _ in range(2000):
                session.send(type="text", text="word " * 7000)
                sent += 1

    with talk(str(gate.http.base_url), close_timeout=0) as session:
        session.send(**TONE)
        session.until("started")
        writer = threading.Thread(target=write, args=(session,))
        writer.start()
        wait_for(lambda: sent and still(lambda: sent), "the client cannot write any more")
        assert sent < 1000  # of 70 MB, what fits into the buffers of two sockets
        session.connection.socket.shutdown(socket.SHUT_RDWR)
        writer.join()


def still(value: Callable[[], object]) -> bool:
    before = value()
    time.sleep(0.5)
    return value() == before


def test_draining_speaks_what_was_written_and_ends(gate: Running) -> None:
    with talk(str(gate.http.base_url)) as session, talk(str(gate.http.base_url)) as idle:
        idle.send(**TONE)
        session.send(**TONE)
        session.send(type="text", text="One.\nand two")
        wait_for(lambda: gate.metric("active_syntheses") == 1, "it is being spoken")
        gate.drain()
        assert idle.closed() == 1012
        gate.engine.permits.release(3)
        assert session.closed() == 1012
    assert gate.engine.spoken[3:] == ["One.", "and", "two"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith paid $3.50. He left.", ["Dr. Smith paid $3.50.", "He left."]),
        ('"Really?" she asked. J. Doe nodded!', ['"Really?"', "she asked.", "J. Doe nodded!"]),
        ("A title\nand a line", ["A title", "and a line"]),
        ("Wait... what?", ["Wait...", "what?"]),
        ("你好。再见。", ["你好。", "再见。"]),
        ("e.g. this, etc. Then that.", ["e.g. this, etc.", "Then that."]),
    ],
)
def test_sentences_do_not_depend_on_how_the_text_is_cut(text: str, sentences: list[str]) -> None:
    for size in (1, 3, 100):
        splitter = Sentences()
        found = [s for start in range(0, len(text), size) for s in splitter.feed(text[start : start + size])]
        assert found + splitter.flush() == sentences


def test_text_without_a_full_stop_is_not_kept_back_for_ever() -> None:
    splitter = Sentences()
    words = splitter.feed("word " * 300)
    assert all(len(piece) <= LONGEST for piece in words)
    assert " ".join([*words, *splitter.flush()]).split() == ["word"] * 300
    assert [len(piece) for piece in splitter.feed("x" * 1200)] == [LONGEST, LONGEST]
