"""What a speech recogniser understands, which no spectrum tells. Needs the package pocketsphinx."""

import importlib.util
import re

import numpy as np
import soxr

from maya1_tts.audio import FloatArray, to_int16
from maya1_tts.optimize.quality import word_errors

RECOGNISER_RATE = 16000


def can_hear() -> bool:
    return importlib.util.find_spec("pocketsphinx") is not None


def word_error_rate(spoken: list[tuple[str, FloatArray]], rate: int) -> float:
    """Word errors over words, of English texts (as they are pronounced: no digits) and their audio [T]."""
    errors = words = 0
    for text, samples in spoken:
        expected = re.findall(r"[a-z']+", text.lower())
        errors += word_errors(expected, _hear(samples, rate))
        words += len(expected)
    return errors / words


def _hear(samples: FloatArray, rate: int) -> list[str]:
    import pocketsphinx

    decoder = pocketsphinx.Decoder(samprate=RECOGNISER_RATE, loglevel="FATAL")
    decoder.start_utt()
    heard = to_int16(np.asarray(soxr.resample(samples, rate, RECOGNISER_RATE)))
    decoder.process_raw(heard.tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr.split() if hypothesis else []
