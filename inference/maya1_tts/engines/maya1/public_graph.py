"""SNAC's decoder as others export it (onnx-community/snac_24khz-ONNX): a graph that draws its own noise."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from maya1_tts.engines.maya1.codec import CONFIG, NOISE_PLACES, fixed_noise
from maya1_tts.engines.maya1.tokens import SLOTS


def fix_noise(model: onnx.ModelProto) -> None:
    """Give each of the four draws the noise that SnacDecoder reads for the same codes.

    The graph then gives the samples of the decoder in torch. Raises ValueError when it has not four draws.
    """
    draws = [node for node in model.graph.node if node.op_type.startswith("Random")]
    rates = [int(rate) for rate in CONFIG["decoder_rates"]]  # type: ignore[attr-defined]
    if len(draws) != len(rates):
        raise ValueError(
            f"it draws new noise in each run, {len(draws)} times; expected: not, or {len(rates)} times"
        )
    noise, spread = fixed_noise(rates)
    graph = model.graph

    def constant(name: str, value: object) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"noise/{name}"))
        return f"noise/{name}"

    added: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        added.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    last = constant("last", np.array([-1]))
    levels = [
        add("Reshape", [code.name, constant(f"level{k}", np.array([0, -1, 1 << k]))], f"noise/codes{k}")
        for k, code in enumerate(graph.input)
    ]
    codes = add("Concat", levels, "noise/codes", axis=-1)
    products = add("Mul", [codes, constant("spread", spread[:SLOTS])], "noise/products")
    place = add("ReduceSum", [products, last], "noise/place", keepdims=0)
    table, period = constant("table", noise), constant("period", np.int64(NOISE_PLACES))
    row = constant("row", np.array([0, 1, -1]))
    for depth, draw in enumerate(draws):
        name = f"noise/{depth}"
        steps = np.arange(4 * int(np.prod(rates[: depth + 1])))
        moved = add("Add", [place, constant(f"{depth}/spread", spread[SLOTS + depth])], f"{name}/moved")
        start = add("Mod", [moved, period], f"{name}/start")
        column = add("Unsqueeze", [start, last], f"{name}/column")
        index = add("Add", [column, constant(f"{depth}/steps", steps)], f"{name}/index")
        read = add("Gather", [table, index], f"{name}/read")
        add("Reshape", [read, row], draw.output[0])
    rest = [node for node in graph.node if not node.op_type.startswith("Random")]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rest]
    del graph.node[:]
    graph.node.extend([*added, *copies])
