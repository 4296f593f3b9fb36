"""Where the project lies, and the environment in which its Ansible runs."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from mayafleet.errors import ExitCode, FleetError


@cache
def root() -> Path:
    """Folder that holds playbooks/, roles/ and ansible.cfg: the parent of this package."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / "playbooks").is_dir():
        raise FleetError(
            f"mayafleet runs from a checkout of maya1-fleet, and {folder} has no playbooks/ folder.",
            "Install it with `pip install --editable .` in the checkout.",
            ExitCode.USAGE,
        )
    return folder


def playbook(name: str) -> Path:
    """Path of a playbook, given by its name in playbooks/ or as a path."""
    folder = root() / "playbooks"
    path = Path(name) if name.endswith((".yml", ".yaml")) else folder / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yml")))
        raise FleetError(
            f"There is no playbook {path}.", f"Playbooks of this project: {known}.", ExitCode.USAGE
        )
    return path.resolve()


def ansible_environment() -> dict[str, str]:
    """What to set for Ansible: the project's configuration, and the programs of this Python environment."""
    return {
        "ANSIBLE_CONFIG": str(root() / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
