"""What a graph is, what it is fed with, and how the service loads it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from maya1_tts.engines.maya1.tokens import LEVELS
from maya1_tts.engines.onnx_session import Profile
from maya1_tts.errors import ConfigError

Feed = dict[str, NDArray[Any]]

PIPER_INPUTS = {"input", "input_lengths", "scales"}
SNAC_INPUTS = [f"audio_codes.{level}" for level in range(3)]
CLIP_FRAMES = 16  # 1.4 s
SENTENCES = (
    "My brother has three dogs and two very small cats.",
    "The river runs past the old mill and into the sea.",
    "The weather was cold and the road was long.",
    "He asked for a glass of water and some bread.",
    "She wrote a letter to her old friend in the city.",
    "Nobody knew why the lights went out last night.",
    "We will meet again on Monday morning at ten.",
    "Seven large ships left the harbour before noon.",
    "The boat went slowly down the river under the bridge.",
    "Is there anything else that you would like to know?",
    "They walked home after the music had stopped.",
    "Wait, I think the answer is a little more difficult!",
    "Please close the door and open the window.",
    "Our neighbours are away, so we feed their birds.",
    "A good book is better than a bad movie.",
    "The first snow of the winter fell on the mountains.",
)


@dataclass(frozen=True)
class Sample:
    """One input, and the English words that it should be heard as, where it is speech."""

    feed: Feed
    text: str | None = None


@dataclass(frozen=True)
class Subject:
    """A kind of graph. Its samples: every other one calibrates, the rest judge, so that none does both."""

    kind: str
    rate: int
    samples: list[Sample]
    prepare: Callable[[onnx.ModelProto], None]  # what the service does to the graph on loading it
    keep_float: tuple[str, ...]  # beginnings of names of nodes that 8 bits harm most
    profile: Profile  # shapes for TensorRT
    companions: tuple[Path, ...] = ()  # files that the service reads besides the graph
    note: str | None = None  # what the samples cannot prove

    @property
    def judging(self) -> list[Sample]:
        return self.samples[::2]

    @property
    def calibrating(self) -> list[Feed]:
        return [sample.feed for sample in self.samples[1::2]]


def subject_of(graph: Path, data: Path | None) -> Subject:
    """data: for a voice a text file, a sentence in each line; for SNAC a .npy file of codes [frames, 7].

    Raises ConfigError when the graph is not one of the service's, or the data does not fit it.
    """
    try:
        inputs = [value.name for value in onnx.load(graph, load_external_data=False).graph.input]
    except Exception as error:
        raise ConfigError(f"{graph} cannot be read as an ONNX graph: {str(error)[:200]}.") from None
    if set(inputs) == PIPER_INPUTS:
        return _piper(graph, data)
    if inputs == SNAC_INPUTS:
        return snac_subject(data)
    raise ConfigError(
        f"{graph} has the inputs {', '.join(inputs)}; allowed: a Piper voice "
        f"({', '.join(sorted(PIPER_INPUTS))}) or SNAC's decoder ({', '.join(SNAC_INPUTS)})."
    )


def _piper(graph: Path, data: Path | None) -> Subject:
    from maya1_tts.engines.onnx_voice import PiperVoice, fix_noise

    config = Path(f"{graph}.json")
    voice = PiperVoice(graph.stem, graph, config, threads=1)
    try:
        lines = data.read_text().splitlines() if data else SENTENCES
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{data} cannot be read as text: {error}.") from None
    texts = [voice.normalize(line) for line in lines if line.strip()]
    _enough(texts, data, "lines")
    for text in texts:
        if not voice.fits(text, 1.0):
            raise ConfigError(f"{data} has a line that is too long; allowed: about 180 letters.")
    samples = [Sample(voice.inputs(voice.phonemize(text)), text if voice.english else None) for text in texts]
    return Subject(
        "Piper voice",
        voice.voice.sample_rate,
        samples,
        fix_noise,
        # The flow sets the phase of all that follows: 8 bits there, and the waveform is another one.
        keep_float=("/flow/",),
        profile=Profile(*({"input": (1, n), "input_lengths": (1,), "scales": (3,)} for n in (8, 128, 512))),
        companions=(config,),
    )


def snac_subject(data: Path | None) -> Subject:
    """SNAC's decoder, fed with `data` or with random codes."""
    from maya1_tts.engines.maya1.tokens import CODES, SAMPLE_RATE, SLOTS

    if data:
        try:
            frames = np.load(data).astype(np.int64)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{data} cannot be read as a .npy file: {error}.") from None
        if frames.ndim != 2 or frames.shape[1] != SLOTS or frames.min() < 0 or frames.max() >= CODES:
            raise ConfigError(
                f"{data} holds {frames.shape}; allowed: [frames, {SLOTS}] codes from 0 to {CODES - 1}."
            )
    else:
        frames = np.random.default_rng(0).integers(0, CODES, (12 * CLIP_FRAMES, SLOTS))
    cuts = range(0, len(frames) + 1, CLIP_FRAMES)
    clips = [frames[start:end] for start, end in pairwise(cuts)]
    _enough(clips, data, f"times {CLIP_FRAMES} frames")
    return Subject(
        "SNAC decoder",
        SAMPLE_RATE,
        [Sample(snac_feed(clip)) for clip in clips],
        prepare=lambda model: None,
        keep_float=(),
        profile=snac_profile((1, 1), (8, 7), (64, 64)),
        note=None if data else "random codes: they show what arithmetic changes, not how speech sounds",
    )


def snac_feed(frames: NDArray[np.int64]) -> Feed:
    """frames: [n, 7] codes in the order of Maya1's tokens."""
    return {
        name: np.ascontiguousarray(frames[:, slots]).reshape(1, -1)
        for name, slots in zip(SNAC_INPUTS, LEVELS, strict=True)
    }


def snac_profile(*sizes: tuple[int, int]) -> Profile:
    """From the smallest, usual and largest (batch, frames)."""
    return Profile(
        *({name: (batch, n << level) for level, name in enumerate(SNAC_INPUTS)} for batch, n in sizes)
    )


def _enough(found: list[Any], data: Path | None, what: str) -> None:
    if len(found) < 2:
        raise ConfigError(f"{data} has {len(found)} {what}; allowed: 2 and more, to calibrate and to judge.")
