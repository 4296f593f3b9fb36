"""TensorRT: an engine for the GPU of this machine, and a graph through which ONNX Runtime serves it.

Networks are strongly typed, which TensorRT 10 has as a choice and TensorRT 11 alone: the precision is that of
the graph. FP16 comes from the graph of step fp16, INT8 from the QDQ graph of step int8 made for TensorRT; the
calibrators of older releases are gone.
Source: docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x.html
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from maya1_tts.audio import FloatArray
from maya1_tts.engines.onnx_session import NEEDS, Profile, Target, open_session
from maya1_tts.optimize.judge import Bounds, Render, Result, judge
from maya1_tts.optimize.subject import Feed, Subject


class NotHere(Exception):
    """This machine cannot do the step. The message is one sentence that says what is missing."""


@dataclass(frozen=True)
class Key:
    """What an engine depends on: with any other value it has to be built anew."""

    compute_capability: str
    tensorrt: str
    driver_branch: str
    model_sha256: str
    profile: Profile

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def build(
    source: Path,
    folder: Path,
    reference: Render,
    reference_file: Path,
    subject: Subject,
    bounds: Bounds,
    runs: int,
) -> Result:
    """Build the engine unless it is there, judge it as it is served, and put it into place.

    Writes <name>-<key>.engine, .onnx (what to serve), .json (the key), and a timing cache for later builds.
    Raises NotHere, and RuntimeError when TensorRT refuses the graph.
    """
    key = key_of(source, subject.profile)
    name = f"{source.stem}-{key.digest}"
    served, engine, described = (f"{name}.{kind}" for kind in ("onnx", "engine", "json"))
    step = f"tensorrt {source.stem}"
    if (folder / served).exists():
        return Result(step, "written", ["was there already"], file=served)
    timing = folder / f"timing-{key.tensorrt}-sm{key.compute_capability}.cache"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tensorrt-") as temporary:
        drafts = Path(temporary)
        (drafts / engine).write_bytes(_build(source, subject, timing))
        onnx.save(wrapper(source, engine, key), drafts / served)
        (drafts / described).write_text(json.dumps(asdict(key), indent=2) + "\n")
        target = Target("tensorrt", folder)
        session = open_session(str(drafts / served), target, 1, subject.profile)

        def render(feed: Feed) -> FloatArray:
            return np.asarray(session.run(None, feed)[0]).reshape(-1)

        result = judge(step, reference, render, subject, bounds, runs)
        result.file, result.bytes = served, (drafts / engine).stat().st_size
        result.reference_bytes = reference_file.stat().st_size
        if not result.why:
            for file in (engine, described, served):
                os.replace(drafts / file, folder / file)
    return result


def key_of(source: Path, profile: Profile) -> Key:
    """Raises NotHere unless this machine has TensorRT, a GPU, and an ONNX Runtime that serves engines."""
    if importlib.util.find_spec("tensorrt") is None:
        raise NotHere("the package tensorrt is not installed")
    import onnxruntime
    import pynvml
    import tensorrt

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError as error:
        raise NotHere(f"no NVIDIA GPU answers ({error})") from None
    if NEEDS["tensorrt"][0] not in onnxruntime.get_available_providers():
        raise NotHere(f"this ONNX Runtime has no {NEEDS['tensorrt'][0]}, through which an engine is served")
    with source.open("rb") as graph:
        sha256 = hashlib.file_digest(graph, "sha256").hexdigest()
    return Key(f"{major}{minor}", tensorrt.__version__, driver.split(".")[0], sha256, profile)


def _build(source: Path, subject: Subject, timing: Path) -> bytes:
    import tensorrt as trt

    model = onnx.load(source)
    subject.prepare(model)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RuntimeError(f"TensorRT cannot read {source}: {errors}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, smallest in subject.profile.smallest.items():
        profile.set_shape(name, smallest, subject.profile.usual[name], subject.profile.largest[name])
    config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timing.read_bytes() if timing.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError(f"TensorRT cannot build {source}; its log is above")
    draft = timing.with_name(f".{timing.name}.draft")
    draft.write_bytes(bytes(cache.serialize()))
    os.replace(draft, timing)
    return bytes(engine)


def wrapper(source: Path, engine: str, key: Key) -> onnx.ModelProto:
    """A graph of one node that names the engine beside it, with the inputs and outputs of the source.

    Source: onnxruntime.ai/docs/execution-providers/EP-Context-Design.html
    """
    graph = onnx.load(source, load_external_data=False).graph
    node = helper.make_node(
        "EPContext",
        [value.name for value in graph.input],
        [value.name for value in graph.output],
        name="engine",
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context=engine,
        hardware_architecture=key.compute_capability,
        main_context=1,
        source=NEEDS["tensorrt"][0],
    )
    return helper.make_model(
        helper.make_graph([node], "engine", graph.input, graph.output),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
