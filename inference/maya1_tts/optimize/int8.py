"""INT8: convolutions in 8 bits, static, with scales from calibration.

Dynamic quantisation is not offered: it is meant for matrix products with constant weights, and neither a
Piper voice nor SNAC's decoder has one. A Maya1 checkpoint is quantised by the tools of vLLM, not here.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import onnx

from maya1_tts.optimize.graph import name_nodes, quantisable
from maya1_tts.optimize.subject import Feed

Runtime = Literal["cpu", "tensorrt"]


def to_int8(
    source: Path, target: Path, calibration: Iterable[Feed], keep_float: Iterable[str], runtime: Runtime
) -> int:
    """Write the graph with quantised convolutions (QDQ, weights per channel). Returns how many there are.

    runtime: whose kernels are served. The CPU's want unsigned activations; TensorRT has symmetric ones alone
    (zero point 0), and no quantised biases. Source: onnxruntime.ai/docs/performance/model-optimizations.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self._feeds = iter(calibration)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    onnxruntime.set_seed(0)  # a graph that draws noise draws the same in each calibration
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # Constants are folded and shapes inferred. Symbolic shapes, which it would also try, are for
        # transformers.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        name_nodes(model)
        onnx.save(model, prepared)
        nodes = quantisable(model, keep_float)
        gpu = runtime == "tensorrt"
        options: dict[str, Any] = {"ActivationSymmetric": True, "QuantizeBias": False} if gpu else {}
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QInt8 if gpu else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=not gpu and not _has_vnni(),
            extra_options=options,
        )
    return len(nodes)


def _has_vnni() -> bool:
    """Without these instructions the sums of 8-bit products overflow, and weights must keep to 7 bits."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
