"""Finished audio: in this process, in Redis, in an object store. The service never depends on any of them."""

import asyncio
import contextlib
import hmac
import io
import json
import logging
import struct
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from maya1_tts.audio import Format
from maya1_tts.config import Settings, read_secret
from maya1_tts.engine import Timing
from maya1_tts.metrics import Metrics
from maya1_tts.tiers import ObjectTier, RedisTier, Tier

PENDING_WRITES = 16  # behind answers, to slow tiers; more are dropped
INLINE_BYTES = 65_536  # what is larger is packed and unpacked in a thread
_MAC_BYTES = 32
_FLAC_RATE = 24000  # FLAC wants one; only the samples are used
log = logging.getLogger(__name__)


class Seal:
    """Tells whether a value is what the service has stored under a name.

    HMAC-SHA256 (RFC 2104) over the name and the value, so an entry that was cut, altered or moved to another
    key is found out. With a secret this also holds against whoever can write to the store; without one it is
    a checksum.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def close(self, name: str, value: bytes) -> bytes:
        return self._mac(name, value) + value

    def open(self, name: str, sealed: bytes) -> memoryview | None:
        view = memoryview(sealed)
        intact = hmac.compare_digest(view[:_MAC_BYTES], self._mac(name, view[_MAC_BYTES:]))
        return view[_MAC_BYTES:] if intact else None

    def _mac(self, name: str, value: bytes | memoryview) -> bytes:
        mac = hmac.new(self._secret, name.encode() + b"\0", "sha256")
        mac.update(value)
        return mac.digest()


@dataclass(frozen=True)
class Entry:
    """A complete audio file, its length in samples, and where its segments lie."""

    samples: int
    body: bytes
    timings: tuple[Timing, ...] = ()

    def pack(self, format: Format) -> bytes:
        """As few bytes as give exactly these back.

        pcm and wav are stored as FLAC: 0.42 to 0.44 of their size for speech, at 0.27 ms per second of audio
        both ways; zlib comes to 0.74 and is slower to write. The other formats are dense already.
        """
        start = {"pcm": 0, "wav": 44}.get(format)
        if start is None:
            return self._packed(0, self.body)
        flac = io.BytesIO()
        samples = np.frombuffer(self.body, "<i2", offset=start)
        soundfile.write(flac, samples, _FLAC_RATE, format="FLAC", subtype="PCM_16")
        return self._packed(len(samples), self.body[:start] + flac.getvalue(), start)

    def _packed(self, flac_samples: int, data: bytes, start: int = 0) -> bytes:
        timings = [(timing.text, timing.start, timing.end) for timing in self.timings]
        header = {"samples": self.samples, "timings": timings, "flac_samples": flac_samples, "start": start}
        encoded = json.dumps(header).encode()
        return struct.pack("<I", len(encoded)) + encoded + data

    @classmethod
    def unpack(cls, packed: memoryview) -> "Entry":
        (length,) = struct.unpack_from("<I", packed)
        header = json.loads(bytes(packed[4 : 4 + length]))
        data = packed[4 + length :]
        timings = tuple(Timing(*timing) for timing in header["timings"])
        if not header["flac_samples"]:
            return cls(header["samples"], bytes(data), timings)
        start = header["start"]
        samples, _ = soundfile.read(io.BytesIO(data[start:]), header["flac_samples"], dtype="int16")
        if len(samples) != header["flac_samples"]:
            raise ValueError("shorter than announced")
        body = bytes(data[:start]) + samples.astype("<i2", copy=False).tobytes()
        return cls(header["samples"], body, timings)


class Memory:
    """The entries of this process that were used last, ready to be sent: at most `limit` bytes of them."""

    def __init__(self, limit: int, ttl: float) -> None:
        self._limit, self._ttl = limit, ttl
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Entry | None:
        entry, end = self._entries.get(key, (None, 0.0))
        if entry is None:
            return None
        if time.monotonic() >= end:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def set(self, key: str, entry: Entry) -> None:
        if key in self._entries:
            self._remove(key)
        if len(entry.body) > self._limit // 8:  # one long text must not push out everything else
            return
        self._entries[key] = (entry, time.monotonic() + self._ttl)
        self._bytes += len(entry.body)
        while self._bytes > self._limit:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: str) -> None:
        entry, _ = self._entries.pop(key)
        self._bytes -= len(entry.body)


class Cache:
    """Three tiers, nearest first. What a far one has is copied to the near ones."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigError when a file with a secret cannot be used."""
        self._metrics = metrics
        self._max_bytes = settings.cache_max_entry_bytes
        self.seal = Seal(
            read_secret("CACHE_SECRET_FILE", settings.cache_secret_file)
            if settings.cache_secret_file
            else b""
        )
        self.redis = RedisTier(settings, metrics) if settings.redis_url else None
        self._objects = (
            ObjectTier(settings.object_store_url, settings, metrics) if settings.object_store_url else None
        )
        # Memory is the nearest tier of a cache, not a cache of its own.
        self._memory = Memory(settings.cache_memory_bytes if self._tiers else 0, settings.cache_ttl_seconds)
        self._writes: set[asyncio.Task[None]] = set()
        metrics.cache_pending_writes.set_function(lambda: len(self._writes))

    @property
    def up(self) -> bool:
        return any(tier.up for tier in self._tiers)

    @property
    def _tiers(self) -> list[Tier]:
        return [tier for tier in (self.redis, self._objects) if tier]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the tiers' state known while the context is open; at its end, finish pending writes."""
        async with contextlib.AsyncExitStack() as stack:
            for tier in self._tiers:
                await stack.enter_async_context(tier.running())
            yield
            if self._writes:
                await asyncio.wait(self._writes, timeout=5)

    def remembered(self, key: str) -> Entry | None:
        """What this process has ready."""
        return self._hit("memory", self._memory.get(key))

    async def get(self, key: str) -> Entry | None:
        """What Redis has, in one round trip."""
        entry = await self._get(self.redis, key)
        if entry:
            self._memory.set(key, entry)
        return entry

    async def fetch(self, key: str, format: Format) -> Entry | None:
        """What the object store has."""
        entry = await self._get(self._objects, key)
        if entry:
            self._memory.set(key, entry)
            await self._store(self.redis, key, await _pack(entry, format))
        return entry

    async def set(self, key: str, entry: Entry, format: Format) -> None:
        """Returns when other processes can have it from Redis; the object store is written to behind that."""
        if len(entry.body) > self._max_bytes:
            return
        self._memory.set(key, entry)
        if not self.up:
            return
        packed = await _pack(entry, format)
        if self._objects and self._objects.up:
            self._behind(self._store(self._objects, key, packed))
        await self._store(self.redis, key, packed)

    async def _get(self, tier: Tier | None, key: str) -> Entry | None:
        sealed = await tier.get(key) if tier else None
        if tier is None or sealed is None:
            return None
        inline = len(sealed) <= INLINE_BYTES
        entry = self._open(key, sealed) if inline else await asyncio.to_thread(self._open, key, sealed)
        if entry is None:
            log.warning("dropped a damaged cache entry from %s", tier.name)
            self._metrics.cache_damaged.labels(tier.name).inc()
            await tier.delete(key)
        return self._hit(tier.name, entry)

    def _open(self, key: str, sealed: bytes) -> Entry | None:
        packed = self.seal.open(key, sealed)
        try:
            return Entry.unpack(packed) if packed is not None else None
        except (ValueError, KeyError, TypeError, struct.error, soundfile.LibsndfileError):
            return None  # sealed without a secret, by somebody else

    async def _store(self, tier: Tier | None, key: str, packed: bytes) -> None:
        if tier:
            await tier.set(key, self.seal.close(key, packed))

    def _hit(self, tier: str, entry: Entry | None) -> Entry | None:
        if entry:
            self._metrics.cache_hits.labels(tier).inc()
        return entry

    def _behind(self, write: Coroutine[Any, Any, None]) -> None:
        if len(self._writes) >= PENDING_WRITES:
            write.close()
            self._metrics.cache_dropped_writes.inc()
            return
        task = asyncio.create_task(write)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


async def _pack(entry: Entry, format: Format) -> bytes:
    if len(entry.body) <= INLINE_BYTES:
        return entry.pack(format)
    return await asyncio.to_thread(entry.pack, format)
