"""FP16: weights and values in 16 bits wherever that cannot change how long the sound is."""

import warnings
from pathlib import Path

import onnx
from onnx import helper

from maya1_tts.optimize.graph import decides_lengths, name_nodes

# Random nodes stay, so that the service finds them on loading and replaces them by its fixed noise.
BLOCKED = ["RandomNormalLike"]


def to_fp16(source: Path, target: Path) -> None:
    """Write the graph with FP16 inside; its inputs and outputs keep their types.

    ONNX Runtime's converter also rounds what it is told to leave alone, wherever two such nodes meet. So the
    nodes that may change are cut out, converted as a graph of their own, and put back.
    """
    model = onnx.load(source)
    name_nodes(model)
    lengths = decides_lengths(model)
    kept = [node for node in model.graph.node if node.name in lengths]
    part = _cut_out(model, [node for node in model.graph.node if node.name not in lengths])
    _put_back(model, kept, _convert(part))
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _convert(part: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each weight too small for FP16, which becomes the smallest
        converted: onnx.ModelProto = convert_float_to_float16(
            part, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *BLOCKED]
        )
    return converted


def _cut_out(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """These nodes as a model whose inputs and outputs are the values that cross its border."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    inside = {name for node in nodes for name in node.output if name}
    names = {node.name for node in nodes}
    read = {name for node in nodes for name in node.input if name}
    read_outside = {name for node in model.graph.node if node.name not in names for name in node.input}
    read_outside |= {value.name for value in model.graph.output}
    border_in = [name for name in types if name in read and name not in inside | initializers.keys()]
    border_out = [name for name in types if name in inside & read_outside]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "part",
            [types[name] for name in border_in],
            [types[name] for name in border_out],
            [initializers[name] for name in initializers if name in read],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def _put_back(model: onnx.ModelProto, kept: list[onnx.NodeProto], part: onnx.ModelProto) -> None:
    """Make `kept` and the converted part one graph again, its nodes in the order of computation."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    read = {name for node in kept for name in node.input}
    own = [tensor for tensor in model.graph.initializer if tensor.name in read]
    # A weight that both sides read exists twice now, so the part's own get names of their own.
    renamed = {tensor.name: f"fp16/{tensor.name}" for tensor in part.graph.initializer}
    for tensor in part.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in part.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    kept, own = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept], list(own)
    initializers = [*own, *part.graph.initializer]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in initializers]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend([*kept, *part.graph.node])
    model.graph.initializer.extend(copies)
    OnnxModel(model).topological_sort()
