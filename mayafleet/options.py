"""Options that several verbs share."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from mayafleet.errors import ExitCode, FleetError

InventoryOption = Annotated[
    list[Path],
    typer.Option("--inventory", "-i", help="Inventory file or folder; repeatable.", show_default=False),
]
OptionalInventoryOption = Annotated[
    list[Path] | None, typer.Option("--inventory", "-i", help="Inventory file or folder; repeatable.")
]
LimitOption = Annotated[
    str | None, typer.Option("--limit", "-l", help="Only hosts that this Ansible pattern matches.")
]
RegionOption = Annotated[
    list[str] | None, typer.Option("--region", help="Only hosts of this region; repeatable.")
]
RunsOption = Annotated[
    Path | None,
    typer.Option("--runs-dir", help="Where run folders are kept. [default: .runs in the project]"),
]
HostsArgument = Annotated[list[str] | None, typer.Argument(help="Only these hosts.", show_default=False)]
CheckOption = Annotated[bool, typer.Option("--check", help="Change nothing; show what would change.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]


def time_span(value: str, least: int = 1) -> timedelta:
    """A span such as 90s, 5m, 1h or 7d."""
    parts = re.fullmatch(r"(\d{1,7})([smhd])", value)
    if not parts or int(parts[1]) < least:
        raise FleetError(f"{value!r} is not a time span.", "Write it like 90s, 5m, 1h or 7d.", ExitCode.USAGE)
    return timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[parts[2]]: int(parts[1])})
