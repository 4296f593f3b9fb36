"""Where an ONNX graph runs: on the CPU, with CUDA or with TensorRT, and never elsewhere than asked."""

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maya1_tts.errors import ConfigError

Provider = Literal["cpu", "cuda", "tensorrt"]
Shape = tuple[int, ...]

NEEDS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
"""ONNX Runtime's names, best first: a node goes to the first that can run it. Shapes are the CPU's work."""


@dataclass(frozen=True)
class Target:
    """provider: what runs the graph. engine_cache: the folder for TensorRT's engines, which it needs."""

    provider: Provider = "cpu"
    engine_cache: Path | None = None


CPU = Target()


@dataclass(frozen=True)
class Profile:
    """The smallest, usual and largest shape of each input, for which TensorRT builds one engine."""

    smallest: Mapping[str, Shape]
    usual: Mapping[str, Shape]
    largest: Mapping[str, Shape]


def providers(
    target: Target, available: Collection[str], profile: Profile | None = None
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers with their options, best first. available: the names that this build has.

    Raises ConfigError when the wanted one is missing, since ONNX Runtime would go on without a word, slowly.
    profile: without one, TensorRT builds for the shapes that come, and again whenever they leave that range.
    Options: onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    wanted = NEEDS[target.provider]
    missing = [name for name in wanted if name not in available]
    if missing:
        raise ConfigError(
            f"MAYA1_TTS_ONNX_PROVIDER={target.provider!r} needs {missing[0]}, and this ONNX Runtime has only "
            f"{', '.join(sorted(available))}; allowed: 'cpu', or an image with onnxruntime-gpu."
        )
    options: dict[str, dict[str, str]] = {name: {} for name in wanted}
    if target.provider == "tensorrt":
        if target.engine_cache is None:
            raise ConfigError(
                "MAYA1_TTS_ONNX_PROVIDER='tensorrt' needs MAYA1_TTS_TENSORRT_CACHE_DIR, since building an "
                "engine takes minutes; allowed: a folder that can be written and outlives the container."
            )
        options["TensorrtExecutionProvider"] = _tensorrt(target.engine_cache, profile)
    return list(options.items())


def _tensorrt(cache: Path, profile: Profile | None) -> dict[str, str]:
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        # The precision is that of the graph, which `maya1-tts optimize` has judged. With neither flag ONNX
        # Runtime builds a strongly typed network (onnxruntime#24298), the only kind that TensorRT 11 has.
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
    }
    if profile:
        options |= {
            "trt_profile_min_shapes": _shapes(profile.smallest),
            "trt_profile_opt_shapes": _shapes(profile.usual),
            "trt_profile_max_shapes": _shapes(profile.largest),
        }
    return options


def _shapes(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def open_session(
    model: bytes | str, target: Target, threads: int, profile: Profile | None = None, fuse_int8: bool = True
) -> Any:
    """An onnxruntime.InferenceSession. model: the serialised graph, or a path.

    fuse_int8: without it, QuantizeLinear and DequantizeLinear stay nodes of their own, and what is between
    them is computed in float.

    Raises ConfigError when the wanted provider is missing or does not start. What ONNX Runtime raises for a
    broken graph is passed on.
    """
    import onnxruntime

    chosen = providers(target, onnxruntime.get_available_providers(), profile)
    if target.provider != "cpu":
        # CUDA, cuDNN and TensorRT come from packages of their own, which are on no library path.
        onnxruntime.preload_dlls()
        if target.provider == "tensorrt" and importlib.util.find_spec("tensorrt"):
            importlib.import_module("tensorrt")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Planning memory for each shape costs a third more, and saves no time when shapes never repeat.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_quant_qdq", "0" if fuse_int8 else "1")
    session = onnxruntime.InferenceSession(model, options, providers=chosen)
    require_provider(target, session.get_providers())
    return session


def require_provider(target: Target, started: list[str]) -> None:
    """Raises ConfigError unless the wanted one is among those started: it may be built in and still fail."""
    wanted = NEEDS[target.provider][0]
    if wanted not in started:
        raise ConfigError(
            f"MAYA1_TTS_ONNX_PROVIDER={target.provider!r}: {wanted} did not start, only "
            f"{', '.join(started)}; the log above says which library is missing or which driver is too old."
        )
