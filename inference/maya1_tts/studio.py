"""Requests become audio here: cache, single flight, admission, synthesis, encoding."""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from maya1_tts import tracing
from maya1_tts.admission import Admission, Claim, Priority, Ticket
from maya1_tts.audio import ENCODER_REVISION, Format, IntArray, encoder, file_rate, to_int16
from maya1_tts.cache import Cache, Entry
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Engine, Segment, Timing, Voice
from maya1_tts.errors import ApiError
from maya1_tts.flight import Flights, Lead
from maya1_tts.metrics import Metrics

CHARS_PER_SECOND = 15.0  # of English speech, for an estimate before the text has been looked at
LAYOUT = 2  # of cache entries; a new number makes old ones invisible
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What to speak and how. Equal orders sound equal."""

    text: str
    voice: Voice
    format: Format
    delivery: Delivery
    sample_rate: int | None = None  # of the file, in Hz; None: as the voice and the format have it

    @property
    def seconds(self) -> float:
        """About how much audio it becomes, guessed before the text has been looked at."""
        return len(self.text) / CHARS_PER_SECOND / self.delivery.speed

    @property
    def file_rate(self) -> int:
        return self.sample_rate or file_rate(self.format, self.voice.sample_rate)


class Speech:
    """One order being carried out, for every request that asked for the same thing at the same time.

    `pieces` grows while audio is made: encoded audio, and behind that of each segment its timing. `complete`
    is, in the end, the whole file with lengths in its header.
    """

    def __init__(self, key: str, order: Order, claim: Claim) -> None:
        self.key = key
        self.order = order
        self.claim = claim
        self.ticket: Ticket | None = None  # while it is being synthesised
        self.cache = ""  # what the cache did for it; known with the first piece
        self.pieces: list[bytes | Timing] = []
        self.complete: bytes | None = None
        self.place = 0  # of the next byte that is added
        self._timing = 0  # and of the next timing
        self._known, self._known_timings = b"", tuple[Timing, ...]()  # what `rewind` found
        self.samples = 0
        self.busy_seconds = 0.0
        self.error: ApiError | None = None
        self.listeners = 0
        self.task: asyncio.Task[None] | None = None
        self.flight: Lead | None = None  # the one that it leads
        self._changed = asyncio.Condition()

    @property
    def seconds(self) -> float:
        return self.samples / self.order.voice.sample_rate

    @property
    def over(self) -> bool:
        return self.complete is not None or self.error is not None

    @property
    def timings(self) -> tuple[Timing, ...]:
        """Those of the segments that are finished."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Timing))

    def join(self, claim: Claim) -> None:
        """Somebody else wants the same: the more urgent one decides."""
        self.claim = self.claim.joined_by(claim)
        if self.ticket:
            self.ticket.claim = self.claim

    async def stream(self) -> AsyncIterator[bytes]:
        """The audio, from its beginning, as it comes. Raises ApiError when the synthesis fails."""
        async with contextlib.aclosing(self.follow()) as pieces:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    yield piece

    async def follow(self) -> AsyncGenerator[bytes | Timing]:
        """The pieces, from the first, as they come. Raises ApiError when the synthesis fails."""
        pieces, sent = self.pieces, 0
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: len(self.pieces) > sent or self.over or self.pieces is not pieces  # noqa: B023
                )
            if self.pieces is not pieces:
                if sent:
                    raise ApiError(
                        500, "synthesis_failed", "The synthesis had to start again and came out differently."
                    )
                pieces = self.pieces
            for piece in pieces[sent:]:
                yield piece
                sent += 1
            if self.over and sent == len(pieces) and pieces is self.pieces:
                if self.error:
                    raise self.error
                return

    async def begun(self) -> None:
        """Until the first piece is there. Raises ApiError when the synthesis fails before."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.pieces or self.over)
        if self.error and not self.pieces:
            raise self.error

    async def whole(self) -> bytes:
        """The complete file. Raises ApiError when the synthesis fails."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.over)
        if self.error:
            raise self.error
        assert self.complete is not None  # noqa: S101
        return self.complete

    @property
    def audio(self) -> bytes:
        """What `pieces` hold, without the timings."""
        return b"".join(piece for piece in self.pieces if isinstance(piece, bytes))

    def rewind(self) -> None:
        """What is added next is from the beginning again. What is there already is not added twice."""
        self._known, self._known_timings = self.audio, self.timings
        self.place = self.samples = self._timing = 0

    async def add(self, piece: bytes | Timing, samples: int = 0) -> None:
        self.samples += samples
        if not piece:
            return
        if self.flight:
            self.flight.send(piece)
        new = self._new_timing(piece) if isinstance(piece, Timing) else self._new_audio(piece)
        if new:
            self.pieces.append(new)
            await self._notify()

    def _new_audio(self, piece: bytes) -> bytes:
        """The piece without what is there already."""
        known = self._known[self.place : self.place + len(piece)]
        if not piece.startswith(known):
            self._forget()
            known = b""
        self.place += len(piece)
        return piece[len(known) :]

    def _new_timing(self, timing: Timing) -> Timing | None:
        known = self._known_timings[self._timing : self._timing + 1]
        if known and known != (timing,):
            self._forget()
            known = ()
        self._timing += 1
        return None if known else timing

    def _forget(self) -> None:
        """This time it comes out differently. A new list tells those who were sent the other audio."""
        kept = self._known[: self.place]
        self.pieces = [*([kept] if kept else []), *self._known_timings[: self._timing]]
        self._known, self._known_timings = b"", ()

    async def finish(self, complete: bytes) -> None:
        if self.place < len(self._known) or self._timing < len(self._known_timings):
            self._forget()
        self.complete = complete
        await self._notify()

    def recall(self, entry: Entry) -> None:
        """A speech that is over before anybody waits for it."""
        self.pieces = [entry.body, *entry.timings]
        self.samples, self.complete = entry.samples, entry.body

    async def play(self, entry: Entry) -> None:
        """All at once, from the cache."""
        await self.add(entry.body, entry.samples)
        for timing in entry.timings:
            await self.add(timing)
        await self.finish(entry.body)

    async def fail(self, error: ApiError) -> None:
        self.error = error
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Ahead(Generic[T]):
    """What an asynchronous generator yields, made by a task of its own whether or not it is asked for yet."""

    def __init__(self, items: AsyncGenerator[T]) -> None:
        self._made: asyncio.Queue[T | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._make(items))

    async def __aiter__(self) -> AsyncIterator[T]:
        while (item := await self._made.get()) is not None:
            yield item
        await self._task  # raises what ended it

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _make(self, items: AsyncGenerator[T]) -> None:
        try:
            async with contextlib.aclosing(items):
                async for item in items:
                    self._made.put_nowait(item)
        finally:
            self._made.put_nowait(None)


def _let_go(error: BaseException) -> None:
    """Free audio and encoder at once, which the error's stack would keep until a garbage collection."""
    traceback.clear_frames(error.__traceback__)


@dataclass(frozen=True, eq=False)
class Listener:
    """One request's share in a speech."""

    speech: Speech
    joined: bool  # another request had started it

    @property
    def cache(self) -> str:
        """What X-Cache says: `hit`, `miss`, `bypass` or `joined`. Known with the first piece."""
        return "joined" if self.joined else self.speech.cache


class Studio:
    """Where speeches are made: looked up, or synthesised segment by segment as the admission allows."""

    def __init__(self, settings: Settings, engine: Engine, cache: Cache, metrics: Metrics) -> None:
        self._engine, self._cache, self._metrics = engine, cache, metrics
        self._default_voice = settings.default_voice
        self._admission = Admission(engine.lanes, settings.queue_limit, settings.queue_seconds, metrics)
        self._speeches: dict[str, Speech] = {}
        self._flights = Flights(cache.redis, cache.seal)
        self._namespace = f"maya1-tts:{LAYOUT}:{engine.name}:{settings.bundle or '-'}"
        self._per_tenant = settings.cache_per_tenant
        self.blocks = 0  # of audio that the engine has given
        self.failures = 0  # syntheses that failed since the last that did not

    @property
    def busy(self) -> bool:
        """Whether the engine is at work."""
        return self._admission.active > 0

    @property
    def crowded(self) -> bool:
        """Whether more is asked for than the engine can speak, and not for a moment only."""
        return self._admission.crowded

    async def warm_up(self) -> None:
        """Speak to nobody: the first synthesis is slower than others, and tells how fast the engine is."""
        delivery = Delivery(self._default_voice)
        rate = self._engine.voices[self._default_voice].sample_rate
        ticket = self._admission.admit(Claim(), 1.0)
        try:
            for segment in await asyncio.to_thread(self._engine.segments, "Ready to speak.", delivery):
                async with self._admission.lane(ticket, segment.seconds) as turn:
                    async for block in self._engine.stream(segment, delivery):
                        self.blocks += 1
                        turn.spoke(len(block) / rate)
        finally:
            self._admission.leave(ticket)

    def listen(self, order: Order, claim: Claim) -> Listener:
        """Start the order, or join it where it is being carried out already. Pair with `leave`."""
        key = self.key(order, claim)
        speech = self._speeches.get(key)
        joined = speech is not None and not speech.over
        if speech is None or speech.over:
            speech = Speech(key, order, claim)
            if entry := self._cache.remembered(key):  # the short way, without a task
                self._label(speech, "hit")
                speech.recall(entry)
            else:
                self._speeches[key] = speech
                speech.task = asyncio.create_task(self._carry_out(speech))
        else:
            self._metrics.cache_requests.labels("joined").inc()
            speech.join(claim)
        speech.listeners += 1
        return Listener(speech, joined)

    def leave(self, listener: Listener) -> None:
        """The last one to leave an unfinished speech stops it, unless another process follows."""
        speech = listener.speech
        speech.listeners -= 1
        if speech.listeners == 0 and speech.flight:
            speech.flight.left_alone()
        else:
            self._stop_unless_heard(speech)

    def _stop_unless_heard(self, speech: Speech) -> None:
        if speech.listeners == 0 and not speech.over and speech.task:
            self._drop(speech)
            speech.task.cancel()

    def _heed(self, speech: Speech, priority: Priority | None) -> None:
        """Other processes want it this urgently, or not at all."""
        if priority:
            speech.join(replace(speech.claim, priority=priority))
        else:
            self._stop_unless_heard(speech)

    async def abandon(self, error: ApiError) -> None:
        """End every unfinished speech with this error."""
        for speech in list(self._speeches.values()):
            await speech.fail(error)

    def _drop(self, speech: Speech) -> None:
        if self._speeches.get(speech.key) is speech:
            del self._speeches[speech.key]

    def key(self, order: Order, claim: Claim) -> str:
        """Over all that changes a byte of the result, and over whose it is where it is not for everybody."""
        parts = (
            ENCODER_REVISION, order.voice.id, order.voice.revision, str(order.voice.sample_rate),
            str(order.file_rate), order.format, repr(order.delivery), order.text,
            claim.tenant if self._per_tenant else "",
        )  # fmt: skip
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode()
            digest.update(len(data).to_bytes(8) + data)
        return f"{self._namespace}:{digest.hexdigest()}"

    async def _carry_out(self, speech: Speech) -> None:
        try:
            await self._find_or_make(speech)
        except asyncio.CancelledError as error:
            _let_go(error)
            raise
        except ApiError as error:
            _let_go(error)
            await speech.fail(error)
        except Exception:
            log.exception("synthesis failed")
            await speech.fail(
                ApiError(500, "synthesis_failed", "The synthesis failed; the service has logged why.")
            )
        finally:
            self._drop(speech)

    async def _find_or_make(self, speech: Speech) -> None:
        with tracing.span("cache"):
            entry = await self._cache.get(speech.key)
        if entry:
            self._label(speech, "hit")
            await speech.play(entry)
            return
        flight = await self._flights.board(speech.key)
        while flight is not None and not isinstance(flight, Lead):
            self._label(speech, "joined")
            if await flight.follow(speech):
                return
            speech.rewind()
            flight = await self._flights.board(speech.key, after=flight)
        async with flight or contextlib.nullcontext():
            await self._make(speech, flight)

    async def _make(self, speech: Speech, flight: Lead | None) -> None:
        # Another leader may have finished between the look-up and the lease.
        entry = await self._cache.get(speech.key) if flight else None
        entry = entry or await self._cache.fetch(speech.key, speech.order.format)
        if entry:
            self._label(speech, "hit")
            await speech.play(entry)
            return
        self._label(speech, "miss" if self._cache.up else "bypass")
        if flight:
            speech.flight = flight
            flight.on_wanted = lambda priority: self._heed(speech, priority)
        complete = await self._synthesise_counted(speech)
        if flight:
            await flight.end(speech, complete)
        entry = Entry(speech.samples, complete, speech.timings)
        await self._cache.set(speech.key, entry, speech.order.format)
        await speech.finish(complete)

    def _label(self, speech: Speech, result: str) -> None:
        """Say what the cache did for this speech. What it did first counts."""
        if not speech.cache:
            speech.cache = result
            self._metrics.cache_requests.labels(result).inc()

    async def _synthesise_counted(self, speech: Speech) -> bytes:
        outcome = "failed"
        try:
            complete = await self._synthesise(speech)
            outcome = "done"
            self.failures = 0
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ApiError as error:
            outcome = "refused" if error.status != 500 else outcome
            raise
        except Exception:
            self.failures += 1
            raise
        finally:
            self._metrics.syntheses.labels(outcome).inc()
        self._metrics.audio_seconds.inc(speech.seconds)
        self._metrics.rtf.observe(speech.busy_seconds / speech.seconds)
        return complete

    async def _synthesise(self, speech: Speech) -> bytes:
        order, admission = speech.order, self._admission
        ticket = speech.ticket = admission.admit(speech.claim, order.seconds)
        takes: deque[tuple[int, Segment, Ahead[IntArray]]] = deque()
        try:
            segments = await asyncio.to_thread(self._engine.segments, order.text, order.delivery)
            ticket.estimate = sum(segment.seconds for segment in segments)
            file = encoder(order.format, order.voice.sample_rate, order.file_rate)
            # Whoever waits for the whole has segments spoken beside each other, as lanes are free.
            beside = 1 if speech.claim.listening else admission.lanes
            coming = enumerate(segments)
            while True:
                for number, segment in itertools.islice(coming, beside - len(takes)):
                    takes.append((number, segment, Ahead(self._speak(speech, ticket, number, segment))))
                if not takes:
                    break
                ticket.current, segment, take = takes[0]
                start = speech.samples
                async for samples in take:
                    await speech.add(await asyncio.to_thread(file.write, samples), len(samples))
                takes.popleft()
                await speech.add(Timing(segment.text, start, speech.samples))
            with tracing.span("encode", format=order.format):
                await speech.add(await asyncio.to_thread(file.finish))
            return file.complete
        finally:
            await asyncio.gather(*(take.close() for _, _, take in takes))
            admission.leave(ticket)

    async def _speak(
        self, speech: Speech, ticket: Ticket, number: int, segment: Segment
    ) -> AsyncGenerator[IntArray]:
        async with (
            self._admission.lane(ticket, segment.seconds, number) as turn,
            contextlib.aclosing(self._engine.stream(segment, speech.order.delivery)) as blocks,
        ):
            begin = time.perf_counter()
            with tracing.span("segment", chars=len(segment.text)):
                async for block in blocks:
                    self.blocks += 1
                    turn.spoke(len(block) / speech.order.voice.sample_rate)
                    yield to_int16(block)
            speech.busy_seconds += time.perf_counter() - begin
