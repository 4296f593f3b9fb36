"""What is said of a host or of versions: how it went, what was found, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Level(StrEnum):
    """How a check went, mildest first."""

    NOT_RUN = "not_run"
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, what is wanted, and how to mend it."""

    id: str
    level: Level
    found: str
    wanted: str = ""
    mend: str = ""

    @classmethod
    def of(cls, data: Mapping[str, str]) -> Check:
        """A check out of its fields, as role preflight hands them over."""
        return cls(data["id"], Level(data["level"]), data["found"], data["wanted"], data["mend"])

    def __str__(self) -> str:
        """In one line: what is wrong and how to mend it."""
        return f"{self.id}: {self.found}; wanted: {self.wanted}. {self.mend}"


class Judged(Protocol):
    @property
    def level(self) -> Level: ...


def worst(judged: Iterable[Judged]) -> Level:
    """The level that stands for all of them."""
    order = list(Level)
    return max((one.level for one in judged), key=order.index, default=Level.PASS)
