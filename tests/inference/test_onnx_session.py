"""A graph runs where the operator said, or the start is refused."""

import re
from pathlib import Path

import onnx
import pytest
from maya1_tts.engines.onnx_session import Profile, Target, open_session, providers, require_provider
from maya1_tts.errors import ConfigError
from test_config import run

CPU_ONLY = ["AzureExecutionProvider", "CPUExecutionProvider"]
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
PROFILE = Profile({"codes": (1, 4)}, {"codes": (8, 28)}, {"codes": (64, 256)})


def test_each_target_has_its_providers_best_first() -> None:
    assert providers(Target("cpu"), GPU) == [("CPUExecutionProvider", {})]
    assert [name for name, _ in providers(Target("cuda"), GPU)] == GPU[1:]
    assert [name for name, _ in providers(Target("tensorrt", Path("/cache")), GPU)] == GPU


def test_tensorrt_keeps_its_engines_and_knows_the_shapes() -> None:
    options = dict(providers(Target("tensorrt", Path("/cache")), GPU, PROFILE))["TensorrtExecutionProvider"]
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == "/cache"
    assert options["trt_profile_min_shapes"] == "codes:1x4"
    assert options["trt_profile_opt_shapes"] == "codes:8x28"
    assert options["trt_profile_max_shapes"] == "codes:64x256"
    assert "trt_profile_min_shapes" not in str(providers(Target("tensorrt", Path("/cache")), GPU))


@pytest.mark.parametrize(
    ("target", "available", "message"),
    [
        (Target("cuda"), CPU_ONLY, "needs CUDAExecutionProvider, and this ONNX Runtime has only Azure"),
        (Target("tensorrt", Path("/c")), CPU_ONLY, "needs TensorrtExecutionProvider"),
        (Target("tensorrt", Path("/c")), GPU[1:], "needs TensorrtExecutionProvider"),
        (Target("tensorrt"), GPU, "needs MAYA1_TTS_TENSORRT_CACHE_DIR"),
    ],
)
def test_what_is_missing_is_refused(target: Target, available: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        providers(target, available)


def test_a_provider_that_is_built_in_and_does_not_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="CUDAExecutionProvider did not start, only CPUExecutionProvider"):
        require_provider(Target("cuda"), ["CPUExecutionProvider"])
    require_provider(Target("cuda"), GPU[1:])


def test_the_cpu_really_runs_a_graph() -> None:
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "negate",
        [tensor("x", onnx.TensorProto.FLOAT, [1])], [tensor("y", onnx.TensorProto.FLOAT, [1])],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = open_session(model.SerializeToString(), Target("cpu"), threads=1)
    assert session.run(None, {"x": [2.0]})[0].tolist() == [-2.0]


def test_the_service_does_not_start_with_a_provider_that_is_not_there() -> None:
    result = run("voices", AUTH="none", ENVIRONMENT="development", ONNX_PROVIDER="cuda")
    assert result.returncode == 2, result.stderr
    assert "MAYA1_TTS_ONNX_PROVIDER='cuda' needs CUDAExecutionProvider" in result.stderr
