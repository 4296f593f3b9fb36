"""What was done, on which machine, and what was not: as JSON for programs and as a table for people."""

import importlib.metadata
import json
import math
import os
import platform
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maya1_tts.optimize.judge import Result
from maya1_tts.optimize.subject import Subject

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "pocketsphinx", "snac", "tensorrt", "torch")
COLUMNS = "step", "status", "MB", "ms", "faster", "SNR dB", "log-mel dB", "WER", "why"


def write_report(folder: Path, source: Path, subject: Subject, results: list[Result]) -> None:
    """Write optimize.json and optimize.md. Times are of one thread of this machine's CPU."""
    report: dict[str, Any] = {
        "source": str(source),
        "kind": subject.kind,
        "note": subject.note,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "steps": [_finite(asdict(result)) for result in results],
    }
    (folder / "optimize.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(result) for result in results)]
    lines = [
        f"{report['date']}, {report['machine']}; {', '.join(f'{k} {v}' for k, v in versions().items())}.",
        f"{subject.kind} {source.name}" + (f"; {subject.note}" if subject.note else "") + ".",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    (folder / "optimize.md").write_text("\n".join(lines) + "\n")


def machine() -> str:
    try:
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = None
    name = cpu[1] if cpu else platform.machine()
    return f"{os.cpu_count()} cores of {name}, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def line(result: Result) -> str:
    """The result in one line of text."""
    cells = dict(zip(COLUMNS, _row(result), strict=True))
    numbers = [f"{name} {cells[name]}" for name in COLUMNS[2:-1] if cells[name]]
    return "; ".join([f"{result.step}: {result.status}", *numbers, *result.why])


def _row(result: Result) -> tuple[str, ...]:
    quality = result.quality or {}

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def change(before: float | None, after: float | None, digits: int) -> str:
        return f"{number(before, digits)} -> {number(after, digits)}" if after is not None else ""

    def megabytes(size: int | None) -> float | None:
        return None if size is None else size / 1e6

    return (
        result.step,
        result.status,
        change(megabytes(result.reference_bytes), megabytes(result.bytes), 1),
        change(result.reference_ms, result.ms, 1),
        f"{result.times_faster:.2f}x" if result.times_faster else "",
        number(quality.get("snr_db"), 1),
        number(quality.get("log_mel_db"), 2),
        change(quality.get("wer_reference"), quality.get("wer"), 3),
        "; ".join(result.why),
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity: it becomes null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
