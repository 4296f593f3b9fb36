"""What does batching give the engine maya1? Aim: three times the throughput, at a p95 that is no worse.

With the tiny model: random weights of the real architecture, far narrower. It shows what batching does to the
loop around the model. What it gives a real model on a GPU has to be measured there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from conftest import service_environment
from maya1_tts.bench.load import Limit
from maya1_tts.bench.texts import SHORT, unique
from maya1_tts.config import Settings

CLIENTS = 16


def main() -> None:
    quick = harness.quick()
    rounds, seconds = (1, 3) if quick else (3, 30)
    harness.heading("Batching in the engine maya1", "tests/bench/inference/batching.py")
    if "maya1_max_batch" not in Settings.model_fields:
        print("Not run: this version has no setting MAYA1_TTS_MAYA1_MAX_BATCH.")
        return
    default = Settings.model_fields["maya1_max_batch"].default
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "maya1"
        command = [sys.executable, "-m", "maya1_tts", "make-tiny-model", str(folder)]
        subprocess.run(command, env=service_environment(), check=True)
        settings = {"ENGINE": "maya1", "MODEL_DIR": name, "MAYA1_DEVICE": "cpu"}
        settings |= {
            "QUEUE_LIMIT": 1000,
            "QUEUE_SECONDS": 3600,
            "DEADLINE_SECONDS": 3600,
            "STREAM_DEADLINE_SECONDS": 3600,
        }

        def measure(batch: int) -> harness.Summary:
            with harness.serving(**settings, MAYA1_MAX_BATCH=batch) as service:
                load = harness.load_on(service.url, unique(SHORT))
                harness.closed(load, 1, Limit(requests=2))
                return harness.closed(
                    harness.load_on(service.url, unique(SHORT)), CLIENTS, Limit(seconds=seconds)
                )

        single, batched = harness.alternate(rounds, lambda: measure(1), lambda: measure(default))
    rows = [
        (
            size,
            harness.spread([one.audio_seconds_per_second for one in side]),
            harness.spread([one.ttfa_seconds.p95 or 0 for one in side]),
            harness.spread([one.rtf.p95 or 0 for one in side]),
            harness.failures(side),
        )
        for size, side in (("1", single), (f"{default}, the default", batched))
    ]
    head = ("largest batch", "audio seconds a second", "TTFA p95 s", "RTF p95", "failed")
    harness.markdown(head, rows)
    gains = [
        many.audio_seconds_per_second / one.audio_seconds_per_second
        for one, many in zip(single, batched, strict=True)
    ]
    harness.note(
        f"Throughput: {harness.spread(gains)} times; aim: 3 times, p95 no worse.",
        f"{CLIENTS} clients, PCM, streamed; {rounds} rounds of {seconds} s; median (range).",
        "Tiny model, CPU; not run: a GPU.",
    )


if __name__ == "__main__":
    main()
