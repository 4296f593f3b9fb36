"""Runs a playbook against a selection of hosts, shows how it goes, and keeps what it did in a run folder.

A run folder, `.runs/<UTC time>-<playbook>/`, is private to its owner. It holds Ansible's output (`stdout`),
every event (`job_events/`) and `result.json`. Secrets stay out of it: Ansible withholds what `no_log` marks,
and neither the environment nor the facts that repeat it are kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible_runner
from rich.console import Console

from mayafleet import inventory as inventories
from mayafleet import project
from mayafleet.checks import Check
from mayafleet.console import progress, report
from mayafleet.errors import ExitCode, FleetError
from mayafleet.inventory import Inventory
from mayafleet.tally import GPUS_KEY, PREFLIGHT_KEY, Counts, Event, Failure, Tally, planned_roles

KEPT_RUNS = 20
RUN_NAME = re.compile(r"\d{8}T\d{6}Z-.+")
# How long Ansible may take to wind down after an interrupt before it is killed.
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class RunResult:
    """How a run went."""

    playbook: str
    check: bool
    exit_code: ExitCode
    run_dir: Path
    elapsed: float
    hosts: dict[str, Counts] = field(default_factory=dict)
    role_seconds: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, list[str]] = field(default_factory=dict)
    preflight: dict[str, list[Check]] = field(default_factory=dict)
    """Checks of the hosts that role preflight has judged."""
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the GPUs are, of the hosts that were asked; see gpu_health.as_document."""
    failures: list[Failure] = field(default_factory=list)


def run_playbook(
    playbook: str,
    inventory: Path | Sequence[Path],
    *,
    limit: str | None = None,
    regions: Sequence[str] = (),
    tags: Sequence[str] = (),
    skip_tags: Sequence[str] = (),
    check: bool = False,
    diff: bool = False,
    verbosity: int = 0,
    variables: Mapping[str, Any] | None = None,
    runs_dir: Path | None = None,
    failed_code: ExitCode = ExitCode.HOST_FAILED,
    approve: Callable[[Inventory, Sequence[str]], None] | None = None,
    console: Console | None = None,
) -> RunResult:
    """Run a playbook of the project and report on it.

    The variables outrank those of the inventory. They are seen on Ansible's command line: no secrets.

    A host that fails or cannot be reached, and an interrupt, are told by the result's exit code. FleetError
    means that the run could not begin, or touched no host. approve is asked about the selected hosts before
    any is connected to; it refuses by FleetError.
    """
    console = console or Console()
    path = project.playbook(playbook)
    known = inventories.load(inventory)
    selection = inventories.select(known, limit, regions)
    names = inventories.enumerate_some(selection.hosts)
    if approve:
        approve(known, selection.hosts)
    title = f"{path.stem}{' (check)' if check else ''}: {len(selection.hosts)} of {len(known.hosts)} hosts"
    console.print(f"{title}: {names}", highlight=False, markup=False, soft_wrap=True)
    run_dir = _make_run_dir((runs_dir or project.root() / ".runs").resolve(), path.stem)
    tally, started = Tally(), time.monotonic()
    try:
        with progress(tally, planned_roles(path, tags, skip_tags), diff, console) as show:
            status, interrupted = _run_ansible(
                run_dir,
                lambda event: show(event, tally.add(event)),
                playbook=str(path),
                inventory=[str(p) for p in known.paths],
                limit=selection.limit,
                tags=",".join(tags) or None,
                skip_tags=",".join(skip_tags) or None,
                extravars=dict(variables or {}),
                verbosity=verbosity or None,
                cmdline=" ".join(["--check"] * check + ["--diff"] * diff) or None,
            )
    finally:
        _make_private(run_dir)
        _prune(run_dir.parent, keep=KEPT_RUNS)
    result = RunResult(
        playbook=path.stem,
        check=check,
        exit_code=_judge(tally, status, interrupted, failed_code),
        run_dir=run_dir,
        elapsed=time.monotonic() - started,
        hosts=tally.hosts,
        role_seconds=tally.role_seconds,
        not_run=tally.not_run,
        preflight={
            host: [Check.of(check) for check in data[PREFLIGHT_KEY]]
            for host, data in tally.exported.items()
            if PREFLIGHT_KEY in data
        },
        gpus={host: data[GPUS_KEY] for host, data in tally.exported.items() if GPUS_KEY in data},
        failures=tally.failures,
    )
    _write_result(result)
    _require_work_done(result, selection.hosts)
    report(result, console)
    return result


def _run_ansible(run_dir: Path, on_event: Callable[[Event], None], **options: Any) -> tuple[int, bool]:
    """Run ansible-playbook and hand over its events. Returns its exit status and whether it was stopped."""
    with _interruptible() as interrupt:

        def take(event: dict[str, Any]) -> bool:
            _forget_environment(event)
            interrupt.meet(event.get("pid"))
            on_event(event)
            return True

        run = ansible_runner.run(
            private_data_dir=str(run_dir),
            artifact_dir=str(run_dir.parent),
            ident=run_dir.name,
            project_dir=str(project.root()),
            envvars=_environment(),
            event_handler=take,
            status_handler=lambda status, runner_config: _forget_command_environment(run_dir),
            cancel_callback=interrupt.is_overdue,
            suppress_env_files=True,
            fact_cache_type="",  # facts repeat the environment: they stay in memory
            rotate_artifacts=0,  # ansible-runner's own pruning can take the live run
            quiet=True,
            **options,
        )
        return run.rc, interrupt.asked


def _judge(tally: Tally, status: int, interrupted: bool, failed_code: ExitCode) -> ExitCode:
    if interrupted:
        return ExitCode.INTERRUPTED
    if any(counts.failed for counts in tally.hosts.values()):
        return failed_code
    if any(counts.unreachable for counts in tally.hosts.values()):
        return ExitCode.UNREACHABLE
    if status != 0:  # for a reason that is no host's: a playbook that does not parse, a missing role
        return ExitCode.USAGE
    return ExitCode.OK if tally.worked else ExitCode.NOTHING_MATCHED


def _require_work_done(result: RunResult, hosts: Sequence[str]) -> None:
    """A run in which no host took part must not pass for a success."""
    if result.exit_code == ExitCode.NOTHING_MATCHED:
        raise FleetError(
            f"Playbook {result.playbook} ran no task on {inventories.enumerate_some(hosts)}.",
            "Its plays are for other groups, or the tags left nothing to do.",
            ExitCode.NOTHING_MATCHED,
        )
    if result.exit_code == ExitCode.USAGE:
        output = (result.run_dir / "stdout").read_text()
        raise FleetError(
            f"Ansible stopped: {inventories.error_of(output)}",
            f"All it said is in {result.run_dir / 'stdout'}.",
            ExitCode.USAGE,
        )


# --- the run folder -----------------------------------------------------------------------------------------


def _make_run_dir(runs_dir: Path, playbook: str) -> Path:
    runs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        run_dir = runs_dir / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{playbook}"
        try:
            run_dir.mkdir(mode=0o700)
            return run_dir
        except FileExistsError:  # two runs within a second
            time.sleep(0.1)


def _prune(runs_dir: Path, keep: int) -> None:
    runs = sorted(path for path in runs_dir.iterdir() if RUN_NAME.fullmatch(path.name) and path.is_dir())
    for old in runs[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _make_private(run_dir: Path) -> None:
    """Also removes what an interrupt leaves: events that Ansible wrote and nobody collected or cleaned."""
    for partial in run_dir.glob("job_events/*-partial.json*"):
        partial.unlink(missing_ok=True)
    for folder, _, files in os.walk(run_dir):
        os.chmod(folder, 0o700)
        for name in files:
            os.chmod(Path(folder) / name, 0o600)


def _write_result(result: RunResult) -> None:
    path = result.run_dir / "result.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(result), indent=2, default=str) + "\n")


# --- what must not be kept ----------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    return {
        **project.ansible_environment(),
        # ansible-runner switches this off unless the environment says otherwise.
        "ANSIBLE_HOST_KEY_CHECKING": os.environ.get("ANSIBLE_HOST_KEY_CHECKING", "True"),
    }


def _forget_environment(event: dict[str, Any]) -> None:
    """Facts hold the environment of the login they were gathered through."""
    result = (event.get("event_data") or {}).get("res")
    facts = result.get("ansible_facts") if isinstance(result, dict) else None
    if isinstance(facts, dict):
        facts.pop("ansible_env", None)
        facts.pop("env", None)


def _forget_command_environment(run_dir: Path) -> None:
    """ansible-runner writes the whole environment beside the command, just before it starts it."""
    command = run_dir / "command"
    if command.exists():
        content = json.loads(command.read_text())
        content.pop("env", None)
        command.write_text(json.dumps(content))


# --- interrupts ---------------------------------------------------------------------------------------------


class _Interrupt:
    """Passes an interrupt on to Ansible, which then winds down; asked twice, or too slow, it is killed.

    ansible-runner by itself would kill at once, and a terminal's Ctrl-C does not reach Ansible's own session.
    """

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0
        self._ansible: int | None = None
        self._killed = False

    def __call__(self, *_: object) -> None:
        self._killed = self.asked
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
            self._signal(signal.SIGINT)

    def meet(self, ansible: int | None) -> None:
        """Learn Ansible's process, which every event of its names."""
        if ansible and not self._ansible:
            self._ansible = ansible
            if self.asked:
                self._signal(signal.SIGINT)

    def is_overdue(self) -> bool:
        return self._killed or (self.asked and time.monotonic() - self._asked_at > GRACE_SECONDS)

    def await_end(self) -> None:
        """Wait for Ansible where ansible-runner no longer does."""
        with suppress(ChildProcessError):
            while self._ansible and os.waitpid(self._ansible, os.WNOHANG) == (0, 0):
                if self.is_overdue():
                    self._signal(signal.SIGKILL)
                time.sleep(0.1)

    def _signal(self, number: signal.Signals) -> None:
        if self._ansible:
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(self._ansible), number)


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield interrupt
    except BaseException:  # nobody follows Ansible any more, so it must not go on by itself
        interrupt()
        interrupt.await_end()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
