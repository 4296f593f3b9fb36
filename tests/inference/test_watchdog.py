"""A process that has stopped working ends, says why, and answers who waits. One that is merely slow stays."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from conftest import INFERENCE, free_port, service_environment, wait_for
from gate import Running
from maya1_tts.api import Service
from maya1_tts.watchdog import EXIT_CODE, FAILURES, Watchdog

# A stand-in for the engine, in a process of its own: it does to it what the text says.
PROGRAM = """
import asyncio, threading, time
from gate import Gate
from maya1_tts.api import Service
from maya1_tts.config import load_settings
from maya1_tts.logs import setup_logging
from maya1_tts.server import Server

class Unreliable(Gate):
    broken = False

    async def stream(self, segment, delivery):
        if segment.text == "hang":
            await asyncio.to_thread(threading.Event().wait)
        if segment.text == "freeze":
            time.sleep(1e6)
        if segment.text == "break":
            self.broken = True
        if segment.text == "explode" or self.broken:
            raise RuntimeError("as asked")
        self.permits.release()
        async for block in super().stream(segment, delivery):
            yield block

setup_logging("info")
Server(Service(load_settings(), lambda settings, metrics: Unreliable(lanes=2))).run()
"""


class Unreliable:
    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = folder / "log"
        environment = service_environment(
            ENVIRONMENT="development", AUTH="none", HOST="127.0.0.1", PORT=port,
            DEFAULT_VOICE="tone", WATCHDOG_SECONDS=2,
        )  # fmt: skip
        environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], env=environment, stdout=log, stderr=log, cwd=INFERENCE
            )
        wait_for(self._ready, "the service is ready")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def log(self) -> str:
        return self._log.read_text()

    def speak(self, text: str, **fields: Any) -> httpx.Response:
        body = {"model": "gate", "input": text, "response_format": "pcm"} | fields
        return httpx.post(f"{self.url}/v1/audio/speech", json=body, timeout=60)


@pytest.fixture
def unreliable(tmp_path: Path) -> Iterator[Unreliable]:
    service = Unreliable(tmp_path)
    yield service
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()


def test_an_engine_that_gives_nothing(unreliable: Unreliable) -> None:
    answers: dict[str, int | str] = {}

    def stream() -> None:
        try:
            unreliable.speak("one hang", stream=True)
        except httpx.RemoteProtocolError:
            answers["stream"] = "broken"

    def whole() -> None:
        answer = unreliable.speak("hang")
        answers["whole"] = answer.json()["error"]["code"]
        answers["retry-after"] = answer.headers["retry-after"]

    threads = [threading.Thread(target=target) for target in (stream, whole)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {"stream": "broken", "whole": "engine_stuck", "retry-after": "5"}
    assert unreliable.process.wait(60) == EXIT_CODE
    assert '"reason": "the engine gives no audio", "exit_code": 70' in unreliable.log
    assert "Thread 0x" in unreliable.log  # the stacks, and where one hangs
    assert "in wait" in unreliable.log


def test_an_event_loop_that_does_not_answer(unreliable: Unreliable) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        unreliable.speak("freeze")
    assert unreliable.process.wait(60) == EXIT_CODE
    assert '"reason": "the event loop does not answer"' in unreliable.log
    assert "in stream" in unreliable.log


def test_an_engine_that_fails_for_good(unreliable: Unreliable) -> None:
    assert [unreliable.speak(f"break {number}").status_code for number in range(FAILURES)] == [500] * FAILURES
    assert unreliable.process.wait(60) == EXIT_CODE
    assert '"reason": "the engine fails"' in unreliable.log


def test_texts_that_fail_are_no_reason_to_restart(unreliable: Unreliable) -> None:
    assert [unreliable.speak("explode").status_code for number in range(FAILURES)] == [500] * FAILURES
    wait_for(lambda: "but the engine still speaks" in unreliable.log, "the engine is tried")
    assert unreliable.speak("one").status_code == 200
    assert unreliable.process.poll() is None


@pytest.fixture
def ready() -> Iterator[Running]:
    running = Running(watchdog_seconds=0).get_ready()
    yield running
    running.stop()


def test_an_engine_is_stuck_only_while_it_is_busy_and_gives_no_block() -> None:
    """Beat by beat, with a stand-in for the service that has what the watchdog looks at."""

    async def scenario() -> None:
        studio = SimpleNamespace(blocks=0, failures=0, busy=False)
        service = SimpleNamespace(studio_or_none=studio, settings=SimpleNamespace(watchdog_seconds=5))
        watchdog = Watchdog(cast("Service", service))
        ended: list[str] = []

        async def end(reason: str) -> None:
            ended.append(reason)

        watchdog._end = end  # type: ignore[method-assign]  # the real one ends this process

        async def beat(times: int) -> list[str]:
            for _ in range(times):
                watchdog._silent = 1.0
                watchdog.beat()
                await asyncio.sleep(0)
            return ended

        assert not await beat(50), "it is idle"
        studio.busy = True
        for _ in range(5):
            assert not await beat(9), "it is slow, but gives a block now and then"
            studio.blocks += 1
        assert not await beat(9)
        studio.busy = False
        assert not await beat(50), "the client has left"
        studio.busy = True
        assert await beat(3), "busy again, and still not a block"

    asyncio.run(scenario())


def test_livez_says_when_it_is_stuck(ready: Running) -> None:
    assert ready.http.get("/livez").status_code == 200
    ready.service.stuck = True
    answer = ready.http.get("/livez")
    assert (answer.status_code, answer.json()) == (503, {"status": "stuck"})
    assert ready.http.get("/readyz").json() == {"status": "stuck"}
