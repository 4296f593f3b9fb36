"""Which nodes of a graph may lose precision, told by what hangs on them and not by their names."""

from collections.abc import Iterable

import onnx

ROUNDING = {"Ceil", "Floor", "Round"}


def name_nodes(model: onnx.ModelProto) -> None:
    """Every node gets a name, since the libraries go by names: that of its first output where it has none."""
    for node in model.graph.node:
        node.name = node.name or node.output[0]


def ancestors(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names of these nodes and of all that their values come from."""
    producer = {output: node for node in model.graph.node for output in node.output}
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += [producer[name] for name in node.input if name in producer]
    return found


def decides_lengths(model: onnx.ModelProto) -> set[str]:
    """Nodes whose values are rounded somewhere: in a Piper voice the number of frames of each phoneme.

    The slightest change there makes a phoneme a frame longer or shorter, and shifts all that follows.
    """
    return ancestors(model, (node for node in model.graph.node if node.op_type in ROUNDING))


def quantisable(model: onnx.ModelProto, keep_float: Iterable[str]) -> list[str]:
    """Names of the convolutions that may compute in 8 bits; keep_float: beginnings of names that may not.

    Those behind the last upsampling may not either: they work on the waveform itself, where the error of
    8 bits is a hiss that is heard in every pause.
    """
    upsamplings = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    before = ancestors(model, upsamplings[-1:]) if upsamplings else {node.name for node in model.graph.node}
    lengths = decides_lengths(model)
    # A value is quantised for all that read it, so no 8-bit convolution reads what lengths come from.
    exact = {name for node in model.graph.node if node.name in lengths for name in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name in before
        and node.input[0] not in exact
        and not node.name.startswith(tuple(keep_float))
    ]
