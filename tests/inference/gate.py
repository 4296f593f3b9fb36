"""An engine that waits for a permit before each segment: tests decide when things happen, not a clock."""

import asyncio
import signal
import threading
import zlib
from collections.abc import AsyncIterator, Mapping

import httpx
import numpy as np
import pytest
from conftest import free_port, wait_for
from maya1_tts.api import Service
from maya1_tts.audio import FloatArray
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Segment, Voice
from maya1_tts.metrics import Metrics
from maya1_tts.server import Server


class Gate:
    """An engine whose every segment takes one permit, and sounds different.

    The service needs no more than the protocol of it.
    """

    name = "gate"
    options: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ("laugh", "sigh")

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes
        self.voices: Mapping[str, Voice] = {"tone": Voice("tone", "Tone", "en", 8000, "1")}
        self.permits = threading.Semaphore(0)
        self.spoken: list[str] = []
        self.loop: asyncio.AbstractEventLoop | None = None  # that of the service

    def segments(self, text: str, delivery: Delivery) -> list[Segment]:
        return [Segment(word, 0.0, 0.1) for word in text.split()]

    async def stream(self, segment: Segment, delivery: Delivery) -> AsyncIterator[FloatArray]:
        self.loop = asyncio.get_running_loop()
        while not self.permits.acquire(blocking=False):
            await asyncio.sleep(0.005)
        if segment.text == "explode":
            raise RuntimeError("as asked")
        self.spoken.append(segment.text)
        yield np.full(800, zlib.crc32(segment.text.encode()) / 2**32, dtype=np.float32)

    def close(self) -> None:
        pass


class Running:
    """The service in a thread of this process, with one lane and room for one in the queue."""

    def __init__(self, lanes: int = 1, **changed: object) -> None:
        self.engine = Gate(lanes)
        self.may_load = threading.Event()
        self.port = free_port()
        settings = {
            "environment": "development", "auth": "none", "default_voice": "tone", "host": "127.0.0.1",
            "port": self.port, "workers": 1, "queue_limit": 1, "model_aliases": "",
            "max_input_chars": 30000,
        } | changed  # fmt: skip
        self.service = Service(Settings.model_validate(settings), self._load)
        self.server = Server(self.service)
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        wait_for(lambda: self.server.started, "the server listens")
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def _load(self, settings: Settings, metrics: Metrics) -> Gate:
        self.may_load.wait()
        return self.engine

    def metric(self, name: str) -> float:
        return self.service.metrics.registry.get_sample_value(f"maya1_tts_{name}") or 0.0

    def outcomes(self, outcome: str) -> float:
        return (
            self.service.metrics.registry.get_sample_value("maya1_tts_syntheses_total", {"outcome": outcome})
            or 0.0
        )

    def body(self, text: str, stream: bool = True, **fields: object) -> dict[str, object]:
        return {"model": "gate", "input": text, "response_format": "pcm", "stream": stream} | fields

    def request(self, text: str, stream: bool = True, **fields: object) -> httpx.Request:
        url = f"http://127.0.0.1:{self.port}/v1/audio/speech"
        token = {name: value for name, value in self.http.headers.items() if name == "authorization"}
        return httpx.Request("POST", url, json=self.body(text, stream, **fields), headers=token)

    def in_background(self, text: str, stream: bool = False) -> threading.Thread:
        thread = threading.Thread(target=lambda: self.http.send(self.request(text, stream)))
        thread.start()
        return thread

    def leave_early(self, text: str) -> None:
        """Ask for something, and hang up before it comes."""
        with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
            client.send(self.request(text, stream=False))

    def get_ready(self) -> "Running":
        self.may_load.set()
        self.engine.permits.release(3)  # "Ready to speak."
        wait_for(lambda: self.http.get("/readyz").status_code == 200, "warm-up")
        return self

    def drain(self) -> None:
        """As SIGTERM does, which only a main thread can receive."""
        assert self.engine.loop
        self.engine.loop.call_soon_threadsafe(self.server.handle_exit, signal.SIGTERM, None)

    def stop(self, unfinished: bool = False) -> None:
        """unfinished: what is being spoken stays so."""
        self.may_load.set()
        if not unfinished:
            self.engine.permits.release(1000)
        self.http.close()
        self.server.should_exit = True
        self._thread.join()
