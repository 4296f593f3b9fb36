"""What becomes of the service at ten times the load that it can carry?

Aim: it goes on doing what it can at its best, refuses the rest at once and politely, and does not grow.
"""

from __future__ import annotations

from collections import Counter

import harness
from maya1_tts.bench.load import Limit
from maya1_tts.bench.report import summarise
from maya1_tts.bench.texts import SHORT, unique

TIMES = 10
OBJECTIVE = 1.0  # a first sound later than this, in seconds, is of no use


def main() -> None:
    quick = harness.quick()
    rounds, seconds = (1, 2) if quick else (3, 20)
    harness.heading(f"{TIMES} times overload", "tests/bench/inference/overload.py")
    rows, kept, statuses, polite = [], [], Counter[str](), Counter[bool]()
    with harness.serving() as service:
        pid = service.process.pid
        harness.closed(harness.load_on(service.url, unique(SHORT)), 4, Limit(requests=8))  # warm up
        for number in range(1, rounds + 1):
            peak = harness.closed(
                harness.load_on(service.url, unique(SHORT)), 4, Limit(seconds=seconds), OBJECTIVE
            )
            before = harness.resident_bytes(pid, peak=True)
            load = harness.load_on(service.url, unique(SHORT))
            rate = TIMES * peak.requests_per_second
            [run] = harness.run((load, load.open(rate, Limit(seconds=seconds), seed=number)))
            after = harness.resident_bytes(pid, peak=True)
            one = summarise(run, "pcm", OBJECTIVE)
            kept.append(one.goodput_per_second / peak.goodput_per_second)
            statuses += Counter(one.statuses) + Counter(one.errors)
            polite += Counter(
                "retry-after" in seen.answer.headers for seen in run.seen if seen.answer.status in (429, 503)
            )
            rows.append((
                str(number), f"{peak.goodput_per_second:.1f}", f"{rate:.0f}", f"{one.goodput_per_second:.1f}",
                harness.ms(peak.ttfa_seconds.p95), harness.ms(one.ttfa_seconds.p95),
                f"{before / 2**20:.0f}", f"{after / 2**20:.0f}", harness.ms(one.send_delay_p99_seconds),
            ))  # fmt: skip
        ready = service.status("/readyz")
    head = (
        "round", "peak goodput/s (4 clients)", "offered/s", "goodput/s", "TTFA p95 ms at peak",
        "of the accepted", "most memory MiB before", "after", "sent late p99 ms",
    )  # fmt: skip
    harness.markdown(head, rows)
    answers = ", ".join(f"{name}: {count}" for name, count in sorted(statuses.items()))
    harness.note(
        f"Goodput kept: {harness.spread(kept)} of the peak. Answers: {answers}.",
        f"Refusals with Retry-After: {polite[True]} of {polite.total()}. /readyz afterwards: {ready}.",
        f"Goodput counts a first sound within {OBJECTIVE:g} s. New short texts, PCM, streamed, no cache;",
        f"{seconds} s each; the client shares the machine.",
    )


if __name__ == "__main__":
    main()
