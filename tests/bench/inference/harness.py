"""What the scripts here share: servers as subprocesses, load from this process, paired rounds, Markdown.

Each script answers one question, alternates what it compares within one run, and prints a table for
docs/benchmarks.md. `--quick` shows that a script works, and measures nothing worth keeping.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

PROJECT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(PROJECT / "inference"), str(PROJECT / "tests" / "inference")]

import uvloop  # noqa: E402
from conftest import Redis, Service  # noqa: E402
from maya1_tts.bench.client import Client  # noqa: E402
from maya1_tts.bench.command import speech_body  # noqa: E402
from maya1_tts.bench.load import Limit, Load, Run  # noqa: E402
from maya1_tts.bench.report import Summary, summarise  # noqa: E402

T = TypeVar("T")
PATIENCE = 300.0  # seconds for one request: a bench shows how slow something is, and does not cut it off


def quick() -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="show that it works; the numbers mean nothing")
    return bool(parser.parse_args().quick)


def heading(question: str, command: str) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}"
    load = os.getloadavg()[0]
    print(f"\n### {question}\n")
    print(
        f"{time.strftime('%Y-%m-%d')}, {machine}, load average {load:.1f} before; `{command}`.\n", flush=True
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def note(*sentences: str) -> None:
    print(f"\n{' '.join(sentences)}\n", flush=True)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median, and in brackets the range, of one value for each round."""
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def alternate(rounds: int, *sides: Callable[[], T], first: int = 0) -> list[list[T]]:
    """Each side's result in each round. Every other round goes backwards, so that drift hits all alike.

    first: the number of the first round.
    """
    results: list[list[T]] = [[] for _ in sides]
    for number in range(first, first + rounds):
        order = list(enumerate(sides))
        for place, side in order if number % 2 == 0 else order[::-1]:
            results[place].append(side())
    return results


@contextlib.contextmanager
def serving(redis: bool = False, **settings: object) -> Iterator[Service]:
    """The service without tokens, with or without a cache. It stops when the context ends."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if redis:
            cache = Redis(folder)
            cache.start()
            stack.callback(cache.kill)
            settings |= {"REDIS_URL": cache.url}
        service = Service(folder, ENVIRONMENT="development", AUTH="none", LOG_LEVEL="warning", **settings)
        stack.callback(service.stop)
        yield service.wait_until_ready()


def load_on(url: str, texts: Iterator[str], **fields: Any) -> Load:
    """Load on OpenAI's route of a server. fields: format, stream, voice, model, tls."""
    tls = fields.pop("tls", None)
    asked: dict[str, Any] = {"model": "tts-1", "voice": None, "format": "pcm", "stream": True} | fields
    headers = {"Content-Type": "application/json"}
    client = Client(f"{url}/v1/audio/speech", headers, PATIENCE, tls)
    return Load(client, speech_body(**asked), texts, raw=asked["format"] in ("wav", "pcm"))


def run(*parts: tuple[Load, Awaitable[Run]]) -> list[Run]:
    """Carry out loads, several at the same time; their connections do not outlive them."""

    async def together() -> list[Run]:
        try:
            return list(await asyncio.gather(*(carried_out for _, carried_out in parts)))
        finally:
            for load, _ in parts:
                load.client.close()

    return uvloop.run(together())


def closed(load: Load, clients: int, limit: Limit, objective: float = 1.0, format: str = "pcm") -> Summary:
    [result] = run((load, load.closed(clients, limit)))
    return summarise(result, format, objective)


def failures(summaries: Sequence[Summary]) -> str:
    """How many requests failed, and with what."""
    count = sum((Counter(one.statuses) + Counter(one.errors) for one in summaries), Counter[str]())
    count.subtract({"200": sum(one.good + one.errors.get("not_audio", 0) for one in summaries)})
    return ", ".join(f"{name} x {number}" for name, number in sorted(count.items()) if number) or "none"


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def resident_bytes(pid: int, peak: bool = False) -> int:
    """Memory of a process and of those that it started. peak: the most that each ever had (VmHWM)."""
    children = [
        child
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    return own + sum(resident_bytes(int(child), peak) for child in children)
