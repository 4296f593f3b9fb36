"""What does the service cost over its engine? Aim: 5 % of throughput, 15 ms of TTFA.

The bare engine is the same engine object in a process of its own, driven in a loop through its own protocol:
text normalisation, phonemes and the ONNX session are in it; HTTP, admission, conversion to 16 bit, encoding
and the client of this script are not.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from typing import Any

import harness
from conftest import service_environment
from maya1_tts.bench.load import Limit
from maya1_tts.bench.report import hear
from maya1_tts.bench.texts import MEDIUM, unique
from maya1_tts.config import load_settings
from maya1_tts.engine import Delivery
from maya1_tts.engines import load_engine

LANES = 2


def bare_engine() -> None:
    """Serve measurements: a line of JSON texts in, a line of JSON results out."""
    settings = load_settings()
    engine = load_engine(settings)
    delivery = Delivery(settings.default_voice)
    rate = engine.voices[delivery.voice].sample_rate

    async def speak(text: str) -> tuple[float, float]:
        """Seconds until the first block, and seconds of audio."""
        begin, first, samples = time.perf_counter(), 0.0, 0
        for segment in await asyncio.to_thread(engine.segments, text, delivery):
            async for block in engine.stream(segment, delivery):
                first = first or time.perf_counter() - begin
                samples += len(block)
        return first, samples / rate

    async def measure(texts: list[str], lanes: int) -> dict[str, Any]:
        left, results = iter(texts), {}

        async def lane() -> None:
            for text in left:
                results[text] = await speak(text)

        begin = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(lanes)))
        seconds = time.perf_counter() - begin
        audio = sum(length for _, length in results.values())
        return {"speed": audio / seconds, "audio": audio, "first": [results[text][0] for text in texts]}

    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(asyncio.run(measure(asked["texts"], asked["lanes"]))), flush=True)


def main() -> None:
    quick = harness.quick()
    rounds, count = (1, 4) if quick else (6, 30)
    harness.heading("Overhead over the bare engine", "tests/bench/inference/overhead.py")
    settings = {"ENVIRONMENT": "development", "AUTH": "none", "WORKERS": LANES, "THREADS": 1}
    bare = subprocess.Popen(
        [sys.executable, __file__, "bare"], env=service_environment(**settings),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert bare.stdin is not None
    assert bare.stdout is not None
    new = unique(MEDIUM)

    def ask_bare(texts: list[str], lanes: int) -> dict[str, Any]:
        assert bare.stdin is not None
        assert bare.stdout is not None
        bare.stdin.write(json.dumps({"texts": texts, "lanes": lanes}) + "\n")
        bare.stdin.flush()
        result: dict[str, Any] = json.loads(bare.stdout.readline())
        return result

    try:
        with harness.serving(WORKERS=LANES, THREADS=1, STREAM_DEADLINE_SECONDS=60) as service:

            def ask_service(texts: list[str], clients: int) -> dict[str, Any]:
                load = harness.load_on(service.url, iter(texts))
                [run] = harness.run((load, load.closed(clients, Limit(requests=len(texts)))))
                heard = [hear(seen, "pcm") for seen in run.seen]
                audio = sum(one.audio for one in heard)
                return {"speed": audio / run.seconds, "audio": audio, "first": [one.ttfa for one in heard]}

            def both(count: int, lanes: int, clients: int) -> tuple[dict[str, Any], dict[str, Any]]:
                """The same new texts on both sides, which take turns in going first."""
                texts = list(itertools.islice(new, count))
                [[engine], [whole]] = harness.alternate(
                    1, lambda: ask_bare(texts, lanes), lambda: ask_service(texts, clients), first=next(turn)
                )
                assert abs(engine["audio"] - whole["audio"]) < 0.01, "both spoke the same"
                return engine, whole

            turn = itertools.cycle((0, 1))
            both(4, LANES, LANES)  # warm up
            speeds, waits = [], []
            for _ in range(rounds):
                # Twice as many clients as lanes, so that no lane ever waits for a client.
                engine, whole = both(count, LANES, 2 * LANES)
                speeds.append((engine["speed"], whole["speed"]))
                engine, whole = both(count // 3 + 1, 1, 1)
                waits += [(w - e) * 1000 for w, e in zip(whole["first"], engine["first"], strict=True)]
    finally:
        bare.stdin.close()
        bare.wait()
    loss = [(1 - whole / engine) * 100 for engine, whole in speeds]
    waits.sort()
    harness.markdown(
        ("what", "bare engine", "service", "difference", "aim"),
        [
            (
                f"throughput on {LANES} lanes, audio seconds a second",
                harness.spread([engine for engine, _ in speeds]),
                harness.spread([whole for _, whole in speeds]),
                f"{harness.spread(loss, '.1f')} % less",
                "at most 5 %",
            ),
            (
                "TTFA, one client, the same text on both sides",
                "",
                "",
                f"{waits[len(waits) // 2]:.1f} ms more (95 %: {waits[int(len(waits) * 0.95)]:.1f} ms)",
                "at most 15 ms",
            ),
        ],
    )
    harness.note(f"{rounds} rounds, {count} new texts of two sentences each; median (range). PCM, streamed.")


if __name__ == "__main__":
    bare_engine() if sys.argv[1:] == ["bare"] else main()
