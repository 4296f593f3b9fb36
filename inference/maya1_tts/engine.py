"""What the service asks of a speech engine."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from maya1_tts.audio import FloatArray


@dataclass(frozen=True)
class Voice:
    """A voice that can be asked for. `revision` changes whenever the same text would sound different."""

    id: str
    name: str
    language: str
    sample_rate: int
    revision: str


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is spoken in one breath, and the silence behind it in seconds."""

    text: str
    pause: float


class Engine(Protocol):
    """Speaks text. Equal arguments give equal samples, else caching would be wrong."""

    name: str
    voices: Mapping[str, Voice]

    def segments(self, text: str, voice: str, speed: float) -> list[Segment]:
        """Normalise the text and cut it into segments that suit this speed. Runs in a worker thread.

        Raises ApiError when nothing in the text can be spoken.
        """
        ...

    def stream(self, segment: Segment, voice: str, speed: float) -> AsyncIterator[FloatArray]:
        """Speak one segment, its pause included, as mono blocks within [-1, 1] at the voice's sample rate.

        The first block begins and the last block ends in silence, so segments join without a click.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...
