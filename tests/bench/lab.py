"""Times what a newcomer waits for: `make lab` from nothing, again, and what each role takes.

Removes the lab and its images first, so that "from nothing" is true but for Debian packages and the Python
environment, which are installed already. Prints a Markdown table for docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
NAME = "maya1-bench"
INVENTORY = PROJECT / ".lab" / "bench-inventory"
LAB = ("--name", NAME, "--inventory", str(INVENTORY))


def mayafleet(*arguments: str) -> float:
    """Seconds that one call takes; its output goes to the terminal."""
    started = time.monotonic()
    subprocess.run([str(PROJECT / ".venv/bin/mayafleet"), *arguments], cwd=PROJECT, check=True)
    return time.monotonic() - started


def newest_result() -> dict[str, Any]:
    newest = max((PROJECT / ".runs").glob("*/result.json"))
    result: dict[str, Any] = json.loads(newest.read_text())
    return result


def main() -> None:
    shutil.rmtree(INVENTORY, ignore_errors=True)
    shutil.copytree(PROJECT / "inventories" / "lab", INVENTORY, ignore=shutil.ignore_patterns("lab.yml"))
    mayafleet("lab", "down", *LAB, "--images")
    first = mayafleet("lab", "up", *LAB)
    first_run = newest_result()
    again = mayafleet("lab", "up", *LAB)
    second_run = newest_result()
    mayafleet("lab", "down", *LAB)

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}"
    print(f"\n{time.strftime('%Y-%m-%d')}, {machine}, `make bench`\n")
    print("| what | seconds |\n|---|---|")
    print(
        f"| `mayafleet lab up` from nothing (images made, host booted, provisioned, spoken) | {first:.0f} |"
    )
    print(f"| of these, first run of site.yml | {first_run['elapsed']:.0f} |")
    print(f"| `mayafleet lab up` again | {again:.0f} |")
    print(f"| of these, second run of site.yml | {second_run['elapsed']:.0f} |")
    print("\n| role | first run | share | second run | share |\n|---|---|---|---|---|")
    for role, seconds in sorted(first_run["role_seconds"].items(), key=lambda item: -item[1]):
        other = second_run["role_seconds"].get(role, 0.0)
        print(
            f"| {role} | {seconds:.1f} s | {seconds / first_run['elapsed']:.0%} "
            f"| {other:.1f} s | {other / second_run['elapsed']:.0%} |"
        )


if __name__ == "__main__":
    main()
