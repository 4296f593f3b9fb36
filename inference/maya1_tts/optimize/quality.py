"""How much a changed graph sounds like the one it was made from."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maya1_tts.audio import FloatArray

MEL_BANDS = 80
WINDOW_SECONDS, HOP_SECONDS = 0.040, 0.010
FLOOR_DB = -60.0


@dataclass(frozen=True)
class Difference:
    """Between two renderings of the same input. Lengths in samples; snr_db is inf where they are equal."""

    reference_samples: int
    samples: int
    snr_db: float
    log_mel_db: float
    max_abs: float


def compare(reference: FloatArray, other: FloatArray, rate: int) -> Difference:
    """reference, other: mono [T]. Of different lengths, no sample has a counterpart."""
    if len(reference) != len(other):
        return Difference(len(reference), len(other), -math.inf, math.inf, math.inf)
    return Difference(
        len(reference),
        len(other),
        snr_db(reference, other),
        log_mel_distance_db(reference, other, rate),
        float(np.abs(reference - other).max(initial=0.0)),
    )


def snr_db(reference: FloatArray, other: FloatArray) -> float:
    """10 log10(sum r^2 / sum (r - x)^2): the power of the signal over that of the difference."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    if not np.isfinite(noise):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def log_mel_distance_db(reference: FloatArray, other: FloatArray, rate: int) -> float:
    """The distance of two log-mel spectra: over bands the root mean square, over frames the mean, in dB.

    d = mean_t sqrt(mean_b (R[t, b] - X[t, b])^2), with R and X = 10 log10 max(mel power, floor). The floor is
    60 dB below the loudest band of the reference, so that what cannot be heard beside it does not count. 0 is
    equal; a change of 1 dB in all bands is 1. Phase does not count, other than in the signal-to-noise ratio.
    """
    if not np.isfinite(other).all():
        return math.inf
    first, second = _mel_power(reference, rate), _mel_power(other, rate)
    floor = max(float(first.max(initial=0.0)) * 10 ** (FLOOR_DB / 10), 1e-12)
    distance = 10 * np.log10(np.maximum(first, floor)) - 10 * np.log10(np.maximum(second, floor))
    return float(np.sqrt(np.square(distance).mean(axis=1)).mean())


def _mel_power(samples: FloatArray, rate: int) -> NDArray[np.float64]:
    """[frames, bands] power, in Hann windows of 40 ms every 10 ms; silence is added to fill the last one."""
    window, hop = round(rate * WINDOW_SECONDS), round(rate * HOP_SECONDS)
    frames = max(1, math.ceil((len(samples) - window) / hop) + 1)
    padded = np.zeros((frames - 1) * hop + window)
    padded[: len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    power: NDArray[np.float64] = np.square(np.abs(np.fft.rfft(windows))) @ _mel_filters(window, rate).T
    return power


def _mel_filters(window: int, rate: int) -> NDArray[np.float64]:
    """[bands, window // 2 + 1] triangles, evenly spaced and half overlapping on the mel scale to rate / 2.

    mel(f) = 2595 log10(1 + f / 700). Source: O'Shaughnessy, Speech Communication, 1987.
    """

    def mel(hertz: NDArray[Any]) -> NDArray[Any]:
        return 2595 * np.log10(1 + hertz / 700)

    bins = mel(np.fft.rfftfreq(window, 1 / rate))
    edges = np.linspace(0, float(mel(np.array(rate / 2))), MEL_BANDS + 2)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return filters


def word_errors(expected: list[str], heard: list[str]) -> int:
    """Words to insert, leave out or replace to get from one to the other (Levenshtein distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(expected, 1):
        previous, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (word != other)))
    return row[-1]
