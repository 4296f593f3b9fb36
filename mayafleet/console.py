"""What an operator sees of a run: live on a terminal, line by line in a log, and the report at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mayafleet.checks import Check, Level, worst
from mayafleet.errors import ExitCode
from mayafleet.inventory import enumerate_some
from mayafleet.tally import NO_ROLE, Counts, Event, Failure, Stage, Tally

if TYPE_CHECKING:
    from mayafleet.runner import RunResult

Show = Callable[[Event, list[Stage]], None]
MESSAGE_LENGTH = 600
LEVEL_STYLES: Mapping[str, str] = {"pass": "green", "not_run": "dim", "warn": "yellow", "fail": "bold red"}


@contextmanager
def progress(tally: Tally, planned: Sequence[str], diff: bool, console: Console) -> Iterator[Show]:
    """Show a run while it goes on. Yields what to call after the tally has taken an event."""
    board = _Board(tally, planned)

    def show(event: Event, stages: list[Stage]) -> None:
        data = event.get("event_data") or {}
        if diff and event.get("event") == "runner_on_file_diff" and event.get("stdout"):
            console.print(_diff(data, str(event["stdout"])), soft_wrap=True)
        for stage in stages:
            if not console.is_terminal or stage.stopped_at:
                console.print(_line(stage), soft_wrap=True, highlight=False)

    if not console.is_terminal:
        yield show
        return
    with Live(board, console=console, transient=True, refresh_per_second=4):
        yield show


def report(result: RunResult, console: Console) -> None:
    """The end of a run: hosts, time, what was left undone, failures, and where everything lies."""
    if result.hosts:
        console.print(_host_table(result))
    if result.role_seconds:
        console.print(_role_table(result))
    _print_by_entry("not run", result.not_run, console)
    warnings = {
        host: [str(check) for check in checks if check.level is Level.WARN]
        for host, checks in result.preflight.items()
    }
    _print_by_entry("warning", warnings, console)
    for failure in result.failures:
        verb = "unreachable" if failure.unreachable else "failed"
        title = f"{failure.host} {verb} in {failure.role}: {failure.task}"
        console.print(Text(title, style="bold red"), soft_wrap=True)
        console.print(Text(_shorten(failure.message)), soft_wrap=True)
    if result.exit_code == ExitCode.INTERRUPTED:
        told = "Interrupted: hosts may be half provisioned. Running again is safe and completes them."
        console.print(Text(told, style="bold yellow"), soft_wrap=True)
    outcome = "succeeded" if result.exit_code == ExitCode.OK else f"ended with exit code {result.exit_code:d}"
    console.print(
        f"{result.playbook} {outcome} after {_duration(result.elapsed)}; kept in {result.run_dir}",
        soft_wrap=True,
        highlight=False,
    )


def preflight_report(checks_by_host: Mapping[str, Sequence[Check]], console: Console) -> None:
    """A table for each host; what is not as it should be says what is wanted, and how to mend it."""
    for host, checks in checks_by_host.items():
        title = f"{host}: {worst(checks).replace('_', ' ')}"
        table = Table("check", "", "found", box=SIMPLE_HEAD, title=title, title_justify="left")
        for check in checks:
            told = Text(check.found)
            if check.level in (Level.WARN, Level.FAIL):
                told.append(f"\nwanted: {check.wanted}\n{check.mend}", style="default")
            style = LEVEL_STYLES[check.level]
            table.add_row(check.id, Text(check.level.replace("_", " "), style=style), told)
        console.print(table)


def gpu_report(
    documents: Mapping[str, Mapping[str, Any]], failures: Sequence[Failure], console: Console
) -> None:
    """A table for each host: the checks of the host and of each GPU, and what to do where one is due."""
    for host, document in sorted(documents.items()):
        title = f"{host}: {document['level'].replace('_', ' ')}"
        table = Table("GPU", "check", "", "found", box=SIMPLE_HEAD, title=title, title_justify="left")
        rows = [("", check) for check in document["checks"]]
        rows += [(f"{gpu['index']} {gpu['name']}", c) for gpu in document["gpus"] for c in gpu["checks"]]
        for gpu, check in rows:
            level = Level(check["level"])
            told = Text(check["found"])
            if level in (Level.WARN, Level.FAIL):
                told.append(f"\n{check['mend']}")
            style = LEVEL_STYLES[level]
            table.add_row(gpu, check["id"], Text(level.replace("_", " "), style=style), told)
        console.print(table)
    for failure in failures:
        console.print(Text(f"{failure.host} was not asked: {_shorten(failure.message)}", style="bold red"))


class _Board:
    """The live view, drawn anew several times a second: a line for each host, and how many roles are done."""

    def __init__(self, tally: Tally, planned: Sequence[str]) -> None:
        self.tally = tally
        self.planned = len(planned)
        self.started = time.monotonic()

    def __rich__(self) -> RenderableType:
        hosts = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, None, 1, None, None, None):
            hosts.add_column(ratio=ratio)
        for host, counts in list(self.tally.hosts.items()):
            hosts.add_row(
                Text(host, style="bold"),
                Text(self.tally.role, style="cyan"),
                Text(self.tally.tasks.get(host, ""), overflow="ellipsis", no_wrap=True),
                *_count_cells(counts),
            )
        total = max(self.planned, self.tally.roles_done, 1)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=total, completed=self.tally.roles_done, width=30),
            f"{self.tally.roles_done}/{total} roles",
            _duration(time.monotonic() - self.started),
        )
        return Group(hosts, bar)


def _print_by_entry(label: str, entries_by_host: Mapping[str, Sequence[str]], console: Console) -> None:
    """A line for each entry, with the hosts that it is true of."""
    hosts_by_entry: dict[str, list[str]] = {}
    for host, entries in sorted(entries_by_host.items()):
        for entry in entries:
            hosts_by_entry.setdefault(entry, []).append(host)
    for entry, hosts in hosts_by_entry.items():
        line = Text.assemble((f"{label}: ", "yellow"), f"{entry} ({enumerate_some(hosts)})")
        console.print(line, soft_wrap=True)


def _count_cells(counts: Counts) -> list[Text]:
    failed = counts.failed + counts.unreachable
    return [
        Text(f"ok {counts.ok}", style="green"),
        Text(f"changed {counts.changed}", style="yellow" if counts.changed else "dim"),
        Text(f"failed {failed}", style="bold red" if failed else "dim"),
    ]


def _line(stage: Stage) -> Text:
    counts = stage.counts
    line = Text(
        f"{stage.host}  {stage.role}  ok {counts.ok}  changed {counts.changed}  {counts.seconds:.1f} s"
    )
    return line.append(f"  stopped at: {stage.stopped_at}", style="red") if stage.stopped_at else line


def _host_table(result: RunResult) -> Table:
    table = Table("host", box=SIMPLE_HEAD)
    for column in ("ok", "changed", "skipped", "failed", "unreachable", "seconds"):
        table.add_column(column, justify="right")
    for host, counts in sorted(result.hosts.items()):
        style = "red" if counts.failed or counts.unreachable else "yellow" if counts.changed else "green"
        numbers = (counts.ok, counts.changed, counts.skipped, counts.failed, counts.unreachable)
        table.add_row(host, *map(str, numbers), f"{counts.seconds:.1f}", style=style)
    return table


def _role_table(result: RunResult) -> Table:
    table = Table("role", box=SIMPLE_HEAD)
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    total = sum(result.role_seconds.values()) or 1.0
    for role, seconds in sorted(result.role_seconds.items(), key=lambda item: -item[1]):
        table.add_row(role, f"{seconds:.1f}", f"{seconds / total:.0%}")
    return table


def _diff(data: dict[str, Any], printed: str) -> Text:
    text = Text(f"{data.get('host')}  {data.get('role') or NO_ROLE}: {data.get('task')}\n", style="bold")
    for line in printed.strip().splitlines():
        text.append(line + "\n", style={"+": "green", "-": "red"}.get(line[:1], "not bold"))
    return text


def _shorten(message: str) -> str:
    return (
        message
        if len(message) <= MESSAGE_LENGTH
        else f"{message[:MESSAGE_LENGTH]} … (the rest is in the run folder)"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
