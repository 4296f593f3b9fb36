"""Maya1's token ids, and tokens to SNAC frames.

Source: maya1/constants.py and the model card of maya-research/maya1 (Apache-2.0).
"""

from collections.abc import Iterable, Iterator

VOCABULARY = 156_960
BOS = 128_000
TEXT_END = 128_009
AUDIO_START, AUDIO_END = 128_257, 128_258  # AUDIO_END is the only token that ends speech
HUMAN_START, HUMAN_END, MODEL_START = 128_259, 128_260, 128_261
PADDING = 128_263

CODES = 4096  # entries of each SNAC codebook
SLOTS = 7  # tokens in a frame; the token in slot k has an id from FIRST_CODE + k * CODES
FIRST_CODE = 128_266
LAST_CODE = FIRST_CODE + SLOTS * CODES - 1
# The slots of a frame by codebook, as SNAC counts them: 1, 2 and 4. Source: maya1's unpack_snac_from_7.
LEVELS = ([0], [1, 4], [2, 3, 5, 6])

SAMPLE_RATE = 24_000
FRAME_SAMPLES = 2048
TOKENS_PER_SECOND = SLOTS * SAMPLE_RATE / FRAME_SAMPLES  # 82.03

MAX_LOSSES = 8
MAX_STRAY = 10 * SLOTS

Frame = tuple[int, ...]
"""The seven codes of one frame in the order of their tokens, each 0..4095."""


class BadTokens(Exception):
    """The model's output is not Maya1's audio. The message says what was wrong, never what was spoken."""


class FrameReader:
    """Tokens in, whole frames out.

    A token's id says which slot of a frame it belongs to. A token in a wrong slot means that one was lost or
    is too many: taking the id modulo 4096 would turn all that follows into noise. Instead the frame under way
    is dropped, and reading goes on where the next frame starts.
    """

    def __init__(self) -> None:
        self.resyncs = 0  # how often tokens had to be dropped to find the start of a frame again
        self._codes: list[int] = []
        self._lost = False
        self._stray = 0

    def read(self, tokens: Iterable[int]) -> Iterator[Frame]:
        """Raises BadTokens after 8 losses of step, or 70 tokens without a frame."""
        for token in tokens:
            slot, code = divmod(token - FIRST_CODE, CODES)
            if slot != len(self._codes):
                self._lose_step()
            if slot == len(self._codes):
                self._lost = False
                self._codes.append(code)
            if len(self._codes) == SLOTS:
                self._stray = 0
                yield tuple(self._codes)
                self._codes = []

    def _lose_step(self) -> None:
        self._stray += len(self._codes) + 1
        self._codes = []
        if not self._lost:
            self._lost = True
            self.resyncs += 1
        if self.resyncs > MAX_LOSSES or self._stray > MAX_STRAY:
            raise BadTokens(
                f"step was lost {self.resyncs} times, and {self._stray} tokens in a row made no frame"
            )
