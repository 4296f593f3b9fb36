"""Bundles: named sets of versions that go together, each one file in data/bundles/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mayafleet.errors import ExitCode, FleetError

FOLDER = Path(__file__).parent / "data" / "bundles"
SYSTEMS = ("debian-12", "ubuntu-22.04", "ubuntu-24.04")
# What a bundle has to say, and what each part of it may be.
FIELDS: dict[str, type | tuple[str, ...]] = {
    "name": str,
    "summary": str,
    "driver.branch": int,
    "driver.version": str,
    "driver.module": ("open", "proprietary"),
    **{f"driver.systems.{system}.source": ("distribution", "nvidia") for system in SYSTEMS},
    **{f"driver.systems.{system}.package_version": str for system in SYSTEMS},
    "cuda.version": str,
    **{f"cuda.systems.{system}.source": ("nvidia", "wheels") for system in SYSTEMS},
    **{f"cuda.systems.{system}.package_version": str for system in SYSTEMS},
    "cudnn.version": str,
    "cudnn.package": str,
    "cudnn.package_version": str,
    "container_toolkit.version": str,
    "container_toolkit.package_version": str,
    "container_toolkit.request": ("gpus", "cdi"),
    "dcgm.version": str,
    "dcgm.exporter": str,
    "dcgm.image": str,
    "inference.requirements": str,
    "inference.torch": str,
    "inference.onnxruntime": str,
    "inference.vllm": str,
    "inference.tensorrt": str,
}
Bundle = dict[str, Any]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yml"))


def load(name: str) -> Bundle:
    """A bundle by its name, or by the path of a file of one's own.

    Raises FleetError when there is none, or when a field is missing, unknown or wrong.
    """
    path = Path(name) if name.endswith((".yml", ".yaml")) else FOLDER / f"{name}.yml"
    try:
        bundle: Bundle = yaml.safe_load(path.read_text())
    except OSError:
        raise FleetError(
            f"There is no bundle {name!r}.",
            f"Bundles: {', '.join(names())}; or give the path of a file that ends in .yml.",
            ExitCode.USAGE,
        ) from None
    except yaml.YAMLError as error:
        raise FleetError(
            f"The bundle {path} is not YAML: {' '.join(str(error).split())}", "Mend the file.", ExitCode.USAGE
        ) from None
    wrong = next(faults(bundle), None)
    if wrong:
        raise FleetError(
            f"The bundle {path} is refused: {wrong}.",
            "docs/bundles.md says what a bundle holds.",
            ExitCode.USAGE,
        )
    return bundle


def faults(bundle: object) -> Iterator[str]:
    """What is wrong with the form of a bundle, a sentence each."""
    given = flat(bundle) if isinstance(bundle, dict) else {}
    for name in sorted(given.keys() - FIELDS.keys()):
        yield f"the field {name} is unknown; allowed: {', '.join(FIELDS)}"
    for name, allowed in FIELDS.items():
        value = given.get(name)
        if value is None:
            yield f"the field {name} is missing"
        elif isinstance(allowed, tuple) and value not in allowed:
            yield f"the field {name} is {value!r}; allowed: {' or '.join(allowed)}"
        elif isinstance(allowed, type) and type(value) is not allowed:
            kind = "a whole number" if allowed is int else "text (in quotes)"
            yield f"the field {name} is {value!r}; allowed: {kind}"


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`. A version's system has a dot too, which stays."""
    result: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def differences(old: Bundle, new: Bundle) -> list[tuple[str, str, str]]:
    """Fields in which two bundles differ, with both values."""
    before, after = flat(old), flat(new)
    return [
        (name, str(before[name]), str(after[name]))
        for name in FIELDS
        if name not in ("name", "summary") and before[name] != after[name]
    ]
