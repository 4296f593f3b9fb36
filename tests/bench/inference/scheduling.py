"""Do short requests wait for long ones? Syntheses take turns segment by segment, so only a little."""

from __future__ import annotations

import harness
from maya1_tts.bench.load import Limit
from maya1_tts.bench.report import Summary, summarise
from maya1_tts.bench.texts import LONG, SHORT, unique


def main() -> None:
    quick = harness.quick()
    rounds, seconds = (1, 2) if quick else (4, 20)
    harness.heading("Short requests beside long ones", "tests/bench/inference/scheduling.py")
    with harness.serving(STREAM_DEADLINE_SECONDS=30) as service:  # what waits is measured, not refused
        harness.closed(harness.load_on(service.url, unique(SHORT)), 2, Limit(requests=4))  # warm up

        def measure(long_ones: int) -> list[Summary]:
            """The short ones' summary, and the long ones' where there are any."""
            loads = [(harness.load_on(service.url, unique(SHORT)), 1)]
            loads += [(harness.load_on(service.url, unique(LONG)), long_ones)] if long_ones else []
            runs = harness.run(
                *((load, load.closed(clients, Limit(seconds=seconds))) for load, clients in loads)
            )
            return [summarise(run, "pcm", 1.0) for run in runs]

        counts = (0, 2, 8)
        results = harness.alternate(rounds, *(lambda n=n: measure(n) for n in counts))
    rows = []
    alone = [one[0].ttfa_seconds.p95 or 0 for one in results[0]]
    for count, result in zip(counts, results, strict=True):
        short = [one[0] for one in result]
        p50, p95 = ([getattr(one.ttfa_seconds, p) or 0 for one in short] for p in ("p50", "p95"))
        rows.append((
            str(count),
            harness.spread([value * 1000 for value in p50], ".0f"),
            harness.spread([value * 1000 for value in p95], ".0f"),
            harness.spread([beside / without for beside, without in zip(p95, alone, strict=True)], ".1f"),
            harness.failures(short),
            harness.spread([one[1].rtf.p50 or 0 for one in result]) if count else "-",
            str(sum(one[1].underruns for one in result)) if count else "-",
        ))  # fmt: skip
    head = (
        "long streams beside", "short: TTFA p50 ms", "p95 ms", "p95 to that alone", "failed",
        "long: RTF p50", "long: underruns",
    )  # fmt: skip
    harness.markdown(head, rows)
    harness.note(
        "One client with short texts; long ones of about 40 s, PCM, streamed;",
        f"{rounds} rounds of {seconds} s; median (range).",
    )


if __name__ == "__main__":
    main()
