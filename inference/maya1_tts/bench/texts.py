"""What is spoken: three built-in sets, and a way to make every text new."""

import itertools
import os
import re
from collections.abc import Iterator

SHORT = (
    "The ferry leaves at noon.",
    "Please close the garden gate.",
    "We found your blue umbrella.",
    "Dinner will be ready soon.",
    "The museum is closed on Mondays.",
    "Turn left after the stone bridge.",
    "Your parcel has just arrived.",
    "It may rain later this evening.",
)
MEDIUM = (
    "The night train crosses the mountains before dawn. Most of its passengers sleep through the best view.",
    "Our baker opens at six. If you come early enough, the bread is still warm and the street is quiet.",
    "A good map shows what its maker thought important. The rest is left to those who walk.",
    "The old clock in the station runs four minutes fast. Nobody has missed a train because of it.",
    "She repaired the radio with a spoon and some patience. It has played every morning since.",
    "The lake freezes late in these years. Children wait for the first safe ice, and so do their parents.",
)
LONG = (
    "The lighthouse was built in a single summer. Its keeper carried oil up two hundred steps each "
    "evening, and carried the empty can down again. In winter the wind shook the lantern so hard that "
    "he tied it with rope. Ships passed without knowing his name. When the lamp became electric, he "
    "stayed on to look after the garden. Visitors now climb the same steps and count them aloud. Few of "
    "them reach the same number.",
    "Every market day begins with an argument about space. The cheese stall wants the shade, and so "
    "does the fishmonger. Flowers need water, knives need a solid table, and the man who sells brushes "
    "needs nothing at all. By eight it is settled, and nobody remembers how. At noon the square smells "
    "of bread and wet stone. By three only the pigeons are left, and they inspect every corner with "
    "great care.",
)
SETS = {"short": SHORT, "medium": MEDIUM, "long": LONG, "mixed": (*SHORT, *MEDIUM, *LONG)}

# Common words that a phonemizer knows: a guess at an unknown word would cost more than an ordinary one.
NAMES = (
    "Adam", "Alice", "Anna", "Ben", "Carl", "Clara", "Daniel", "David", "Diana", "Edward", "Ellen", "Emma",
    "Frank", "George", "Grace", "Helen", "Henry", "Jack", "James", "Jane", "John", "Julia", "Kate", "Laura",
    "Linda", "Lucy", "Mark", "Martin", "Mary", "Nina", "Oliver", "Oscar", "Paul", "Peter", "Rose", "Ruth",
    "Sam", "Sarah", "Simon", "Susan", "Thomas", "Tim", "Victor", "Walter",
)  # fmt: skip


def unique(texts: tuple[str, ...], first: int | None = None) -> Iterator[str]:
    """The texts in turn, for ever, with three names before each sentence that never come twice in 85,184.

    Each sentence is made new, not each text, so that no cache of whole answers or of sentences can know it.
    first: where to start among the names; by chance when None, since a server may remember an earlier run.
    """
    count = len(NAMES)
    start = int.from_bytes(os.urandom(4)) if first is None else first
    # A stride without a common factor with count**3 visits every triple once, and neighbours sound different.
    triples = ((start + i) * 31_013 % count**3 for i in itertools.count())

    def renew(sentence: str) -> str:
        number = next(triples)
        a, b, c = (NAMES[number // count**place % count] for place in range(3))
        return f"{a}, {b} and {c}: {sentence}"

    for text in itertools.cycle(texts):
        yield " ".join(renew(sentence) for sentence in re.split(r"(?<=[.!?])\s+", text))
