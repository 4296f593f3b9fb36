"""What the service asks of a speech engine."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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
class Delivery:
    """How a text is to be spoken. What is None is left to the engine.

    speed: 2.0 is twice as fast, at the same pitch. description: the speaker in words. seed: equal seeds sound
    equal. temperature, top_p, repetition_penalty: sampling of a generating engine.
    """

    voice: str
    speed: float = 1.0
    description: str | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is spoken in one breath, and the silence behind it in seconds.

    `seconds` estimates how much audio it becomes, the pause included.
    """

    text: str
    pause: float
    seconds: float


@dataclass(frozen=True)
class Timing:
    """Where a segment lies in the audio: samples at the voice's rate, the pause behind it included."""

    text: str
    start: int
    end: int

    def told(self, rate: int) -> dict[str, Any]:
        """For clients: in seconds. rate: that of the voice, in Hz."""
        return {"text": self.text, "start": round(self.start / rate, 6), "end": round(self.end / rate, 6)}


class Engine(Protocol):
    """Speaks text. Equal arguments give equal samples, else caching would be wrong."""

    name: str
    voices: Mapping[str, Voice]
    options: frozenset[str]  # the fields of Delivery, besides voice and speed, that this engine follows
    tags: tuple[str, ...]  # the emotion tags that it performs, as `laugh` for <laugh>
    lanes: int  # how many segments it speaks at the same time

    def segments(self, text: str, delivery: Delivery) -> list[Segment]:
        """Normalise the text and cut it into segments that suit this delivery. Runs in a worker thread.

        Raises ApiError when nothing in the text can be spoken.
        """
        ...

    def stream(self, segment: Segment, delivery: Delivery) -> AsyncGenerator[FloatArray, None]:
        """Speak one segment, its pause included, as mono blocks within [-1, 1] at the voice's sample rate.

        The first block begins and the last block ends in silence, so segments join without a click. Closing
        the generator stops the work. Raises ApiError when this segment fails and others may still succeed.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...
