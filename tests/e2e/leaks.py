"""Looks for secrets where they must not be: in process lists during a run, in files and logs after it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Secrets come in by stdin, so that the search itself shows none.
PROCESSES = """
import json, os, select, sys, time
needles = {name: value.encode() for name, value in json.loads(sys.stdin.readline()).items()}
found, samples = set(), 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        for part in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{part}", "rb") as file:
                    content = file.read()
                found |= {(name, part) for name, value in needles.items() if value in content}
            except OSError:
                pass
    samples += 1
print(json.dumps({"samples": samples, "found": sorted(found)}))
"""
FILES = """
import json, os, stat, sys
asked = json.loads(sys.stdin.readline())
needles = {name: value.encode() for name, value in asked["needles"].items()}
found = []
for root in asked["roots"]:
    for folder, folders, names in os.walk(root):
        folders[:] = [one for one in folders if os.path.join(folder, one) not in asked["skip"]]
        for path in (os.path.join(folder, name) for name in names):
            try:
                kind = os.lstat(path)
                if stat.S_ISREG(kind.st_mode) and kind.st_size < 64 << 20:
                    with open(path, "rb") as file:
                        content = file.read()
                    found += [(name, path) for name, value in needles.items() if value in content]
            except OSError:
                pass
print(json.dumps(sorted(found)))
"""
KERNEL = ("/proc", "/sys", "/dev/mqueue", "/dev/hugepages")


@dataclass
class Watched:
    """What the process lists of each place showed: a secret's name, and `cmdline` or `environ`."""

    found: list[set[tuple[str, str]]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


def needles(secrets: Mapping[str, Any]) -> dict[str, str]:
    """What to look for: each value, line by line where it has several, and as Ansible reads it off a host."""
    wanted: dict[str, str] = {}
    for name, value in secrets.items():
        if isinstance(value, Mapping):
            wanted |= {f"{name}.{inner}": needle for inner, needle in needles(value).items()}
            continue
        text = str(value)
        lines = [line for line in text.splitlines() if len(line) >= 16 and not line.startswith("-----")]
        # Of a private key in PEM, the lines after the second hold its public half.
        wanted |= {f"{name}[{number}]": line for number, line in enumerate(lines[:2])}
        # The last characters depend on what follows.
        wanted[f"{name} in base64"] = base64.b64encode(text.strip().encode()).decode()[:-4]
    return wanted


@contextmanager
def watch(wanted: Mapping[str, str], places: Sequence[Sequence[str]]) -> Iterator[Watched]:
    """Look at process lists until the end. Places: the commands that run Python there."""
    watched = Watched()
    watchers = [
        subprocess.Popen([*place, "-c", PROCESSES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for place in places
    ]
    for one in watchers:
        assert one.stdin
        one.stdin.write(json.dumps(wanted) + "\n")
        one.stdin.flush()
    try:
        yield watched
    finally:
        for one in watchers:
            answer = json.loads(one.communicate(timeout=60)[0])
            watched.samples.append(answer["samples"])
            watched.found.append({(name, part) for name, part in answer["found"]})


def in_files(
    wanted: Mapping[str, str], roots: Sequence[str | Path], place: Sequence[str] = (sys.executable,)
) -> set[tuple[str, str]]:
    """Pairs of a secret's name and a file that holds it, as far as whoever runs there can read."""
    asked = {"needles": dict(wanted), "roots": [str(root) for root in roots], "skip": KERNEL}
    done = subprocess.run(
        [*place, "-c", FILES], input=json.dumps(asked) + "\n", capture_output=True, text=True, check=True
    )
    return {(name, path) for name, path in json.loads(done.stdout)}


def in_text(wanted: Mapping[str, str], text: str) -> set[str]:
    return {name for name, value in wanted.items() if value in text}
