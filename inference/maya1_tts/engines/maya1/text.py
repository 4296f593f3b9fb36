"""Text as Maya1 is to read it: normalised, its emotion tags kept, in segments that it was trained to
speak."""

import math
import re

from maya1_tts.engine import Segment
from maya1_tts.engines.maya1.tokens import SLOTS, TOKENS_PER_SECOND
from maya1_tts.errors import ApiError, shown
from maya1_tts.normalize import EMOTION_TAGS, clean, nothing_to_speak, paragraphs, split_long, spoken_english

# Maya1 was trained on clips of 1 to 14 s (model card), so sentences are joined up to this estimate.
SEGMENT_SECONDS = 12.0
PAUSE_SENTENCE, PAUSE_PARAGRAPH, PAUSE_CUT = 0.15, 0.45, 0.02

# English is spoken at about 14 characters a second; nobody speaks faster than 40 or slower than 5 of them.
CHARACTERS_PER_SECOND, FASTEST, SLOWEST = 14, 40, 5
# Maya1's constants.py: a laugh is 300 to 400 tokens, a chuckle 50 to 150.
TAG_SECONDS = {"laugh": 4.3, "laugh_harder": 4.9}
OTHER_TAG_SECONDS = 1.2
MARGIN_SECONDS = 2.0  # silence before and behind the words, and whatever the model adds
MIN_TOKENS = 4 * SLOTS  # as upstream: the shortest speech that the vocoder can begin to stream
MAX_TOKENS = 292 * SLOTS  # 24.9 s; upstream allows 2048

_TAG = re.compile(r"<\s*/?\s*([A-Za-z][\w-]*)\s*/?\s*>")
# While the text is normalised a tag is a word that no rule touches.
_STAND_IN = {tag: f"zqz{chr(ord('a') + place)}" for place, tag in enumerate(EMOTION_TAGS)}
_TAG_OF = {word: tag for tag, word in _STAND_IN.items()}
_WORD = re.compile(rf"\b(?:{'|'.join(_TAG_OF)})\b")


def segments(text: str) -> list[Segment]:
    """Raises ApiError `unknown_tag`, `unsupported_characters`, or `empty_input`."""
    pieces: list[tuple[str, float]] = []
    for sentences in paragraphs(spoken(text)):
        cut = [split_long(sentence, _fits) for sentence in sentences]
        marked = [
            (piece, PAUSE_CUT if piece is not sentence[-1] else PAUSE_SENTENCE)
            for sentence in cut
            for piece in sentence
            if re.search(r"\w", piece)
        ]
        for piece, pause in marked:
            # A tag alone belongs to the words before it.
            joined = f"{pieces[-1][0]} {piece}" if pieces else piece
            if pieces and pieces[-1][1] != PAUSE_PARAGRAPH and _fits(joined):
                pieces[-1] = (joined, pause)
            else:
                pieces.append((piece, pause))
        if marked:
            pieces[-1] = (pieces[-1][0], PAUSE_PARAGRAPH)
    if not pieces:
        raise nothing_to_speak(text)
    pieces[-1] = (pieces[-1][0], 0.0)
    return [Segment(piece, pause, seconds(piece) + pause) for piece, pause in pieces]


def spoken(text: str) -> str:
    """Words and plain punctuation, with known tags in lower case: '<LAUGH/> 3 cats' is '<laugh> three
    cats'."""

    def stand_in(match: re.Match[str]) -> str:
        tag = match[1].lower()
        if tag not in _STAND_IN:
            raise ApiError(
                400,
                "unknown_tag",
                f"'input' contains the tag {shown(match[0])}; allowed: "
                f"{', '.join(f'<{tag}>' for tag in EMOTION_TAGS)}.",
                "input",
            )
        return f" {_STAND_IN[tag]} "

    words = spoken_english(clean(_TAG.sub(stand_in, text)))
    return _WORD.sub(lambda match: f"<{_TAG_OF[match[0]]}>", words)


def seconds(text: str) -> float:
    """How long the text takes to speak, more or less."""
    tags, letters = _tag_seconds(text)
    return tags + letters / CHARACTERS_PER_SECOND


def token_limits(text: str) -> tuple[int, int]:
    """(min_tokens, max_tokens) of the speech, in whole frames: it is neither cut short nor does it run
    away."""
    tags, letters = _tag_seconds(text)
    least, most = letters / FASTEST, letters / SLOWEST + 2 * tags + MARGIN_SECONDS
    frames_least, frames_most = (math.ceil(s * TOKENS_PER_SECOND / SLOTS) for s in (least, most))
    return max(MIN_TOKENS, frames_least * SLOTS), min(MAX_TOKENS, frames_most * SLOTS)


def _tag_seconds(text: str) -> tuple[float, int]:
    """(seconds of the tags, number of the other characters)"""
    tags = _TAG.findall(text)
    return sum(TAG_SECONDS.get(tag, OTHER_TAG_SECONDS) for tag in tags), len(_TAG.sub("", text))


def _fits(text: str) -> bool:
    return seconds(text) <= SEGMENT_SECONDS
