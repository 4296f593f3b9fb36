"""Maya1's prompt, as token ids: <SOH><BOS><description="DESC."> TEXT<EOT><EOH><SOA><SOS>.

Sent as ids, since a runtime that is given a string may put a second BOS in front. Source:
maya1/prompt_builder.py.
"""

import re
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

from maya1_tts.engines.maya1 import tokens
from maya1_tts.errors import ConfigError
from maya1_tts.normalize import EMOTION_TAGS


def sentence(description: str) -> str:
    """A description that cannot break out of its quotes, and that the model will not read aloud.

    Quotes, angle brackets, line ends and control characters would end it early. Without a full stop at its
    end the model may speak it (reported for Maya1 by users of several servers).
    """
    text = unicodedata.normalize("NFKC", description).translate({ord('"'): "'", ord("<"): " ", ord(">"): " "})
    text = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".,;:!? ")
    return f"{text}." if re.search(r"\w", text) else ""


class Prompts:
    """The tokenizer and the frame around a text."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError unless the file is a tokenizer that knows Maya1's emotion tags as single
        tokens."""
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ConfigError(f"{path} is not a tokenizer: {str(error)[:200]}.") from None
        for tag in EMOTION_TAGS:
            ids = self._encode(f"<{tag}>")
            if len(ids) != 1:
                raise ConfigError(f"{path}: <{tag}> is {len(ids)} tokens, expected one; it is not Maya1's.")

    def ids(self, description: str, text: str) -> list[int]:
        """description: as `sentence` returns it. text: as `text.spoken` does, so without markup but tags."""
        return [
            tokens.HUMAN_START,
            tokens.BOS,
            *self._encode(f'<description="{description}"> {text}'),
            tokens.TEXT_END,
            tokens.HUMAN_END,
            tokens.MODEL_START,
            tokens.AUDIO_START,
        ]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
