"""What the lock files pin: the operator's, and those of the speech service."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement

from mayafleet import project
from mayafleet.errors import ExitCode, FleetError

OPERATOR = "requirements.lock"
# The service's interpreter and host, for what is locked for several of them.
_PYTHON = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}


def service(name: str) -> Path:
    """The lock of the speech service that a bundle names. Raises FleetError where there is none."""
    path = project.root() / "inference" / name
    if not path.is_file():
        known = ", ".join(sorted(one.name for one in path.parent.glob("requirements*.lock")))
        raise FleetError(
            f"inference.requirements is {name!r}; there is no such lock file.",
            f"There are: {known}.",
            ExitCode.USAGE,
        )
    return path


def operator() -> Path:
    return project.root() / OPERATOR


def pinned(lock: Path) -> dict[str, str]:
    """Versions by name of package, of what a lock file installs on Linux with Python 3.11."""
    lines = (line.split(" \\")[0] for line in lock.read_text().splitlines() if line[:1].isalnum())
    requirements = [Requirement(line) for line in lines]
    return {
        one.name: next(iter(one.specifier)).version
        for one in requirements
        if one.marker is None or one.marker.evaluate(_PYTHON)
    }
