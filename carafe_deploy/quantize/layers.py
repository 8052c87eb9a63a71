"""What of an exported detector can be quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError

__all__ = ["SHORTCUTS", "Layer", "layers_of", "selected"]

#: Name of the sums of shortcuts, and of what CARAFE reassembled with the laterals, as a layer.
SHORTCUTS = "shortcuts"

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_PREFIX = "detector."


@dataclass(frozen=True, repr=False)
class Layer(OneLine):
    """What is quantized together: all nodes that use one weight, or all sums.

    Attributes:
        name: of the weight in the checkpoint, without ``.weight``; or :data:`SHORTCUTS`.
        nodes: names in the file.
        inputs: activations that they read.
        outputs: that they write.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def layers_of(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Convolutions and linear layers in the order of the graph, then the sums.

    Products of two activations, and everything else, are never quantized.

    Raises:
        ArtefactError: there is none, or a node has no name.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    grouped: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type in _WEIGHTED and not node.domain and node.input[1] in weights:
            grouped.setdefault(_weight_name(node, readers, weights), []).append(node)
    if not grouped:
        raise ArtefactError(
            "the file holds no convolution with stored weights, so nothing to quantize: export the "
            "checkpoint again"
        )
    grouped[SHORTCUTS] = _sums(graph, weights)
    layers = tuple(_layer(name, nodes, weights) for name, nodes in grouped.items() if nodes)
    names = [name for layer in layers for name in layer.nodes]
    doubled = [name for name, count in Counter(names).items() if count > 1 or not name]
    if doubled:
        raise ArtefactError(
            f"{len(doubled)} nodes have no name of their own, as {doubled[0]!r}: export the "
            "checkpoint again"
        )
    return layers


def selected(layers: Sequence[Layer], float_layers: Sequence[str]) -> tuple[Layer, ...]:
    """The layers but for those that are to stay in float.

    Raises:
        ArtefactError: one of them is no layer, or none is left.
    """
    known = [layer.name for layer in layers]
    for name in float_layers:
        if name not in known:
            raise ArtefactError(
                f"there is no layer {name!r} to keep in float: choose from {', '.join(known)}"
            )
    kept = tuple(layer for layer in layers if layer.name not in float_layers)
    if not kept:
        raise ArtefactError(
            f"no layer is left to quantize: keep at most {len(known) - 1} of {len(known)} in float"
        )
    return kept


def _layer(name: str, nodes: Sequence[onnx.NodeProto], weights: set[str]) -> Layer:
    inputs = {
        read: None
        for node in nodes
        for read in (node.input if name == SHORTCUTS else node.input[:1])
        if read not in weights
    }
    return Layer(
        name=name,
        nodes=tuple(node.name for node in nodes),
        inputs=tuple(inputs),
        outputs=tuple(node.output[0] for node in nodes),
    )


def _weight_name(
    node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]], weights: set[str]
) -> str:
    """As in the checkpoint; a MatMul's weight is transposed and anonymous, its bias is not."""
    name = node.input[1]
    if not name.startswith(_PREFIX):
        sums = [after for after in readers.get(node.output[0], ()) if after.op_type == "Add"]
        named = [read for after in sums for read in after.input if read in weights]
        name = named[0] if len(named) == 1 else name
    while name.startswith(_PREFIX):  # twice where the file normalises bytes itself
        name = name.removeprefix(_PREFIX)
    return name.removesuffix(".weight").removesuffix(".bias")


def _sums(graph: onnx.GraphProto, weights: set[str]) -> list[onnx.NodeProto]:
    """Additions of two feature maps, one of them straight from a convolution."""
    convolved = {name for node in graph.node if node.op_type == "Conv" for name in node.output}
    return [
        node
        for node in graph.node
        if node.op_type == "Add"
        and convolved.intersection(node.input)
        and not weights.intersection(node.input)
    ]
