"""Finished audio in Redis. The service never depends on it: when Redis is away, requests are just slower."""

import asyncio
import contextlib
import hashlib
import json
import logging
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from maya1_tts.config import Settings
from maya1_tts.engine import Timing
from maya1_tts.metrics import Metrics
from maya1_tts.redis_client import connect

TIMEOUT_SECONDS = 0.25  # what one request loses at most when Redis hangs; after that the cache counts as down
PROBE_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A complete audio file, its length in samples, and where its segments lie."""

    samples: int
    body: bytes
    timings: tuple[Timing, ...] = ()

    def pack(self) -> bytes:
        timings = json.dumps([(timing.text, timing.start, timing.end) for timing in self.timings]).encode()
        payload = struct.pack("<QI", self.samples, len(timings)) + timings + self.body
        return hashlib.sha256(payload).digest() + payload

    @classmethod
    def unpack(cls, value: bytes) -> "Entry | None":
        """None when the value was cut short or altered."""
        checksum, payload = value[:32], value[32:]
        if len(payload) <= 12 or hashlib.sha256(payload).digest() != checksum:
            return None
        samples, size = struct.unpack("<QI", payload[:12])
        timings = tuple(Timing(*timing) for timing in json.loads(payload[12 : 12 + size]))
        return cls(samples, payload[12 + size :], timings)


class Cache:
    """`up` is the circuit breaker: any failure clears it, and only the background probe sets it again."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.up = False
        self._metrics = metrics
        self._ttl = settings.cache_ttl_seconds
        self._max_bytes = settings.cache_max_entry_bytes
        self._redis = connect(settings, TIMEOUT_SECONDS)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe Redis in the background for as long as the context is open."""
        if self._redis is None:
            yield
            return
        await self._probe()
        probe = asyncio.create_task(self._probe_forever())
        try:
            yield
        finally:
            probe.cancel()
            await self._redis.aclose()

    async def get(self, key: str) -> Entry | None:
        if not self.up or self._redis is None:
            return None
        try:
            value: Any = await self._redis.get(key)
            entry = Entry.unpack(value) if value is not None else None
            if value is not None and entry is None:
                log.warning("dropped a damaged cache entry")
                self._metrics.cache_errors.inc()
                await self._redis.delete(key)
            return entry
        except (RedisError, OSError) as error:
            self._down(error)
            return None

    async def set(self, key: str, entry: Entry) -> None:
        if not self.up or self._redis is None or len(entry.body) > self._max_bytes:
            return
        try:
            await self._redis.set(key, entry.pack(), ex=self._ttl)
        except (RedisError, OSError) as error:
            self._down(error)

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        assert self._redis is not None  # noqa: S101
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            self._down(error)
            return
        if not self.up:
            log.info("cache is up")
        self.up = True
        self._metrics.cache_up.set(1)

    def _down(self, error: Exception) -> None:
        self._metrics.cache_errors.inc()
        self._metrics.cache_up.set(0)
        if self.up:
            log.warning("cache is down: %s", type(error).__name__)
        self.up = False
