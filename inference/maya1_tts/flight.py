"""Single flight over all processes that share a Redis: equal orders at the same time are synthesised once.

Whoever misses a key in the cache asks for its lease (SET NX PX). The one who gets it leads: it synthesises,
and writes every piece of audio to a stream of its own as soon as it is made. Everybody else reads that stream
from its beginning (XREAD), so whoever joins late has at once what has been made so far. In Redis:

    KEY:lease        the id of the flight under way; expires unless its leader renews it
    KEY:flight:ID    its stream: `audio` and `timing`, then `end`, `error` or `left`; expires
    KEY:wanted:ID    there while anybody follows, how urgently; expires unless they renew it

The order of the end is: `end` into the stream, the entry into the cache, the lease away. Who comes before
finds the lease, who comes after finds the entry. A stream that nobody follows goes with the lease.

A leader that is cancelled, refused for want of room, or fails for a reason of its own writes `left` and drops
the lease; one that is killed stops renewing it. Its followers then ask for the lease again, and the one who
gets it starts a new flight from the first byte. Equal orders give equal bytes, so everybody passes over what
they have. Bytes that differ nevertheless (an Ogg stream has a random serial number) are found by comparison,
and a listener who was sent some of the others gets a broken connection, never a mixture. A request that is
wrong in itself is an `error` for all. A leader without listeners goes on while its flight is wanted.

Two leaders at once (one paused for longer than its lease) cost time and nothing else. Without Redis, or when
a stream was evicted half-way, each process speaks for itself.
"""

import asyncio
import contextlib
import json
import secrets
import struct
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maya1_tts.admission import Priority
from maya1_tts.cache import Seal
from maya1_tts.engine import Timing
from maya1_tts.errors import ApiError
from maya1_tts.tiers import BLOCK_SECONDS, RedisTier

if TYPE_CHECKING:
    from maya1_tts.studio import Speech

LEASE_MS = 3000  # how long followers of a killed leader wait
BEAT_SECONDS = 0.75
STREAM_MS = 10_000  # after the last piece; followers read at the speed of Redis, not of their clients

_BOARD = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return ARGV[1] end
return redis.call('GET', KEYS[1])
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('GET', KEYS[3])
"""
_RELEASE = """
if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('DEL', KEYS[2]) end
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

Kind = Literal["audio", "timing", "end", "error", "left"]


class Flights:
    def __init__(self, redis: RedisTier | None, seal: Seal) -> None:
        self._redis, self._seal = redis, seal

    async def board(self, key: str, after: "Flight | None" = None) -> "Flight | None":
        """The flight of this key: a new `Lead` if nobody leads one.

        None when Redis is away, or when it is still `after`, which could not be followed.
        """
        if not self._redis or not self._redis.up:
            return None
        mine = secrets.token_hex(16)
        holder = ""
        with self._redis.guard("flight"):
            answer: Any = await self._redis.client.register_script(_BOARD)([f"{key}:lease"], [mine, LEASE_MS])
            holder = answer.decode()
        if not holder or (after and after.id == holder):
            return None
        kind = Lead if holder == mine else Flight
        return kind(self._redis, self._seal, key, holder)


class Flight:
    """One synthesis, which one process leads and others follow."""

    def __init__(self, redis: RedisTier, seal: Seal, key: str, id: str) -> None:
        self.id = id
        self._redis, self._seal = redis, seal
        self._lease, self._stream, self._wanted = f"{key}:lease", f"{key}:flight:{id}", f"{key}:wanted:{id}"

    async def follow(self, speech: "Speech") -> bool:
        """Add to the speech what the leader makes. False when that ends before the speech is whole.

        Raises ApiError when the request is wrong in itself.
        """
        last, gone = b"0", False
        while self._redis.up:
            found: Any = None
            with self._redis.guard("flight"):
                await self._want(speech.claim.priority)
                block = None if gone else int(BLOCK_SECONDS * 1000)
                found = await self._redis.waiting.xread({self._stream: last}, block=block)
                if not found and not gone:
                    gone = await self._redis.client.get(self._lease) != self.id.encode()
                    continue  # if it is gone, once more, for what was written between the two
            if not found:
                return False
            for record, fields in found[0][1]:
                last = record
                ((kind, sealed),) = fields.items()
                data = self._seal.open(self._name(kind.decode(), speech.place), sealed)
                if data is None or kind == b"left":
                    return False
                if kind == b"error":
                    raise ApiError(**json.loads(bytes(data)))
                if kind == b"end":
                    await _finish(speech, data)
                    return True
                await speech.add(Timing(**json.loads(bytes(data))) if kind == b"timing" else bytes(data))
        return False

    async def _want(self, priority: Priority) -> None:
        """Let the leader know that somebody follows. Who is not in a hurry leaves it to those who are."""
        pipeline = self._redis.client.pipeline(transaction=False)
        pipeline.set(self._wanted, priority, px=LEASE_MS, nx=priority == "batch")
        pipeline.pexpire(self._wanted, LEASE_MS)
        await pipeline.execute()

    def _name(self, kind: str, place: int) -> str:
        """What a record is sealed under: one that is missing makes the next one wrong."""
        return f"{self._stream}:{kind}:{place}"


class Lead(Flight):
    """A flight that this process leads.

    As a context it keeps the lease, and ends in a way that followers understand.
    """

    def __init__(self, redis: RedisTier, seal: Seal, key: str, id: str) -> None:
        super().__init__(redis, seal, key, id)
        # Told again and again how urgently others want it; None: not at all.
        self.on_wanted: Callable[[Priority | None], None] = lambda wanted: None
        self._keys = [self._lease, self._stream, self._wanted]
        self._outbox: asyncio.Queue[tuple[Kind, bytes]] = asyncio.Queue()
        self._alone = asyncio.Event()
        self._sender = asyncio.create_task(self._send())
        self._keeper = asyncio.create_task(self._keep())

    async def __aenter__(self) -> "Lead":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ApiError) and error.status < 500:
            told = {name: getattr(error, name) for name in ("status", "code", "message", "param")}
            self._outbox.put_nowait(("error", json.dumps(told).encode()))
        else:
            self._outbox.put_nowait(("left", b""))  # not read by anybody after `end`
        await self._sender
        self._keeper.cancel()
        with self._redis.guard("flight"):
            await self._redis.client.register_script(_RELEASE)(self._keys, [self.id])

    def send(self, piece: bytes | Timing) -> None:
        """Let followers have the next piece."""
        if isinstance(piece, Timing):
            self._outbox.put_nowait(("timing", json.dumps(asdict(piece)).encode()))
        else:
            self._outbox.put_nowait(("audio", piece))

    async def end(self, speech: "Speech", complete: bytes) -> None:
        """Let followers know that all pieces have been sent, and what the complete file is.

        It is what they have except for the start, in which a stream cannot know the length.
        """
        told = {"samples": speech.samples, "busy_seconds": speech.busy_seconds, "bytes": len(complete)}
        header = json.dumps(told).encode()
        start = _start(speech.audio[: speech.place], complete)
        self._outbox.put_nowait(("end", struct.pack("<I", len(header)) + header + start))
        await self._sender

    def left_alone(self) -> None:
        """The last listener in this process has gone: unless somebody follows, `on_wanted` says so."""
        self._alone.set()

    async def _send(self) -> None:
        place, kind = 0, "audio"
        while kind in ("audio", "timing") and self._redis.up:
            kind, data = await self._outbox.get()
            with self._redis.guard("flight"):
                pipeline = self._redis.client.pipeline(transaction=False)
                pipeline.xadd(self._stream, {kind: self._seal.close(self._name(kind, place), data)})
                pipeline.pexpire(self._stream, STREAM_MS)
                await pipeline.execute()
            place += len(data) if kind == "audio" else 0

    async def _keep(self) -> None:
        """Renew the lease. A lost one is no harm, since another leader makes the same."""
        renew = self._redis.client.register_script(_RENEW)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._alone.wait()
            self._alone.clear()
            wanted: Any = None
            if not self._sender.done():  # else followers must not wait for more
                with self._redis.guard("flight"):
                    wanted = await renew(self._keys, [self.id, LEASE_MS, STREAM_MS])
            self.on_wanted(wanted.decode() if wanted else None)


def _start(streamed: bytes, complete: bytes) -> bytes:
    """The beginning of `complete`, up to the last byte in which it differs from what was streamed."""
    if len(streamed) != len(complete):
        return complete
    differing = np.flatnonzero(np.frombuffer(streamed, np.uint8) != np.frombuffer(complete, np.uint8))
    return complete[: int(differing[-1]) + 1] if len(differing) else b""


async def _finish(speech: "Speech", data: memoryview) -> None:
    (length,) = struct.unpack_from("<I", data)
    told = json.loads(bytes(data[4 : 4 + length]))
    start = bytes(data[4 + length :])
    streamed = speech.audio[: speech.place]
    speech.samples, speech.busy_seconds = told["samples"], told["busy_seconds"]
    await speech.finish((start + streamed[len(start) :])[: told["bytes"]])
