"""What the tests of all scenarios share. They run on the operator's machine, outside the host, as clients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]


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

    def run(check: bool = False, **variables: Any) -> subprocess.CompletedProcess[str]:
        inventory = str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)
        command = [
            "ansible-playbook",
            "--inventory",
            inventory,
            "--extra-vars",
            json.dumps(variables),
            "converge.yml",
        ]
        return subprocess.run(
            [*command, "--check"] if check else command,
            cwd=os.environ["MOLECULE_SCENARIO_DIRECTORY"],
            capture_output=True,
            text=True,
            check=False,
        )

    return run
