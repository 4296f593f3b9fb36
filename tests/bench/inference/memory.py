"""Whether the service's memory stays flat: its RSS at every 100 of 2,000 real requests, as a Markdown table.

    .venv-inference/bin/python tests/bench/inference/memory.py [REQUESTS]

The allocator is set as in the image (MALLOC_ARENA_MAX=2, see inference/Dockerfile).
Texts are short and all different, and there is no cache: engine onnx_voice speaks each one. Formats take
turns, every third request is streamed, and every tenth is left by its client after the first sentence.
"""

import os
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "inference"))
from conftest import Service
from maya1_tts.audio import FORMATS

os.environ.setdefault("MALLOC_ARENA_MAX", "2")
STEP, WARM_UP, CLIENTS = 100, 500, 4
WORDS = ["the", "sun", "birds", "sing", "a", "cat", "home", "three", "small", "dogs", "town", "quiet", "day"]


def sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(4, 10))).capitalize() + "."


def request(service: Service, number: int) -> None:
    chance = random.Random(number)
    text = f"Number {number}. {sentence(chance)}"
    body = {"model": "tts-1", "voice": "joe", "response_format": FORMATS[number % len(FORMATS)]}
    if number % 10 == 0:
        body["input"] = f"{text} {sentence(chance)}"
        with service.http.stream("POST", "/v1/audio/speech", json=body | {"stream": True}) as answer:
            assert answer.status_code == 200
            next(answer.iter_raw())
    else:
        answer = service.http.post("/v1/audio/speech", json=body | {"input": text, "stream": number % 3 == 0})
        assert answer.status_code == 200, answer.text
        assert answer.content


def rss_mib(pid: int) -> float:
    """Resident memory in MiB, from proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), ENVIRONMENT="development", AUTH="none", CACHE_MEMORY_BYTES=0)
        try:
            service.wait_until_ready()
            print("| requests | RSS, MiB |\n|---|---|")
            print(f"| 0 | {rss_mib(service.process.pid):.0f} |", flush=True)
            measured = []
            with ThreadPoolExecutor(CLIENTS) as clients:
                for first in range(0, requests, STEP):
                    list(clients.map(lambda number: request(service, number), range(first, first + STEP)))
                    measured.append((first + STEP, rss_mib(service.process.pid)))
                    print(f"| {first + STEP} | {measured[-1][1]:.0f} |", flush=True)
        finally:
            service.stop()
    warm = [(done, rss) for done, rss in measured if done >= min(WARM_UP, requests // 2)]
    slope, _ = np.polyfit(*np.array(warm).T, 1)
    print(f"\nSlope from request {warm[0][0]} on: {slope * 1024:.2f} KiB a request.")


main()
