"""What an inventory holds: hosts, groups and regions; which hosts a selection means; and a host's variables.

Ansible itself reads the inventory, in a process of its own, so that plugins, vault and patterns mean here
exactly what they mean in a run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mayafleet import project, vault
from mayafleet.errors import ExitCode, FleetError

UNMATCHED = re.compile(r"Could not match supplied host pattern, ignoring: (.+)")
ANSIBLE_ERROR = re.compile(
    r"(?:\[ERROR\]|ERROR!|ERROR)[: ]\s*(.+?)(?=\n\[|\nORIGIN|\nOrigin|\n\n|\Z)", re.DOTALL
)


@dataclass(frozen=True)
class Inventory:
    """Hosts of an inventory by group, each in the inventory's order."""

    paths: tuple[Path, ...]
    groups: dict[str, list[str]]
    regions: tuple[str, ...]

    @property
    def hosts(self) -> list[str]:
        return self.groups["all"]

    def describe(self) -> str:
        """One sentence listing what can be selected."""
        regions = ", ".join(self.regions) or "none (a region is a group whose variables set `region`)"
        groups = ", ".join(g for g in self.groups if g not in (*self.regions, "all", "ungrouped")) or "none"
        return f"Regions: {regions}. Other groups: {groups}. Hosts: {enumerate_some(self.hosts)}."


@dataclass(frozen=True)
class Selection:
    """Hosts that a run is for, and how to tell Ansible so (None: the whole inventory)."""

    hosts: list[str]
    limit: str | None


def load(paths: Path | Sequence[Path]) -> Inventory:
    """Read an inventory made of one or more files or folders."""
    paths = (paths,) if isinstance(paths, Path) else tuple(paths)
    for path in paths:
        if not path.exists():
            known = ", ".join(
                str(p.relative_to(project.root()))
                for p in sorted((project.root() / "inventories").glob("*/"))
            )
            raise FleetError(
                f"There is no inventory {path}.",
                f"Inventories of this project: {known or 'none'}.",
                ExitCode.USAGE,
            )
    vault.unlock_inventories(paths)
    data, _ = _list(paths, "--export")
    groups = {name: list(dict.fromkeys(_members(data, name))) for name in data if name != "_meta"}
    regions = tuple(
        sorted(
            n for n, group in data.items() if n not in ("_meta", "all") and "region" in group.get("vars", {})
        )
    )
    return Inventory(tuple(p.resolve() for p in paths), groups, regions)


def select(inventory: Inventory, limit: str | None = None, regions: Sequence[str] = ()) -> Selection:
    """Hosts that an Ansible pattern and regions leave together.

    Nothing left is an error, and so is a misspelt name, even beside others that match.
    """
    for region in regions:
        if region not in inventory.regions:
            raise FleetError(
                f"The inventory has no region {region!r}.", inventory.describe(), ExitCode.NOTHING_MATCHED
            )
    hosts = inventory.hosts
    if limit is not None:
        data, messages = _list(inventory.paths, "--limit", limit)
        if unmatched := UNMATCHED.search(messages):
            raise FleetError(
                f"--limit names {unmatched[1]!r}, which matches nothing.",
                inventory.describe(),
                ExitCode.NOTHING_MATCHED,
            )
        matched = set(_members(data, "all"))
        hosts = [host for host in hosts if host in matched]
    if regions:
        within = {host for region in regions for host in inventory.groups[region]}
        hosts = [host for host in hosts if host in within]
    if not hosts:
        asked = " and ".join([*([f"--limit {limit}"] if limit else []), *(f"--region {r}" for r in regions)])
        what = (
            f"No host matches {asked}." if asked else f"The inventory {_names(inventory.paths)} has no hosts."
        )
        raise FleetError(what, inventory.describe(), ExitCode.NOTHING_MATCHED)
    # Ansible's patterns have no brackets, so a region crossed with a pattern is handed over host by host.
    return Selection(hosts, ",".join(hosts) if regions else limit)


def variables(inventory: Inventory, host: str, names: Iterable[str]) -> dict[str, Any]:
    """Values of a host's variables as a task on it would see them; None for a variable that nobody sets."""
    if host not in inventory.hosts:
        raise FleetError(
            f"The inventory has no host {host!r}.", inventory.describe(), ExitCode.NOTHING_MATCHED
        )
    return variables_of(inventory, [host], names)[host]


def variables_of(
    inventory: Inventory, hosts: Sequence[str], names: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The same for several hosts, by host. No host is connected to."""
    # `is defined` would also pass over a variable that is set, but to something that does not resolve.
    template = {
        name: f"{{{{ {name} if '{name}' in hostvars[inventory_hostname] else None }}}}" for name in names
    }
    command = [
        "ansible",
        ",".join(hosts),
        *_options(inventory.paths),
        "--module-name",
        "ansible.builtin.debug",
    ]
    done = _ansible(
        [*command, "--args", json.dumps({"msg": template})],
        {"ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
    )
    if "{" not in done.stdout:
        told = error_of(done.stderr)
        raise FleetError(
            f"Ansible cannot read {_names(inventory.paths)}: {told}", "Mend the inventory.", ExitCode.USAGE
        )
    # Other callbacks of the configuration print before and after the one JSON document.
    document, _ = json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{"))
    answers: dict[str, dict[str, Any]] = document["plays"][0]["tasks"][0]["hosts"]
    for host in hosts:
        if answers[host].get("failed"):
            reason = str(answers[host]["msg"]).rpartition(": ")[2]
            raise FleetError(
                f"The variables of host {host} do not resolve: {reason}.",
                "Set what is missing in the inventory; a lab's addresses are written by `mayafleet lab up`.",
                ExitCode.USAGE,
            )
    return {host: answers[host]["msg"] for host in hosts}


def enumerate_some(names: Sequence[str], most: int = 20) -> str:
    """`a, b, c`, cut short when there are many."""
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
        if names
        else "none"
    )


def error_of(output: str) -> str:
    """The error in what Ansible printed, as one line."""
    found = ANSIBLE_ERROR.search(output)
    return " ".join((found[1] if found else output.strip() or "no message").split())


def _members(data: dict[str, Any], group: str) -> list[str]:
    entry = data.get(group, {})
    return [
        *entry.get("hosts", []),
        *(host for child in entry.get("children", []) for host in _members(data, child)),
    ]


def _list(paths: Sequence[Path], *options: str) -> tuple[dict[str, Any], str]:
    done = _ansible(["ansible-inventory", *_options(paths), "--list", *options])
    if done.returncode != 0:
        raise FleetError(
            f"Ansible cannot read {_names(paths)}: {error_of(done.stderr)}",
            "Mend the inventory.",
            ExitCode.USAGE,
        )
    data: dict[str, Any] = json.loads(done.stdout)
    return data, " ".join(done.stderr.split())


def _options(paths: Sequence[Path]) -> list[str]:
    return [option for path in paths for option in ("--inventory", str(path.resolve()))]


def _names(paths: Sequence[Path]) -> str:
    return " and ".join(str(path) for path in paths)


def _ansible(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    variables = os.environ | project.ansible_environment() | (environment or {})
    executable = Path(variables["PATH"].split(os.pathsep)[0]) / command[0]
    return subprocess.run(
        [str(executable), *command[1:]],
        env=variables,
        capture_output=True,
        text=True,
        cwd=project.root(),
        check=False,
    )
