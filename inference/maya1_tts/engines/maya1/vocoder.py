"""Frames to samples: the vocoder, its stage that serves all requests in batches, and the windows of a stream.

The acoustic model knows nothing of it; either can be changed without the other.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from maya1_tts.audio import FloatArray
from maya1_tts.engines.maya1.codec import SnacDecoder, load_decoder
from maya1_tts.engines.maya1.failures import out_of_memory
from maya1_tts.engines.maya1.public_graph import fix_noise
from maya1_tts.engines.maya1.tokens import CODES, FRAME_SAMPLES, LEVELS, Frame
from maya1_tts.engines.onnx_session import Profile, Target, open_session
from maya1_tts.errors import ConfigError

Frames = NDArray[np.int64]

COMPILED_TOLERANCE = 1e-3  # -60 dBFS; float32 alone comes to 1e-6, TF32 on a GPU to more

# The decoder's receptive field is 10 of its finest latents to each side, and a frame has 4: three frames of
# context on each side give exactly the samples of the whole.
CONTEXT = 3


class Vocoder(Protocol):
    """Turns frames into samples, the same ones each time. Called from one thread."""

    name: str  # with the version of whatever else has a say in the samples

    def decode(self, frames: Frames) -> FloatArray:
        """frames: [B, n, 7] codes. Returns [B, 2048 n] samples at 24 kHz within [-1, 1]."""
        ...


def _levels(frames: Frames) -> list[Frames]:
    """[B, n], [B, 2n], [B, 4n] codes, as SNAC wants them."""
    return [np.ascontiguousarray(frames[:, :, slots]).reshape(len(frames), -1) for slots in LEVELS]


def _one_by_one(decode: Callable[[Frames], FloatArray], frames: Frames) -> FloatArray:
    """For a CPU, where a batch is no faster than its parts, and rounds otherwise than each of them alone."""
    return np.concatenate([decode(frames[row : row + 1]) for row in range(len(frames))])


class TorchVocoder:
    def __init__(self, folder: Path, device: str, compile: bool = False) -> None:
        """Raises ConfigError when the folder holds no SNAC at 24 kHz, or when compiled it says otherwise."""
        self.name = "torch compiled" if compile else "torch"
        self._device = torch.device(device)
        decoder = load_decoder(folder).to(self._device)
        self._decoder: Callable[..., torch.Tensor] = compiled(decoder, self._device) if compile else decoder

    def decode(self, frames: Frames) -> FloatArray:
        return _one_by_one(self._decode, frames) if self._device.type == "cpu" else self._decode(frames)

    @torch.inference_mode()
    def _decode(self, frames: Frames) -> FloatArray:
        codes = (torch.from_numpy(level).to(self._device) for level in _levels(frames))
        samples: FloatArray = self._decoder(*codes).squeeze(1).cpu().numpy()
        return samples


@torch.inference_mode()
def compiled(decoder: SnacDecoder, device: torch.device) -> Callable[..., torch.Tensor]:
    """The decoder through torch.compile, for any batch and length, which takes seconds to minutes.

    Raises ConfigError when a compiler is missing, or when its samples are not those of the plain decoder.
    """
    fast = torch.compile(decoder, dynamic=True)
    random = torch.Generator().manual_seed(0)
    for batch, frames in ((1, 4), (1, 7), (2, 7)):
        codes = [torch.randint(0, CODES, (batch, frames << k), generator=random).to(device) for k in range(3)]
        try:
            difference = float((fast(*codes) - decoder(*codes)).abs().max())
        except Exception as error:
            raise ConfigError(
                f"MAYA1_TTS_MAYA1_COMPILE=true: torch.compile failed: {str(error)[:200]}; "
                "allowed: 'false', or an image with a C compiler."
            ) from None
        if not difference <= COMPILED_TOLERANCE:
            raise ConfigError(
                f"MAYA1_TTS_MAYA1_COMPILE=true: compiled samples differ by {difference:.2g} of full scale; "
                f"allowed: {COMPILED_TOLERANCE}. Set it to 'false'."
            )
    return fast


class OnnxVocoder:
    """The same decoder as an exported graph, in ONNX Runtime on the CPU, with CUDA or with TensorRT."""

    def __init__(self, folder: Path, target: Target, threads: int, max_batch: int, max_frames: int) -> None:
        """max_batch, max_frames: the largest window batch that will come.

        Raises ConfigError when the graph is missing or not a SNAC decoder with fixed noise, or when the
        wanted provider is.
        """
        path = folder / "decoder_model.onnx"
        self.name = f"onnxruntime {onnxruntime.__version__} {target.provider}"
        self._cpu = target.provider == "cpu"
        shapes = [
            {f"audio_codes.{level}": (batch, frames << level) for level in range(3)}
            for batch, frames in ((1, 1), (min(8, max_batch), max_frames), (max_batch, max_frames))
        ]
        try:
            model = onnx.load(path, load_external_data=False)
            graph: bytes | str = str(path)  # by its path, since it may have an engine or weights beside it
            if any(node.op_type.startswith("Random") for node in model.graph.node):
                fix_noise(model)
                graph = model.SerializeToString()
            self._session = open_session(graph, target, threads, Profile(*shapes))
            names = [node.name for node in self._session.get_inputs()]
            if names != list(shapes[0]):
                raise ValueError(f"its inputs are {names}")
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{path} cannot be used: {str(error)[:200]}; expected: a SNAC decoder with the inputs "
                "audio_codes.0, .1 and .2, or MAYA1_TTS_MAYA1_VOCODER='torch'."
            ) from None

    def decode(self, frames: Frames) -> FloatArray:
        return _one_by_one(self._decode, frames) if self._cpu else self._decode(frames)

    def _decode(self, frames: Frames) -> FloatArray:
        codes = {f"audio_codes.{level}": codes for level, codes in enumerate(_levels(frames))}
        samples: FloatArray = self._session.run(None, codes)[0]
        return samples.reshape(len(frames), -1)


@dataclass(frozen=True)
class Window:
    """Frames to decode together, of which only `keep` frames behind the first `skip` are wanted."""

    frames: Frames
    skip: int
    keep: int


class Windows:
    """Cuts one stream of frames into windows that, decoded and laid end to end, are the whole.

    Each window gives `hop` new frames between three frames of context to each side; fewer where the stream
    really begins or ends, so that the decoder pads where it pads the whole. The first window gives one frame:
    it is there after 4 frames, 28 tokens. The cuts depend on nothing but the count of frames, so they are the
    same each time.
    """

    def __init__(self, hop: int) -> None:
        self._hop = hop
        self._frames: list[Frame] = []  # from three before `_done` on
        self._first = 0  # which frame of the stream `_frames[0]` is
        self._done = 0  # frames already given out for decoding

    def add(self, frame: Frame) -> Window | None:
        self._frames.append(frame)
        hop = self._hop if self._done else 1
        if self._first + len(self._frames) - self._done < hop + CONTEXT:
            return None
        return self._cut(hop)

    def finish(self) -> Window | None:
        rest = self._first + len(self._frames) - self._done
        return self._cut(rest) if rest else None

    def _cut(self, keep: int) -> Window:
        window = Window(np.array(self._frames, dtype=np.int64), self._done - self._first, keep)
        self._done += keep
        passed = max(0, self._done - CONTEXT - self._first)
        self._first += passed
        del self._frames[:passed]
        return window


@dataclass(frozen=True, eq=False)
class _Job:
    frames: Frames
    samples: "Future[FloatArray]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)


class VocoderStage:
    """One thread that decodes the windows of all streams, those of equal length together.

    While a batch is decoded the next one gathers by itself. When the thread is idle and other streams are
    open, it waits for them up to 3 ms, but not longer than until each of them has a window here.
    """

    WAIT_SECONDS = 0.003

    def __init__(self, vocoder: Vocoder, max_batch: int, on_batch: Callable[[int, float], None]) -> None:
        """on_batch: told how many windows were decoded together, and how long the first waited."""
        self._vocoder, self._max_batch, self._on_batch = vocoder, max_batch, on_batch
        self._jobs: list[_Job] = []
        self._open = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="maya1-vocoder", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """While this is entered, batches may wait a moment for this stream's windows."""
        with self._changed:
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify()

    async def decode(self, window: Window) -> FloatArray:
        """The samples of the frames to keep. Raises ApiError `out_of_memory`."""
        job = _Job(window.frames)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        samples = await asyncio.wrap_future(job.samples)
        return samples[window.skip * FRAME_SAMPLES : (window.skip + window.keep) * FRAME_SAMPLES]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            running = [job for job in batch if job.samples.set_running_or_notify_cancel()]
            if running:
                waited = time.perf_counter() - running[0].arrived
                self._decode(running, waited)

    def _next_batch(self) -> list[_Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            self._changed.wait_for(
                lambda: self._closed or len(self._jobs) >= min(self._open, self._max_batch), self.WAIT_SECONDS
            )
            if self._closed:
                for job in self._jobs:
                    job.samples.cancel()
                return []
            length = len(self._jobs[0].frames)
            batch = [job for job in self._jobs if len(job.frames) == length][: self._max_batch]
            self._jobs = [job for job in self._jobs if job not in batch]
            return batch

    def _decode(self, batch: list[_Job], waited: float) -> None:
        try:
            samples = self._vocoder.decode(np.stack([job.frames for job in batch]))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                batch[0].samples.set_exception(out_of_memory())
                return
            middle = len(batch) // 2
            self._decode(batch[:middle], waited)
            self._decode(batch[middle:], waited)
        except Exception as error:
            for job in batch:
                job.samples.set_exception(error)
        else:
            self._on_batch(len(batch), waited)
            for job, row in zip(batch, samples, strict=True):
                job.samples.set_result(row)
