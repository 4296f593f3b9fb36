"""What the engine asks of an acoustic model: tokens for a prompt."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

CONTEXT_TOKENS = 3072
"""The longest prompt and speech together. A text of 14 s has a prompt of some 100 tokens and 1150 of
speech."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The end of speech is not drawn before `min_tokens`, and nothing after
    `max_tokens`."""

    seed: int
    temperature: float
    top_p: float
    repetition_penalty: float
    min_tokens: int
    max_tokens: int


class AcousticModel(Protocol):
    """Equal arguments give equal tokens, as far as the floating point of the device allows."""

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[list[int], None]:
        """Tokens as they are drawn, one or more at a time; AUDIO_END is the last unless `max_tokens` came
        first.

        Closing the generator stops the work within one step. Raises ApiError `out_of_memory` when the GPU has
        no room for this request.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory. Requests under way end with an error."""
        ...
