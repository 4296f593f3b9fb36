"""Requests become audio here: cache, single flight, admission, synthesis, encoding."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from maya1_tts.admission import Admission, Claim, Ticket
from maya1_tts.audio import ENCODER_REVISION, Format, encoder, file_rate, to_int16
from maya1_tts.cache import Cache, Entry
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Engine, Timing, Voice
from maya1_tts.errors import ApiError
from maya1_tts.metrics import Metrics

CHARS_PER_SECOND = 15.0  # of English speech, for an estimate before the text has been looked at
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What to speak and how. Equal orders sound equal."""

    text: str
    voice: Voice
    format: Format
    delivery: Delivery
    sample_rate: int | None = None  # of the file, in Hz; None: as the voice and the format have it

    @property
    def file_rate(self) -> int:
        return self.sample_rate or file_rate(self.format, self.voice.sample_rate)


class Speech:
    """One order being carried out, for every request that asked for the same thing at the same time.

    `pieces` grows while audio is made: encoded audio, and behind that of each segment its timing. `complete`
    is, in the end, the whole file with lengths in its header.
    """

    def __init__(self, order: Order, claim: Claim) -> None:
        self.order = order
        self.claim = claim
        self.ticket: Ticket | None = None  # while it is being synthesised
        self.cache = "bypass"
        self.pieces: list[bytes | Timing] = []
        self.complete: bytes | None = None
        self.samples = 0
        self.busy_seconds = 0.0
        self.error: ApiError | None = None
        self.listeners = 0
        self.task: asyncio.Task[None] | None = None
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
        sent = 0
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self.pieces) > sent or self.over)  # noqa: B023
            for piece in self.pieces[sent:]:
                yield piece
                sent += 1
            if self.over and sent == len(self.pieces):
                if self.error:
                    raise self.error
                return

    async def whole(self) -> bytes:
        """The complete file. Raises ApiError when the synthesis fails."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.over)
        if self.error:
            raise self.error
        assert self.complete is not None  # noqa: S101
        return self.complete

    async def add(self, piece: bytes | Timing, samples: int = 0) -> None:
        self.samples += samples
        if piece:
            self.pieces.append(piece)
            await self._notify()

    async def finish(self, complete: bytes) -> None:
        self.complete = complete
        await self._notify()

    async def fail(self, error: ApiError) -> None:
        self.error = error
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Studio:
    """Where speeches are made: looked up, or synthesised segment by segment as the admission allows."""

    def __init__(self, settings: Settings, engine: Engine, cache: Cache, metrics: Metrics) -> None:
        self._engine, self._cache, self._metrics = engine, cache, metrics
        self._default_voice = settings.default_voice
        self._admission = Admission(engine.lanes, settings.queue_limit, settings.queue_seconds, metrics)
        self._speeches: dict[str, Speech] = {}
        self.blocks = 0  # of audio that the engine has given
        self.failures = 0  # syntheses that failed since the last that did not

    @property
    def busy(self) -> bool:
        """Whether the engine is at work."""
        return self._admission.active > 0

    async def warm_up(self) -> None:
        """Speak to nobody: the first synthesis is slower than others, and tells how fast the engine is."""
        delivery = Delivery(self._default_voice)
        rate = self._engine.voices[self._default_voice].sample_rate
        ticket = self._admission.admit(Claim(), 1.0)
        try:
            for segment in await asyncio.to_thread(self._engine.segments, "Ready to speak.", delivery):
                async with self._admission.lane(ticket, segment.seconds):
                    async for block in self._engine.stream(segment, delivery):
                        self.blocks += 1
                        ticket.spoke(len(block) / rate)
        finally:
            self._admission.leave(ticket)

    def listen(self, order: Order, claim: Claim) -> Speech:
        """Start the order, or join it where it is being carried out already. Pair with `leave`."""
        key = self._key(order)
        speech = self._speeches.get(key)
        if speech is None:
            speech = self._speeches[key] = Speech(order, claim)
            speech.task = asyncio.create_task(self._carry_out(key, speech))
        else:
            self._metrics.cache_requests.labels("joined").inc()
            speech.join(claim)
        speech.listeners += 1
        return speech

    def leave(self, speech: Speech) -> None:
        """The last one to leave an unfinished speech stops it."""
        speech.listeners -= 1
        if speech.listeners == 0 and not speech.over and speech.task:
            key = self._key(speech.order)
            if self._speeches.get(key) is speech:
                del self._speeches[key]
            speech.task.cancel()

    async def abandon(self, error: ApiError) -> None:
        """End every unfinished speech with this error."""
        for speech in list(self._speeches.values()):
            await speech.fail(error)

    def _key(self, order: Order) -> str:
        """Over everything that changes a byte of the result."""
        parts = (
            self._engine.name, ENCODER_REVISION, order.voice.id, order.voice.revision,
            str(order.voice.sample_rate), str(order.file_rate), order.format, repr(order.delivery),
            order.text,
        )  # fmt: skip
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode()
            digest.update(len(data).to_bytes(8) + data)
        return f"maya1-tts:{digest.hexdigest()}"

    async def _carry_out(self, key: str, speech: Speech) -> None:
        outcome = "failed"
        try:
            entry = await self._cache.get(key)
            speech.cache = "hit" if entry else "miss" if self._cache.up else "bypass"
            self._metrics.cache_requests.labels(speech.cache).inc()
            if entry:
                await speech.add(entry.body, entry.samples)
                for timing in entry.timings:
                    await speech.add(timing)
                await speech.finish(entry.body)
                return
            complete = await self._synthesise(speech)
            await self._cache.set(key, Entry(speech.samples, complete, speech.timings))
            self._metrics.audio_seconds.inc(speech.seconds)
            self._metrics.rtf.observe(speech.busy_seconds / speech.seconds)
            self._metrics.syntheses.labels("done").inc()
            self.failures = 0
            await speech.finish(complete)
        except asyncio.CancelledError:
            self._metrics.syntheses.labels("cancelled").inc()
            raise
        except ApiError as error:
            outcome = "refused" if error.status != 500 else outcome
            self._metrics.syntheses.labels(outcome).inc()
            await speech.fail(error)
        except Exception:
            log.exception("synthesis failed")
            self.failures += 1
            self._metrics.syntheses.labels(outcome).inc()
            await speech.fail(
                ApiError(500, "synthesis_failed", "The synthesis failed; the service has logged why.")
            )
        finally:
            if self._speeches.get(key) is speech:
                del self._speeches[key]

    async def _synthesise(self, speech: Speech) -> bytes:
        order, admission = speech.order, self._admission
        delivery = order.delivery
        estimate = len(order.text) / CHARS_PER_SECOND / delivery.speed
        ticket = speech.ticket = admission.admit(speech.claim, estimate)
        try:
            segments = await asyncio.to_thread(self._engine.segments, order.text, delivery)
            ticket.estimate = sum(segment.seconds for segment in segments)
            file = encoder(order.format, order.voice.sample_rate, order.file_rate)
            for segment in segments:
                start = speech.samples
                async with admission.lane(ticket, segment.seconds):
                    begin = time.perf_counter()
                    async for block in self._engine.stream(segment, delivery):
                        self.blocks += 1
                        samples = to_int16(block)
                        await speech.add(await asyncio.to_thread(file.write, samples), len(samples))
                        ticket.spoke(len(samples) / order.voice.sample_rate)
                    speech.busy_seconds += time.perf_counter() - begin
                await speech.add(Timing(segment.text, start, speech.samples))
            await speech.add(await asyncio.to_thread(file.finish))
            return file.complete
        finally:
            admission.leave(ticket)
