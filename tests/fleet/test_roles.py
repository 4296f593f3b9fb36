"""Every role has a scenario, and its README names exactly the variables that it declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (PROJECT / "roles").iterdir() if (path / "tasks").is_dir())

pytestmark = pytest.mark.parametrize("role", ROLES)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_role_has_a_scenario(role: str) -> None:
    scenario = PROJECT / "molecule" / role
    assert (scenario / "molecule.yml").is_file()
    assert (scenario / "converge.yml").is_file()
    assert list((scenario / "tests").glob("test_*.py"))


def test_readme_names_the_declared_variables(role: str) -> None:
    folder = PROJECT / "roles" / role
    declared = set(load(folder / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {}))
    first_cells = re.findall(r"^\| *(`[^|]*`) *\|", (folder / "README.md").read_text(), re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(rf"`({role}_\w+)`", cell)}
    assert named == declared


def test_defaults_are_declared(role: str) -> None:
    folder = PROJECT / "roles" / role
    declared = load(folder / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    # One file, or several in a folder of that name.
    files = sorted((folder / "defaults").rglob("*.yml"))
    assert files
    defaults = {name: value for file in files for name, value in (load(file) or {}).items()}
    assert set(defaults) <= set(declared)
    # A default that is spelt out in both places must be the same.
    spelt_out = {name: option["default"] for name, option in declared.items() if "default" in option}
    assert {name: defaults.get(name) for name in spelt_out} == spelt_out


def test_addresses_outside_are_settings(role: str) -> None:
    """Whoever has a mirror, or no way out, names another address: none is spelt out but in the defaults."""
    folder = PROJECT / "roles" / role
    parts = ("tasks", "handlers", "templates", "vars", "files", "library")
    found = [
        (file.name, address)
        for part in parts
        for file in (folder / part).rglob("*")
        if file.is_file()
        for line in file.read_text().splitlines()
        if not line.lstrip().startswith(("#", "//"))
        for address in re.findall(r"https?://[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}", line)
    ]
    assert found == []
