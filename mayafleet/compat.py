"""Judges bundles and GPUs by the compatibility table, data/compat.yml. Nothing here asks a host anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from mayafleet import bundles, locks
from mayafleet.bundles import Bundle
from mayafleet.checks import Level
from mayafleet.errors import ExitCode, FleetError

TABLE = Path(__file__).parent / "data" / "compat.yml"
SUCCESSOR = "580"  # the bundle to name when another one does not do
Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One judgement: what was looked at, what came out, and what to do about it."""

    check: str
    level: Level
    found: str
    mend: str = ""
    source: str = ""


@cache
def table() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(TABLE.read_text())
    return content


def gpu(name: str) -> Row:
    """The row of a GPU by its name, as nvidia-smi or an inventory has it. Raises FleetError."""
    for row in table()["gpus"]:
        if re.search(rf"(?<![\w]){row['match']}(?![\w])", name, re.IGNORECASE):
            return dict(row)
    raise FleetError(f"No GPU like {name!r} is in the table.", known_gpus(), ExitCode.USAGE)


def gpu_by_pci(device: str) -> Row | None:
    """The row of a GPU by its PCI device id (`2236`), if it is in the table."""
    return next((dict(row) for row in table()["gpus"] if device.lower() in row["pci"]), None)


def known_gpus() -> str:
    return f"Known GPUs: {', '.join(row['name'] for row in table()['gpus'])}."


def judge_bundle(bundle: Bundle, today: date | None = None) -> list[Finding]:
    """Whether the parts of a bundle go together, are still supported, and have no known vulnerability."""
    return [
        *_branch(bundle, today or datetime.now(UTC).date()),
        *_packages(bundle),
        *_cuda(bundle),
        *_floors(bundle),
        *_package_floors(bundle),
    ]


def judge(bundle: Bundle, gpus: Iterable[str]) -> list[Finding]:
    """A bundle, and GPUs of one host with it by their names. A GPU that is not in the table is a warning."""
    rows, unknown = [], []
    for name in gpus:
        try:
            rows.append(gpu(name))
        except FleetError as error:
            unknown.append(Finding("GPU", Level.WARN, error.message, error.next_step))
    return [*unknown, *judge_gpus(bundle, rows), *judge_bundle(bundle)]


def judge_gpus(bundle: Bundle, gpus: Sequence[Row]) -> list[Finding]:
    """Whether the GPUs of one host go with a bundle, and with each other."""
    findings = [finding for row in gpus for finding in _judge_gpu(bundle, row)]
    return [*findings, _module(bundle, gpus)] if gpus else findings


def _judge_gpu(bundle: Bundle, row: Row) -> Iterator[Finding]:
    obstacles = list(_obstacles(bundle, row))
    for check, found, source in obstacles:
        yield Finding(check, Level.FAIL, found, _other_bundle(row), source)
    if not obstacles:
        found = (
            f"driver {bundle['driver']['branch']} knows {row['architecture']}, and libraries have code for it"
        )
        yield Finding(row["name"], Level.PASS, found, source=_source(row))
    tensorrt = bundle["inference"]["tensorrt"]
    if (built := _build("tensorrt", tensorrt, bundle["cuda"]["version"])) and not _has_code(built, row):
        yield Finding(
            f"tensorrt for {row['name']}",
            Level.WARN,
            f"tensorrt {tensorrt} has no code for {row['architecture']}",
            "Do not set ONNX_PROVIDER to tensorrt.",
            _source(built),
        )


def _obstacles(bundle: Bundle, row: Row) -> Iterator[tuple[str, str, str]]:
    """Why a GPU does not run with a bundle: what was looked at, what was found, and who says so."""
    branch, architecture = bundle["driver"]["branch"], row["architecture"]
    if branch < row["min_branch"]:
        found = f"driver {branch} does not know {architecture}, which needs {row['min_branch']}"
        yield f"driver for {row['name']}", found, _source(row)
    elif branch > row.get("max_branch", branch):
        found = f"driver {branch} no longer knows {architecture}; the last was {row['max_branch']}"
        yield f"driver for {row['name']}", found, _source(row)
    cuda = bundle["cuda"]["version"]
    parts = {"CUDA": (cuda, _cuda_major(cuda))} | {
        part: (version, _build(part, version, cuda))
        for part, version in _libraries(bundle).items()
        if part != "tensorrt"  # used only where ONNX_PROVIDER says so
    }
    without = {
        f"{part} {version}": built for part, (version, built) in parts.items() if not _has_code(built, row)
    }
    if without:
        found = f"without code for {architecture} ({row['compute_capability']}): {', '.join(without)}"
        yield f"code for {row['name']}", found, _source(next(iter(without.values())))


def _has_code(built: Row | None, gpu: Row) -> bool:
    """Whether something was built for a GPU. What the table does not say counts as yes."""
    least = (built or {}).get("min_compute_capability", "0")
    return numbers(gpu["compute_capability"]) >= numbers(least)


def _other_bundle(gpu: Row) -> str:
    fit = [name for name in bundles.names() if not any(_obstacles(bundles.load(name), gpu))]
    return f"Set fleet_bundle to {' or '.join(fit)}." if fit else "No bundle here goes with it: write one."


def kernel_module(bundle: Bundle, gpus: Sequence[Row]) -> str:
    """Which kernel modules a host takes: `open` or `proprietary`. The bundle's where its GPUs take both."""
    wanted = {row["module"] for row in gpus} - {"either"}
    return str(wanted.pop()) if len(wanted) == 1 else str(bundle["driver"]["module"])


def _module(bundle: Bundle, gpus: Sequence[Row]) -> Finding:
    proprietary = sorted({row["name"] for row in gpus if row["module"] == "proprietary"})
    open_only = sorted({row["name"] for row in gpus if row["module"] == "open"})
    if proprietary and open_only:
        return Finding(
            "kernel modules",
            Level.FAIL,
            f"{', '.join(proprietary)} needs proprietary ones, {', '.join(open_only)} open ones",
            "Put them into different hosts.",
            _source(gpus[0]),
        )
    return Finding("kernel modules", Level.PASS, kernel_module(bundle, gpus), source=_source(gpus[0]))


def _branch(bundle: Bundle, today: date) -> Iterator[Finding]:
    branch = bundle["driver"]["branch"]
    row = next((row for row in table()["branches"] if row["branch"] == branch), None)
    if row is None:
        known = ", ".join(str(row["branch"]) for row in table()["branches"])
        yield Finding(
            "driver branch", Level.FAIL, f"{branch} is not in the table", f"Known branches: {known}."
        )
        return
    year, month = map(int, row["eol"].split("-"))
    if (today.year, today.month) > (year, month):
        yield Finding(
            "driver branch",
            Level.WARN,
            f"{branch} reached its end of life in {row['eol']}",
            f"Plan the way to bundle {SUCCESSOR}.",
            _source(row),
        )
    else:
        yield Finding(
            "driver branch", Level.PASS, f"{branch} is supported until {row['eol']}", source=_source(row)
        )
    most = row["cuda_major_max"]
    if numbers(bundle["cuda"]["version"])[0] > most:
        yield Finding(
            "CUDA and driver",
            Level.FAIL,
            f"driver {branch} runs CUDA up to {most}.x, and cuda.version is {bundle['cuda']['version']}",
            f"Take parts built for CUDA {most}, or another branch.",
            _source(row),
        )


def _packages(bundle: Bundle) -> Iterator[Finding]:
    driver, cuda, cudnn, toolkit = (bundle[part] for part in ("driver", "cuda", "cudnn", "container_toolkit"))
    versions = [
        ("driver.version", driver["version"], str(driver["branch"])),
        ("cudnn.package_version", cudnn["package_version"], cudnn["version"]),
        ("container_toolkit.package_version", toolkit["package_version"], toolkit["version"]),
    ]
    for part, wanted in (("driver", driver), ("cuda", cuda)):
        for system, package in wanted["systems"].items():
            versions.append((f"{part}.systems.{system}", package["package_version"], wanted["version"]))
    wrong = [
        f"{what} is {version}, which is no {expected}"
        for what, version, expected in versions
        if not re.match(rf"{re.escape(expected)}(?![0-9])", version)
    ]
    if wrong:
        yield Finding("package versions", Level.FAIL, "; ".join(wrong), "Mend the versions.")
    else:
        yield Finding("package versions", Level.PASS, "each is of the version that the bundle names")
    major = numbers(cuda["version"])[0]
    if not cudnn["package"].endswith(f"cuda-{major}"):
        yield Finding(
            "cuDNN and CUDA",
            Level.FAIL,
            f"{cudnn['package']} is not for CUDA {major}",
            f"Take the package that ends in cuda-{major}.",
        )


def _cuda(bundle: Bundle) -> Iterator[Finding]:
    """Whether the driver runs the bundle's CUDA, and each library is built for it, and vLLM for the torch."""
    cuda, driver = bundle["cuda"]["version"], bundle["driver"]["version"]
    if floor := _cuda_major(cuda):
        yield _driver_for_cuda(driver, cuda, floor)
    for part, version in _libraries(bundle).items():
        builds = [
            row for row in table()["libraries"] if row["part"] == part and is_of(version, row["version"])
        ]
        known = ", ".join(dict.fromkeys(build for row in builds for build in row["cuda"]))
        row, torch = _build(part, version, cuda), bundle["inference"]["torch"]
        if not builds:
            yield Finding(
                part,
                Level.WARN,
                f"{version} is not in the table",
                "Find out what CUDA it is built for, and add a row to compat.yml.",
            )
        elif row is None:
            yield Finding(
                part,
                Level.FAIL,
                f"{version} is built for CUDA {known}, and the bundle has {cuda}",
                f"Take a release that is built for CUDA {cuda}.",
                _source(builds[0]),
            )
        elif "torch" in row and not is_of(torch, row["torch"]):
            yield Finding(
                part,
                Level.FAIL,
                f"{version} wants torch {row['torch']}, the bundle has {torch}",
                f"Take torch {row['torch']}, or another vLLM.",
                _source(row),
            )
        else:
            yield Finding(part, Level.PASS, f"{version} is built for CUDA {known}", source=_source(row))


def _driver_for_cuda(driver: str, cuda: str, floor: Row) -> Finding:
    check = "driver for CUDA"
    if numbers(driver) < numbers(floor["driver"]):
        found = f"CUDA {cuda} wants driver {floor['driver']} or later, and the bundle has {driver}"
        return Finding(check, Level.FAIL, found, "Take a newer driver.", _source(floor))
    own = next((row for row in table()["cuda_releases"] if is_of(cuda, row["version"])), None)
    if own and numbers(driver) < numbers(own["driver"]):
        found = f"CUDA {cuda} came with {own['driver']}; {driver} runs it, but compiles none of its PTX"
        mend = f"Where CUDA error 222 (unsupported toolchain) is seen, take bundle {SUCCESSOR}."
        return Finding(check, Level.WARN, found, mend, _source(own))
    return Finding(check, Level.PASS, f"{driver} runs CUDA {cuda}", source=_source(floor))


def _floors(bundle: Bundle) -> Iterator[Finding]:
    versions = {
        "driver": bundle["driver"]["version"],
        "container_toolkit": bundle["container_toolkit"]["version"],
        "dcgm": bundle["dcgm"]["version"],
        "dcgm_exporter": bundle["dcgm"]["exporter"],
        "tensorrt": bundle["inference"]["tensorrt"],
    }
    for row in table()["floors"]:
        version = versions[row["part"]]
        if row.get("branch", bundle["driver"]["branch"]) != bundle["driver"]["branch"]:
            continue
        if numbers(version) < numbers(row["version"]):
            yield _vulnerable(row["part"], version, row, f"Take {row.get('take', row['version'])} or later.")
    for row in table()["broken"]:
        if versions[row["part"]] == row["version"]:
            yield Finding(
                row["part"],
                Level.FAIL,
                f"{row['version']} must not be used: {row['why']}",
                f"Take {row['take']} or later.",
                _source(row),
            )


def _package_floors(bundle: Bundle) -> Iterator[Finding]:
    requirements = bundle["inference"]["requirements"]
    for name, version, row in below_floor(locks.pinned(locks.service(requirements))):
        mend = f"Raise it in inference/pyproject.toml and renew {requirements}."
        yield _vulnerable(name, version, row, mend)


def _vulnerable(part: str, version: str, row: Row, mend: str) -> Finding:
    told = f"{version} has {row['cve']}, which {row['version']} mends"
    return Finding(f"{part} vulnerability", Level.WARN, told, mend, _source(row))


def below_floor(pinned: dict[str, str]) -> Iterator[tuple[str, str, Row]]:
    """Of Python packages, those with a known vulnerability: name, version, and the row that says so."""
    for row in table()["package_floors"]:
        version = pinned.get(row["package"])
        if version and Version(version) < Version(row["version"]):
            yield row["package"], version, row


def _libraries(bundle: Bundle) -> dict[str, str]:
    inference = bundle["inference"]
    return {
        **{part: inference[part] for part in ("torch", "vllm", "onnxruntime", "tensorrt")},
        "cudnn": bundle["cudnn"]["version"],
    }


def _build(part: str, version: str, cuda: str) -> Row | None:
    """The row of a library's release that was built for a CUDA version."""
    return next(
        (
            row
            for row in table()["libraries"]
            if row["part"] == part
            and is_of(version, row["version"])
            and any(is_of(cuda, build) for build in row["cuda"])
        ),
        None,
    )


def _cuda_major(cuda: str) -> Row | None:
    return next((row for row in table()["cuda"] if row["major"] == numbers(cuda)[0]), None)


def is_of(version: str, beginning: str) -> bool:
    """Whether 2.10.0 is a 2.10."""
    return numbers(version)[: len(numbers(beginning))] == numbers(beginning)


def numbers(version: str) -> tuple[int, ...]:
    """`535.309.01` as (535, 309, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _source(row: Row | None) -> str:
    if row is None:
        return ""
    told = table()["sources"][row["source"]]
    return f"{told['url']} ({told['date']}){', unverified' if row.get('unverified') else ''}"
