"""What the events of an Ansible run add up to: counts, time per role, failures, and what was left undone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

NO_ROLE = "(no role)"
FACTS = "facts"
# What roles hand over with set_stats, per host: role `verify` what was not done for want of something, role
# `preflight` its checks, role `verify` also how the GPUs are.
NOT_RUN_KEY = "fleet_not_run"
PREFLIGHT_KEY = "fleet_preflight"
GPUS_KEY = "fleet_gpus"

Event = Mapping[str, Any]


@dataclass
class Counts:
    """Results of tasks, and the time they took."""

    ok: int = 0
    changed: int = 0
    skipped: int = 0
    failed: int = 0
    unreachable: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Where a host stopped, and why."""

    host: str
    role: str
    task: str
    message: str
    unreachable: bool = False


@dataclass(frozen=True)
class Stage:
    """A role that a host is through with, or has stopped in."""

    host: str
    role: str
    counts: Counts
    stopped_at: str = ""
    """The task that failed or found the host unreachable, where that ended the host's run."""


@dataclass
class Tally:
    """Running account of a run. Feed it every event in order."""

    hosts: dict[str, Counts] = field(default_factory=dict)
    role_seconds: dict[str, float] = field(default_factory=dict)
    exported: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What roles handed over, by host and key."""
    roles_done: int = 0
    role: str = ""
    """Role of the task that runs now; empty between plays."""
    handlers: bool = False
    """Whether that task is a handler, which Ansible runs after the roles of its play."""
    tasks: dict[str, str] = field(default_factory=dict)
    """Task that each host is at, or was last at."""
    worked: bool = False
    """Whether any host did more than have its facts gathered."""
    _failures: dict[str, Failure] = field(default_factory=dict)
    _down: set[str] = field(default_factory=set)
    """Hosts whose last result is a failure; one that starts another task has been rescued."""
    _open: dict[str, Counts] = field(default_factory=dict)
    _clock: datetime | None = None

    @property
    def failures(self) -> list[Failure]:
        """The last failure of each host that ended failed or unreachable, not what was rescued or ignored."""
        return [
            f for host, f in self._failures.items() if self.hosts[host].failed or self.hosts[host].unreachable
        ]

    @property
    def not_run(self) -> dict[str, list[str]]:
        """What each host left undone, of the hosts that told."""
        return {
            host: [str(entry) for entry in data[NOT_RUN_KEY]]
            for host, data in self.exported.items()
            if NOT_RUN_KEY in data
        }

    def add(self, event: Event) -> list[Stage]:
        """Account for one event. Returns the roles that hosts have come to the end of."""
        kind, data = event.get("event", ""), event.get("event_data") or {}
        if kind in (
            "playbook_on_task_start",
            "playbook_on_handler_task_start",
            "playbook_on_play_start",
            "playbook_on_stats",
        ):
            self._advance(event)
            role = _role_of(data) if "task_start" in kind else ""
            handlers = "handler" in kind
            stages = self._enter(role, handlers) if (role, handlers) != (self.role, self.handlers) else []
            if kind == "playbook_on_stats":
                self._finish(data)
            return stages
        if host := data.get("host"):
            self._result(kind, host, data, str(event.get("stdout") or ""))
        return []

    def _advance(self, event: Event) -> None:
        """Charge the time since the last turn to the role that was running."""
        now = datetime.fromisoformat(event["created"])
        if self._clock and self.role:
            self.role_seconds[self.role] = (
                self.role_seconds.get(self.role, 0.0) + (now - self._clock).total_seconds()
            )
        self._clock = now

    def _enter(self, role: str, handlers: bool) -> list[Stage]:
        label = f"{self.role} (handlers)" if self.handlers else self.role
        stages = [
            Stage(host, label, counts, self._failures[host].task if host in self._down else "")
            for host, counts in self._open.items()
        ]
        self.roles_done += not self.handlers and self.role not in ("", NO_ROLE, FACTS)
        self.role, self.handlers, self._open = role, handlers, {}
        return stages

    def _result(self, kind: str, host: str, data: Mapping[str, Any], printed: str) -> None:
        total, stage = self.hosts.setdefault(host, Counts()), self._open.setdefault(host, Counts())
        self.tasks[host] = data.get("task") or ""
        result = data.get("res") or {}
        # A result that no_log hides tells only by what is printed whether it was a change.
        changed = bool(result.get("changed")) or ("censored" in result and printed.startswith("changed:"))
        ignored = bool(data.get("ignore_errors"))
        for counts in (total, stage):
            counts.seconds += data.get("duration") or 0.0
            if kind == "runner_on_start" and host in self._down:
                counts.failed = max(counts.failed - 1, 0)
            elif kind == "runner_on_ok" or (kind == "runner_on_failed" and ignored):
                counts.ok += 1
                counts.changed += changed
            elif kind == "runner_on_skipped":
                counts.skipped += 1
            elif kind == "runner_on_failed":
                counts.failed += 1
            elif kind == "runner_on_unreachable":
                counts.unreachable += 1
        if kind == "runner_on_start":
            self._down.discard(host)
        elif kind == "runner_on_unreachable" or (kind == "runner_on_failed" and not ignored):
            unreachable = kind == "runner_on_unreachable"
            self._failures[host] = Failure(
                host, _role_of(data), self.tasks[host], message_of(result), unreachable
            )
            self._down.add(host)
        self.worked = self.worked or _role_of(data) != FACTS
        statistics = result.get("ansible_stats")
        if kind == "runner_on_ok" and isinstance(statistics, dict):
            # Per-host statistics are missing in the final event, which carries only those of the whole run.
            self.exported.setdefault(host, {}).update(statistics.get("data", {}))

    def _finish(self, statistics: Mapping[str, Any]) -> None:
        """Ansible's own final counts replace ours: it alone knows which failures a rescue has mended."""
        for host in statistics.get("processed") or {}:
            counts = self.hosts.setdefault(host, Counts())
            for name, key in {
                "ok": "ok",
                "changed": "changed",
                "skipped": "skipped",
                "failed": "failures",
                "unreachable": "dark",
            }.items():
                setattr(counts, name, (statistics.get(key) or {}).get(host, 0))


def _role_of(data: Mapping[str, Any]) -> str:
    if role := data.get("role"):
        return str(role)
    return FACTS if str(data.get("task_action")).endswith(("gather_facts", "setup")) else NO_ROLE


def message_of(result: Mapping[str, Any]) -> str:
    """Why a task failed, by its result: the message, what the program printed, the failed items of a loop."""
    if "censored" in result:
        return "The result is hidden (no_log)."
    failed_items = [
        item for item in result.get("results") or [] if isinstance(item, dict) and item.get("failed")
    ]
    if failed_items:
        return "\n".join(
            f"{item.get('_ansible_item_label', item.get('item', '?'))}: {message_of(item)}"
            for item in failed_items
        )
    message = result.get("msg") or "no message"
    lines = message if isinstance(message, list) else [message]
    if result.get("rc"):
        printed = (
            result.get("stderr")
            or result.get("module_stderr")
            or result.get("stdout")
            or result.get("module_stdout")
        )
        lines = [*lines, printed] if printed else lines
    return "\n".join(str(line).strip() for line in lines)


def planned_roles(playbook: Path, tags: Collection[str] = (), skip_tags: Collection[str] = ()) -> list[str]:
    """Roles that the playbook's plays list, in order, less those that tags leave out."""
    try:
        plays = yaml.safe_load(playbook.read_text()) or []
    except yaml.YAMLError:
        return []  # Ansible is about to say what is wrong with it
    planned: list[str] = []
    for play in plays if isinstance(plays, list) else []:
        if imported := play.get("import_playbook") or play.get("ansible.builtin.import_playbook"):
            path = playbook.parent / imported
            planned += planned_roles(path, tags, skip_tags) if path.is_file() else []
        for entry in play.get("roles") or []:
            role = {"role": entry} if isinstance(entry, str) else entry
            own = {*_words(play.get("tags")), *_words(role.get("tags"))}
            if own & set(skip_tags) or (tags and "all" not in tags and not own & {*tags, "always"}):
                continue
            planned.append(role.get("role") or role.get("name") or "?")
    return planned


def _words(value: Any) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value or [])
