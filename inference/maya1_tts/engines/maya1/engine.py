"""Engine `maya1`: text -> prompt -> acoustic model -> frames -> vocoder -> speed, edges -> samples."""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import numpy as np
import torch

from maya1_tts.audio import PEAK, Edges, FloatArray, Stretch
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Segment, Voice
from maya1_tts.engines.maya1.acoustic import CONTEXT_TOKENS, AcousticModel, Sampling
from maya1_tts.engines.maya1.folder import open_folder
from maya1_tts.engines.maya1.prompt import Prompts
from maya1_tts.engines.maya1.runaway import LoopDetector
from maya1_tts.engines.maya1.text import segments as segments_of
from maya1_tts.engines.maya1.text import token_limits
from maya1_tts.engines.maya1.tokens import AUDIO_END, SAMPLE_RATE, BadTokens, Frame, FrameReader
from maya1_tts.engines.maya1.vocoder import CONTEXT, OnnxVocoder, TorchVocoder, Vocoder, VocoderStage, Windows
from maya1_tts.engines.maya1.voices import PRESETS, description
from maya1_tts.engines.onnx_session import Target
from maya1_tts.engines.revision import sound_revision
from maya1_tts.errors import ApiError, ConfigError
from maya1_tts.metrics import Metrics
from maya1_tts.normalize import EMOTION_TAGS

log = logging.getLogger(__name__)

# Upstream's. A seed that nobody asks for is fixed: equal requests sound equal, and a cache can hold them.
SEED, TEMPERATURE, TOP_P, REPETITION_PENALTY = 0, 0.4, 0.9, 1.1
VOCODER_BATCH = 64


class Maya1Engine:
    name = "maya1"
    options = frozenset({"description", "seed", "temperature", "top_p", "repetition_penalty"})
    tags: tuple[str, ...] = EMOTION_TAGS

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigError when the model folder, the device or the environment does not allow it."""
        folder = open_folder(settings.model_dir / "maya1")
        if folder.random_weights and settings.environment == "production":
            raise ConfigError(
                f"{folder.path} is a tiny model with random weights, which is refused while "
                "MAYA1_TTS_ENVIRONMENT='production'; allowed: Maya1's own weights."
            )
        self._metrics = metrics
        self._hop = settings.maya1_hop_frames
        self.lanes = settings.maya1_max_batch
        self._prompts = Prompts(folder.model / "tokenizer.json")
        device = _device(settings)
        vocoder: Vocoder
        if settings.maya1_vocoder == "onnx":
            target = Target(settings.onnx_provider, settings.tensorrt_cache_dir)
            largest = settings.maya1_hop_frames + 2 * CONTEXT
            vocoder = OnnxVocoder(folder.snac, target, settings.threads, VOCODER_BATCH, largest)
        else:
            vocoder = TorchVocoder(folder.snac, device, settings.maya1_compile)
        self._acoustic = self._load_acoustic(settings, folder.model, device)
        self._vocoder = VocoderStage(vocoder, VOCODER_BATCH, self._decoded)
        revision = self._revision(settings, folder.revision, vocoder, device)
        self.voices: Mapping[str, Voice] = {
            id: Voice(id, preset.name, "en", SAMPLE_RATE, revision) for id, preset in PRESETS.items()
        }

    def _load_acoustic(self, settings: Settings, model: Path, device: str) -> AcousticModel:
        if settings.maya1_backend == "vllm":
            from maya1_tts.engines.maya1.vllm_model import VllmModel

            return VllmModel(model, settings.maya1_max_batch, settings.maya1_gpu_memory)
        from maya1_tts.engines.maya1.transformers_model import TransformersModel

        return TransformersModel(
            model,
            device,
            settings.maya1_max_batch,
            settings.maya1_constrain_tokens,
            settings.maya1_compile,
            self._metrics.acoustic_batch.observe,
        )

    def _revision(self, settings: Settings, weights: str, vocoder: Vocoder, device: str) -> str:
        """Over all that has a say in the samples, besides text and delivery."""
        vllm = ["vllm"] if settings.maya1_backend == "vllm" else []
        code = sound_revision("inflect", "numpy", "snac", "tokenizers", "torch", "transformers", *vllm)
        parts = (
            code, weights, settings.maya1_backend, vocoder.name, device, settings.maya1_constrain_tokens,
            settings.maya1_hop_frames, SEED, TEMPERATURE, TOP_P, REPETITION_PENALTY,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def segments(self, text: str, delivery: Delivery) -> list[Segment]:
        segments = segments_of(text)
        for segment in segments:
            self._prompt(segment, delivery)  # an error is better now than in the middle of the speech
        if delivery.speed == 1:
            return segments
        return [
            dataclasses.replace(segment, seconds=segment.seconds / delivery.speed) for segment in segments
        ]

    async def stream(self, segment: Segment, delivery: Delivery) -> AsyncGenerator[FloatArray, None]:
        prompt, sampling = self._prompt(segment, delivery)
        stretch = Stretch(SAMPLE_RATE, delivery.speed) if delivery.speed != 1 else None
        edges = Edges(SAMPLE_RATE, segment.pause / delivery.speed)
        with self._vocoder.stream():
            async with contextlib.aclosing(self._speech(prompt, sampling)) as speech:
                async for samples in speech:
                    # SNAC's samples are within [-1, 1]; a fixed gain leaves codecs the room above -1 dBFS.
                    scaled = samples * np.float32(PEAK)
                    block = edges.write(stretch.write(scaled) if stretch else scaled)
                    if len(block):
                        yield block
        rest = [edges.write(stretch.finish())] if stretch else []
        yield np.concatenate([*rest, edges.finish()])

    def _prompt(self, segment: Segment, delivery: Delivery) -> tuple[list[int], Sampling]:
        least, most = token_limits(segment.text)

        def asked(value: float | None, default: float) -> float:
            return default if value is None else value

        sampling = Sampling(
            seed=SEED if delivery.seed is None else delivery.seed,
            temperature=asked(delivery.temperature, TEMPERATURE),
            top_p=asked(delivery.top_p, TOP_P),
            repetition_penalty=asked(delivery.repetition_penalty, REPETITION_PENALTY),
            min_tokens=least,
            max_tokens=most,
        )
        prompt = self._prompts.ids(description(delivery.voice, delivery.description), segment.text)
        if len(prompt) + most > CONTEXT_TOKENS:
            raise ApiError(
                400,
                "input_too_long",
                f"'description' and a sentence of 'input' are {len(prompt)} tokens together; "
                f"allowed: at most {CONTEXT_TOKENS - most}.",
                "description",
            )
        return prompt, sampling

    async def _speech(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[FloatArray, None]:
        """Samples, window by window, while the acoustic model goes on."""
        windows = Windows(self._hop)
        async with contextlib.aclosing(self._frames(prompt, sampling)) as frames:
            async for frame in frames:
                if window := windows.add(frame):
                    yield await self._vocoder.decode(window)
        if window := windows.finish():
            yield await self._vocoder.decode(window)

    async def _frames(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Frame, None]:
        reader, loop = FrameReader(), LoopDetector()
        count = last = 0
        try:
            async with contextlib.aclosing(self._acoustic.generate(prompt, sampling)) as tokens:
                async for drawn in tokens:
                    self._metrics.acoustic_tokens.inc(len(drawn))
                    last = drawn[-1]
                    for frame in reader.read(token for token in drawn if token != AUDIO_END):
                        count += 1
                        yield frame
                        if loop.add(frame):
                            self._runaway("loop", count)
                            return
            if last != AUDIO_END:
                self._runaway("length", count)
            if not count:
                raise BadTokens("speech ended before the first frame")
        except BadTokens as error:
            log.error("bad tokens", extra={"fields": {"reason": str(error)}})
            raise ApiError(
                500, "bad_tokens", "The model's output is not audio; the service has logged why."
            ) from None
        finally:
            if reader.resyncs:
                self._metrics.token_resyncs.inc(reader.resyncs)
                log.warning("tokens out of step", extra={"fields": {"resyncs": reader.resyncs}})

    def _decoded(self, windows: int, waited: float) -> None:
        self._metrics.vocoder_batch.observe(windows)
        self._metrics.vocoder_wait.observe(waited)

    def _runaway(self, reason: str, frames: int) -> None:
        self._metrics.runaways.labels(reason).inc()
        log.warning("speech did not end by itself", extra={"fields": {"reason": reason, "frames": frames}})

    def close(self) -> None:
        self._acoustic.close()
        self._vocoder.close()


def _device(settings: Settings) -> str:
    """A service that was meant for a GPU never runs on the CPU in silence."""
    if settings.maya1_device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "MAYA1_TTS_MAYA1_DEVICE='cuda', but PyTorch sees no GPU; "
            "allowed: 'cpu', or a GPU with its driver."
        )
    torch.set_num_threads(settings.threads)
    return settings.maya1_device
