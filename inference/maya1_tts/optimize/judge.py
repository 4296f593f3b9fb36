"""Whether a result is good enough to be put into place, and how fast it is."""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from maya1_tts.audio import FloatArray
from maya1_tts.engines.onnx_session import CPU, open_session
from maya1_tts.optimize.hearing import can_hear, word_error_rate
from maya1_tts.optimize.int8 import Runtime
from maya1_tts.optimize.quality import Difference, compare
from maya1_tts.optimize.subject import Feed, Subject

Render = Callable[[Feed], FloatArray]


@dataclass(frozen=True)
class Bounds:
    """What is still accepted, in the worst sample: dB, dB, and a rise of the word error rate over all."""

    min_snr_db: float
    max_log_mel_db: float
    max_wer_rise: float = 0.05


@dataclass
class Result:
    """One line of the report. status: written, refused or not run; sizes in bytes, times in milliseconds."""

    step: str
    status: str
    why: list[str] = field(default_factory=list)
    file: str | None = None
    reference_bytes: int | None = None
    bytes: int | None = None
    reference_ms: float | None = None
    ms: float | None = None
    times_faster: float | None = None
    quality: dict[str, Any] | None = None
    bounds: dict[str, float] | None = None


def onnx_render(graph: Path, subject: Subject, runtime: Runtime = "cpu") -> Render:
    """The graph as the service would load it, in ONNX Runtime on one thread of the CPU.

    runtime: what `to_int8` made the graph for. One for TensorRT is not rendered by the CPU's own kernels for
    8 bits, whose sums overflow where it has no VNNI, but with its rounding in float.
    """
    model = onnx.load(graph)
    subject.prepare(model)
    session = open_session(model.SerializeToString(), CPU, threads=1, fuse_int8=runtime == "cpu")
    return lambda feed: np.asarray(session.run(None, feed)[0]).reshape(-1)


def write_if_good(
    step: str,
    target: Path,
    make: Callable[[Path], object],
    reference: Render,
    reference_file: Path,
    subject: Subject,
    bounds: Bounds,
    runs: int,
    runtime: Runtime = "cpu",
) -> Result:
    """Make the file beside its place, judge it, and only then move it there."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        make(draft)
        result = judge(step, reference, onnx_render(draft, subject, runtime), subject, bounds, runs)
        result.file, result.bytes = target.name, draft.stat().st_size
        result.reference_bytes = reference_file.stat().st_size
        if not result.why:
            os.replace(draft, target)
            for file in subject.companions:
                shutil.copyfile(file, target.with_name(target.name + file.suffix))
        return result
    finally:
        draft.unlink(missing_ok=True)


def judge(
    step: str, reference: Render, candidate: Render, subject: Subject, bounds: Bounds, runs: int
) -> Result:
    """Compare over the judging samples, then time both in turn."""
    samples = subject.judging
    pairs = [(reference(sample.feed), candidate(sample.feed)) for sample in samples]
    differences = [compare(first, second, subject.rate) for first, second in pairs]
    quality = {
        "samples": len(samples),
        "seconds": round(sum(len(first) for first, _ in pairs) / subject.rate, 2),
        "snr_db": min(one.snr_db for one in differences),
        "log_mel_db": max(one.log_mel_db for one in differences),
        "max_abs": max(one.max_abs for one in differences),
    }
    texts = [sample.text for sample in samples if sample.text]
    if texts and can_hear():
        for name, side in (("wer_reference", 0), ("wer", 1)):
            spoken = [(text, pair[side]) for text, pair in zip(texts, pairs, strict=True)]
            quality[name] = word_error_rate(spoken, subject.rate)
    why = _beyond(quality, differences, bounds)
    result = Result(step, "refused" if why else "written", why, quality=quality, bounds=asdict(bounds))
    result.reference_ms, result.ms, result.times_faster = _time(reference, candidate, subject, runs)
    return result


def _beyond(quality: dict[str, Any], differences: list[Difference], bounds: Bounds) -> list[str]:
    lengths = [one for one in differences if one.samples != one.reference_samples]
    if lengths:
        first = lengths[0]
        return [
            f"{first.samples} samples where the reference has {first.reference_samples}; allowed: as many"
        ]
    why = []
    if not quality["snr_db"] >= bounds.min_snr_db:
        why.append(f"SNR {quality['snr_db']:.1f} dB; allowed: {bounds.min_snr_db:g} and more")
    if not quality["log_mel_db"] <= bounds.max_log_mel_db:
        why.append(
            f"log-mel distance {quality['log_mel_db']:.2f} dB; allowed: up to {bounds.max_log_mel_db:g}"
        )
    if "wer" in quality and quality["wer"] > quality["wer_reference"] + bounds.max_wer_rise:
        why.append(
            f"word error rate {quality['wer']:.3f} against {quality['wer_reference']:.3f}; "
            f"allowed: {bounds.max_wer_rise:g} more"
        )
    return why


def _time(reference: Render, candidate: Render, subject: Subject, runs: int) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of the ratios of pairs: what slows a moment slows both."""
    times: list[tuple[float, float]] = []
    for run in range(runs):
        for sample in subject.judging[:3]:
            order = (reference, candidate) if run % 2 == 0 else (candidate, reference)
            first, second = (_seconds(render, sample.feed) for render in order)
            times.append((first, second) if run % 2 == 0 else (second, first))
    median = statistics.median
    return (
        1000 * median(a for a, _ in times),
        1000 * median(b for _, b in times),
        median(a / b for a, b in times),
    )


def _seconds(render: Render, feed: Feed) -> float:
    start = time.perf_counter()
    render(feed)
    return time.perf_counter() - start
