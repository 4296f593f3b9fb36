"""Finds a process that has stopped working and ends it, for only its supervisor can help: it starts another.

A process has stopped working when
- its event loop has not answered for `WATCHDOG_SECONDS`,
- its engine has been at work that long without giving a single block of audio, whatever it was asked,
- syntheses fail one after the other, and its own first words, spoken again, fail as well.
Each is logged with the stacks of all threads. Requests under way are answered if the event loop still can.
"""

import asyncio
import faulthandler
import logging
import os
import threading

from maya1_tts.api.service import Service
from maya1_tts.errors import ApiError

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
FAILURES = 3  # in a row, after which the engine has to prove itself
ANSWER_SECONDS = 2.0  # for the last answers to leave
log = logging.getLogger(__name__)


class Watchdog:
    """Counts its own ticks instead of asking a clock: a process that was suspended is not stuck."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._limit = service.settings.watchdog_seconds
        self._tick = min(1.0, self._limit / 10)
        self._silent = self._stalled = 0.0  # seconds without an answer of the loop, a block of the engine
        self._blocks = 0
        self._over = threading.Event()
        self._last_words: asyncio.Task[None] | None = None

    def start(self) -> None:
        """To be called in the event loop that is to be watched."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._over.wait(self._tick):
            self._silent += self._tick
            if self._silent > self._limit:
                self._report("the event loop does not answer")
                os._exit(EXIT_CODE)
            loop.call_soon_threadsafe(self.beat)

    def beat(self) -> None:
        """One tick has passed, and the event loop is alive."""
        if not self._silent:
            return  # one of several that waited for a loop that was busy: they are one answer
        self._silent = 0.0
        studio = self._service.studio_or_none
        if studio is None or self._last_words:
            return
        if studio.blocks != self._blocks:
            self._blocks, self._stalled = studio.blocks, 0.0
        elif studio.busy:
            self._stalled += self._tick
        if self._stalled > self._limit:
            self._last_words = asyncio.create_task(self._end("the engine gives no audio"))
        elif studio.failures >= FAILURES:
            self._last_words = asyncio.create_task(self._try_engine())

    async def _try_engine(self) -> None:
        """A text that breaks the engine is no reason to restart: others still get their speech."""
        studio = self._service.studio_or_none
        assert studio is not None  # noqa: S101
        try:
            async with asyncio.timeout(self._limit):
                await studio.warm_up()
        except Exception:
            log.exception("the engine cannot speak its first words any more")
            await self._end("the engine fails")
        studio.failures, self._last_words = 0, None
        log.warning("syntheses failed in a row, but the engine still speaks")

    async def _end(self, reason: str) -> None:
        self._report(reason)
        service = self._service
        service.stuck = True
        if studio := service.studio_or_none:
            message = "The engine is stuck; the service restarts."
            await studio.abandon(ApiError(503, "engine_stuck", message, headers={"Retry-After": "5"}))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while service.in_flight:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            os._exit(EXIT_CODE)

    def _report(self, reason: str) -> None:
        log.critical("stuck", extra={"fields": {"reason": reason, "exit_code": EXIT_CODE}})
        faulthandler.dump_traceback()
