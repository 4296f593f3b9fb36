"""Text that arrives in pieces, cut into sentences as soon as each is complete."""

import re

from maya1_tts.normalize import ABBREVIATIONS

LONGEST = 500  # characters that are kept back at most while no sentence ends
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n")
_NO_END = {name.lower() for name in ABBREVIATIONS if name.endswith(".") and name != "etc."} | {"no.", "st."}


class Sentences:
    """A sentence is complete when a space follows its full stop: "3." may become "3.5", and "Dr." a name."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The sentences that are complete now."""
        self._rest += text
        complete: list[str] = []
        begin = 0
        for end in _END.finditer(self._rest):
            sentence = self._rest[begin : end.end()].strip()
            if _ends(sentence):
                complete.append(sentence)
                begin = end.end()
        self._rest = self._rest[begin:]
        while len(self._rest) > LONGEST:
            cut = self._rest.rfind(" ", 1, LONGEST) + 1 or LONGEST
            complete.append(self._rest[:cut].strip())
            self._rest = self._rest[cut:]
        return [sentence for sentence in complete if sentence]

    def flush(self) -> list[str]:
        """What is left, complete or not."""
        rest, self._rest = self._rest.strip(), ""
        return [rest] if rest else []


def _ends(sentence: str) -> bool:
    last = sentence.split()[-1].lstrip("\"'“‘([") if sentence else ""
    return last.lower() not in _NO_END and re.fullmatch(r"[A-Z]\.", last) is None
