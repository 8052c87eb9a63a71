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
from carafe_deploy.operators import BY_ONNX_NAME
from carafe_deploy.operators.specification import Shape
from carafe_deploy.types import DOMAIN, DOMAIN_VERSION, OperatorCall

__all__ = ["attach_function_bodies"]


def attach_function_bodies(model: onnx.ModelProto, calls: Sequence[OperatorCall] = ()) -> None:
    """Add a function to the model for each custom node and point the node at it, in place.

    Args:
        model: whose nodes of domain ``carafe`` have no bodies yet.
        calls: the same operators in the same order, where known; tells the inputs' shapes, which
            may decide how a body computes, when the exporter left none.

    Raises:
        ExportError: the model holds a node of the domain that is no known operator.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    shapes = [call.shapes for call in calls] or _shapes(model, nodes)
    bodies: dict[tuple[str, str], onnx.FunctionProto] = {}
    for node, known in zip(nodes, shapes, strict=True):
        body = _body(node, known, opset)
        node.overload = body.overload
        bodies.setdefault((body.name, body.overload), body)
    model.functions.extend(bodies.values())
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def _shapes(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]
) -> list[Sequence[Shape | None]]:
    """Of each node's inputs: None where there is none, or a size is symbolic or unknown."""
    graph = model.graph
    found: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = [
            dimension.dim_value if dimension.HasField("dim_value") else None
            for dimension in value.type.tensor_type.shape.dim
        ]
    return [[found.get(name) for name in node.input] for node in nodes]


def _body(node: onnx.NodeProto, shapes: Sequence[Shape | None], opset: int) -> onnx.FunctionProto:
    if node.op_type not in BY_ONNX_NAME:
        raise ExportError(
            f"node {node.name!r} is {node.domain}.{node.op_type}, which is no operator here"
        )
    attributes: dict[str, Any] = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    return BY_ONNX_NAME[node.op_type].implementation.body(attributes, shapes, opset)
