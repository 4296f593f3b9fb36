"""How a stream sounds to a listener whose player starts with the first sound."""

import time
from collections.abc import AsyncIterator
from typing import TypeVar

from maya1_tts.engine import Timing
from maya1_tts.metrics import Metrics
from maya1_tts.studio import Speech

Piece = TypeVar("Piece", bytes, bytes | Timing)


async def measured(pieces: AsyncIterator[Piece], speech: Speech, metrics: Metrics) -> AsyncIterator[Piece]:
    """The pieces of a stream, while its gaps and underruns are counted.

    A gap is how long a client that has taken a piece waits for the next. An underrun is a gap that lasts
    longer than the audio that the client has left: its player falls silent until the piece comes. A client
    that is slow to take pieces brings its silence upon itself, which is not counted; nor are the underruns
    of a stream that another process makes, since how long its pieces last is not known midway.
    """
    heard = 0.0  # seconds of audio that have been sent
    taken: float | None = None  # when the client took the last piece
    silent_from = 0.0  # when the player has played all that it has
    underruns = 0
    try:
        async for piece in pieces:
            now = time.perf_counter()
            if isinstance(piece, bytes):
                if taken is not None:
                    metrics.chunk_gap.observe(now - taken)
                    underruns += now > silent_from and speech.seconds > heard
                silent_from = max(silent_from, now) + speech.seconds - heard
                heard = speech.seconds
            yield piece
            taken = time.perf_counter()
            silent_from = max(silent_from, taken)
    finally:
        metrics.underruns.inc(underruns)
        metrics.streams.labels("yes" if underruns else "no").inc()
