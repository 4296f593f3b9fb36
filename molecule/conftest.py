"""What the tests of all scenarios share. They run on the operator's machine, outside the host, as clients."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]


def said(run: subprocess.CompletedProcess[str]) -> str:
    """What Ansible printed, without colours and line breaks."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", run.stdout).split())


def upgrade_without_holds(host: Host, packages: Iterable[str]) -> str:
    """What apt would upgrade if these were not held, so that pins are what a test sees."""
    names = " ".join(packages)
    host.check_output(f"apt-mark unhold {names}")
    plan: str = host.check_output("apt-get --simulate full-upgrade")
    host.check_output(f"apt-mark hold {names}")
    return plan


@pytest.fixture(scope="module")
def variables(host: Host) -> dict[str, Any]:
    """The host's variables, as Ansible sees them."""
    return dict(host.ansible.get_variables())


@pytest.fixture(scope="module")
def address(variables: dict[str, Any]) -> str:
    """The host's address, as others reach it."""
    return str(variables["ansible_host"])


@pytest.fixture(scope="module")
def lab_state(variables: dict[str, Any]) -> Path:
    """Folder of the lab's keys and authority, on this machine."""
    return Path(variables["lab_state"])


@pytest.fixture
def reachable(address: str) -> Callable[[int], bool]:
    """Whether a connection from this machine to a TCP port of the host is accepted."""

    def connects(port: int) -> bool:
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            return False
        return True

    return connects


@pytest.fixture
def converge() -> Converge:
    """Run the scenario's converge.yml again, with other variables, and hand back how it went."""

    def run(
        check: bool = False,
        playbook: str = "converge.yml",
        before: Path | None = None,
        after: Path | None = None,
        limit: str = "all",
        **variables: Any,
    ) -> subprocess.CompletedProcess[str]:
        """before, after: an inventory that is read before the scenario's, or after it and so overrides it."""
        inventory = str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)
        command = [
            "ansible-playbook",
            *(["--inventory", str(before)] if before else []),
            "--inventory",
            inventory,
            *(["--inventory", str(after)] if after else []),
            "--limit",
            limit,
            "--extra-vars",
            json.dumps(variables),
            playbook,
        ]
        return subprocess.run(
            [*command, "--check"] if check else command,
            cwd=os.environ["MOLECULE_SCENARIO_DIRECTORY"],
            capture_output=True,
            text=True,
            check=False,
        )

    return run
