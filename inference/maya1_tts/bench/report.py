"""From what was seen to what a listener gets: numbers, a table, JSON."""

import contextlib
import functools
import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from maya1_tts.bench.client import Answer
from maya1_tts.bench.load import Run, Seen

PCM_RATE = 24_000  # of an answer without X-Sample-Rate: what OpenAI documents for its own `pcm`


class NotAudio(Exception):
    """The body of a 200 is not audio of the format that was asked for."""


@dataclass(frozen=True)
class Heard:
    """One good answer, for a listener whose player starts with the first sound. All in seconds.

    ttfa: from when the request was due to the first byte of sound (in a WAV file, behind the header).
    gaps: between reads that brought audio. stalls: each underrun's length. rtf: whole time over audio time.
    """

    ttfa: float
    gaps: list[float]
    stalls: list[float]
    audio: float
    rtf: float


@dataclass(frozen=True)
class Percentiles:
    """Nearest rank, so each is a value that was measured; None when nothing was."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        if not values:
            return cls(None, None, None)
        p50, p95, p99 = (
            float(value) for value in np.quantile(values, (0.5, 0.95, 0.99), method="inverted_cdf")
        )
        return cls(p50, p95, p99)


@dataclass(frozen=True)
class Summary:
    """One run, as it stands in the JSON report. A request is good when it was answered with 200 and audio.

    goodput: good requests a second whose TTFA is within the objective. send_delay: sent later than due, which
    is the tool's fault. client_cpu: the tool's share of one core; near 1 it measured itself.
    """

    load: str
    seconds: float
    requests: int
    good: int
    statuses: dict[str, int]
    errors: dict[str, int]
    ttfa_seconds: Percentiles
    gap_p99_seconds: float | None
    underruns: int
    stalled_seconds: float
    rtf: Percentiles
    audio_seconds_per_second: float
    requests_per_second: float
    goodput_per_second: float
    send_delay_p99_seconds: float | None
    client_cpu: float


def audio_length(answer: Answer, format: str) -> tuple[float, int]:
    """Seconds of audio, and the bytes in front of it. The body needs only its head when it is WAV or PCM.

    Raises NotAudio.
    """
    size = answer.arrivals[-1][1] if answer.arrivals else 0
    body = bytes(answer.body)
    if format == "pcm":
        rate = answer.headers.get("x-sample-rate", "")
        seconds, offset = size / 2 / (int(rate) if rate.isdigit() else PCM_RATE), 0
    elif body[:4] == b"RIFF":
        offset = body.find(b"data") + 8
        bytes_per_second = int.from_bytes(body[28:32], "little")
        if offset < 44 or not bytes_per_second:
            raise NotAudio("a WAV file without a data chunk")
        # Not the length that the header tells: a stream's header cannot know it.
        seconds = (size - offset) / bytes_per_second
    else:
        seconds, offset = _decoded_length(body), 0
    if seconds <= 0:
        raise NotAudio("no audio in it")
    return seconds, offset


@functools.lru_cache(maxsize=64)  # answers from a cache are equal
def _decoded_length(body: bytes) -> float:
    """Seconds. Raises NotAudio.

    A streamed FLAC file does not tell its length, and libsndfile fails at its end: what is read in small
    steps until then is right to within one step of 3 ms.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(body)) as file:
            rate: int = file.samplerate
            if file.frames < 2**40:
                return len(file.read()) / rate
            count = 0
            with contextlib.suppress(soundfile.LibsndfileError):
                while got := len(file.read(rate // 300)):
                    count += got
            return count / rate
    except soundfile.SoundFileError as error:
        raise NotAudio(str(error)) from None


def hear(seen: Seen, format: str) -> Heard:
    """What a listener had of one answer with status 200. Raises NotAudio.

    Audio is taken to lie evenly in the bytes, which is exact for WAV, PCM and a constant bit rate.
    """
    seconds, offset = audio_length(seen.answer, format)
    size = seen.answer.arrivals[-1][1] - offset
    arrivals = [(time, (count - offset) / size * seconds) for time, count in seen.answer.arrivals]
    arrivals = [(time, audio) for time, audio in arrivals if audio > 0]
    first, buffered = arrivals[0]
    dry = first + buffered  # when the player will have played all that has come
    stalls = []
    for (_, before), (time, audio) in itertools.pairwise(arrivals):
        if time > dry:
            stalls.append(time - dry)
            dry = time
        dry += audio - before
    gaps = [time - before for (before, _), (time, _) in itertools.pairwise(arrivals)]
    return Heard(first - seen.due, gaps, stalls, seconds, (seen.end - seen.due) / seconds)


def listen(run: Run, format: str) -> tuple[list[Heard], Counter[str]]:
    """All good answers of a run, and how often each error came; `not_audio` is one of them."""
    heard, errors = [], Counter(seen.error for seen in run.seen if seen.error)
    for seen in run.seen:
        if seen.answer.status == 200:
            try:
                heard.append(hear(seen, format))
            except NotAudio:
                errors["not_audio"] += 1
    return heard, errors


def summarise(run: Run, format: str, objective: float) -> Summary:
    """objective: seconds within which the first sound shall come."""
    heard, errors = listen(run, format)
    statuses = Counter(str(seen.answer.status) for seen in run.seen if not seen.error)
    stalls = [stall for one in heard for stall in one.stalls]
    return Summary(
        load=run.load,
        seconds=run.seconds,
        requests=len(run.seen),
        good=len(heard),
        statuses=dict(sorted(statuses.items())),
        errors=dict(sorted(errors.items())),
        ttfa_seconds=Percentiles.of([one.ttfa for one in heard]),
        gap_p99_seconds=Percentiles.of([gap for one in heard for gap in one.gaps]).p99,
        underruns=len(stalls),
        stalled_seconds=math.fsum(stalls),
        rtf=Percentiles.of([one.rtf for one in heard]),
        audio_seconds_per_second=math.fsum(one.audio for one in heard) / run.seconds,
        requests_per_second=len(heard) / run.seconds,
        goodput_per_second=sum(one.ttfa <= objective for one in heard) / run.seconds,
        send_delay_p99_seconds=Percentiles.of([seen.sent - seen.due for seen in run.seen]).p99,
        client_cpu=run.client_cpu,
    )


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def table(summaries: Sequence[Summary], objective: float) -> str:
    """Aligned columns, and below them what went wrong."""
    head = (
        "load", "good", "failed", "TTFA p50 ms", "p95", "p99", "gap p99 ms", "underruns", "RTF p50",
        "audio s/s", "req/s", f"in {objective * 1000:g} ms/s",
    )  # fmt: skip
    rows = [head]
    for one in summaries:
        ttfa = one.ttfa_seconds
        rows.append((
            one.load, str(one.good), str(one.requests - one.good),
            milliseconds(ttfa.p50), milliseconds(ttfa.p95), milliseconds(ttfa.p99),
            milliseconds(one.gap_p99_seconds), str(one.underruns),
            "-" if one.rtf.p50 is None else f"{one.rtf.p50:.3f}",
            f"{one.audio_seconds_per_second:.2f}", f"{one.requests_per_second:.2f}",
            f"{one.goodput_per_second:.2f}",
        ))  # fmt: skip
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    for one in summaries:
        refused = {status: count for status, count in one.statuses.items() if status != "200"}
        failures = [f"{name} x {count}" for name, count in (refused | one.errors).items()]
        if failures:
            lines.append(f"{one.load}: failed with {', '.join(failures)}")
        if one.client_cpu > 0.8:
            lines.append(
                f"{one.load}: the tool itself used {one.client_cpu:.0%} of a core and may be the limit"
            )
    return "\n".join(lines)
