"""Give every custom node a function body, so that stock ONNX Runtime runs the file.

A runtime that knows the operator, such as TensorRT with the plugin library, takes that instead.
One body serves all nodes of the same operator unless their attributes change its structure: those
of CARAFE, and the levels of MultilevelRoiAlign. ONNX Runtime tells the bodies of one operator apart
from 1.27 on; an older one takes any of them, which is right for the detectors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from carafe_deploy.errors import ExportError
from carafe_deploy.ops import _bodies
from carafe_deploy.types import DOMAIN, DOMAIN_VERSION, OperatorCall

__all__ = ["attach_function_bodies"]


def attach_function_bodies(model: onnx.ModelProto, calls: Sequence[OperatorCall] = ()) -> None:
    """Add a function to the model for each custom node and point the node at it, in place.

    Args:
        model: whose nodes of domain ``carafe`` have no bodies yet.
        calls: the same operators in the same order, where known; tells the number of channels,
            which decides CARAFE's decomposition, when the exporter left no shapes.

    Raises:
        ExportError: the model holds a node of the domain that is no known operator.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    known: list[int | None] = [call.shapes[0][1] for call in calls]
    channels = known or _channels(model, nodes)
    bodies: dict[tuple[str, str], onnx.FunctionProto] = {}
    for node, count in zip(nodes, channels, strict=True):
        body = _body(node, count, opset)
        node.overload = body.overload
        bodies.setdefault((body.name, body.overload), body)
    model.functions.extend(bodies.values())
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def _channels(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> list[int | None]:
    """Size of axis 1 of each node's first input; None where symbolic or unknown."""
    graph = model.graph
    found: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if len(dimensions) > 1 and dimensions[1].HasField("dim_value"):
            found[value.name] = dimensions[1].dim_value
    return [found.get(node.input[0]) for node in nodes]


def _body(node: onnx.NodeProto, channels: int | None, opset: int) -> onnx.FunctionProto:
    attributes: dict[str, Any] = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    if node.op_type in ("Carafe", "CarafeEncoded"):
        variant = _bodies.choose_carafe_variant(channels)
        k, groups, s = (attributes[n] for n in ("kernel_size", "group_size", "scale_factor"))
        return _bodies.carafe_body(
            kernel_size=k,
            group_size=groups,
            scale_factor=s,
            encoded=node.op_type == "CarafeEncoded",
            opset=opset,
            overload=f"k{k}_g{groups}_s{s}_{variant}",
            variant=variant,
        )
    if node.op_type == "MultilevelRoiAlign":
        ratio, strides = attributes["sampling_ratio"], tuple(attributes["strides"])
        finest = attributes["finest_scale"]
        return _bodies.multilevel_roi_align_body(
            num_levels=len(strides),
            sampling_ratio=ratio,
            strides=strides,
            finest_scale=finest,
            opset=opset,
            overload=f"r{ratio}_f{finest}_l{'_'.join(map(str, strides))}",
        )
    if node.op_type == "BatchedNms":
        return _bodies.batched_nms_body(opset=opset)
    raise ExportError(
        f"node {node.name!r} is {node.domain}.{node.op_type}, which is no operator here"
    )
