"""Models of one operator node with its function body, and ways to check and run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, inliner, shape_inference

from carafe_deploy.operators import BY_ONNX_NAME
from carafe_deploy.operators.specification import PLUGIN_ATTRIBUTES, Argument

Array = npt.NDArray[Any]


def _element(argument: Argument) -> int:
    """Feature maps are float32 here."""
    if argument.is_feature_map:
        return int(TensorProto.FLOAT)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(argument.type)))


def one_node_model(
    body: onnx.FunctionProto, shapes: Sequence[Sequence[int | str]], attributes: dict[str, Any]
) -> onnx.ModelProto:
    """Float32 inputs of the given shapes into one node that carries ``attributes``."""
    node = helper.make_node(
        body.name, body.input, body.output, domain="carafe", **attributes, **PLUGIN_ATTRIBUTES
    )
    node.overload = body.overload
    operator = BY_ONNX_NAME[body.name]
    outputs = {each.name: each for each in operator.outputs}
    graph = helper.make_graph(
        [node],
        "one node",
        [
            helper.make_tensor_value_info(each.name, _element(each), shape)
            for each, shape in zip(operator.flat_inputs(len(shapes)), shapes, strict=True)
        ],
        [
            helper.make_tensor_value_info(
                name,
                _element(each),
                [f"{name}_{axis}" for axis in range(len(each.axes))],
            )
            for name, each in outputs.items()
        ],
    )
    opset = body.opset_import[0].version
    return helper.make_model(
        graph,
        functions=[body],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("carafe", 1)],
        ir_version=10,
    )


def infer_checked(model: onnx.ModelProto) -> list[list[int | str | None]]:
    """Full check and strict shape inference; the inferred shapes of the outputs."""
    onnx.checker.check_model(model, full_check=True)
    inferred = shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    return [
        [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in inferred.graph.output
    ]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: onnx.ModelProto, *arrays: Array) -> list[Array]:
    names = [value.name for value in model.graph.input]
    return session(model).run(None, dict(zip(names, arrays, strict=True)))


def run_in_type(model: onnx.ModelProto, half: int, *arrays: Array, keep: int = 0) -> list[Array]:
    """Run with all inputs but the first ``keep`` cast to another type, the output cast back."""
    graph, node = model.graph, model.graph.node[0]
    for index, name in enumerate(node.input):
        if index >= keep:
            graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}_half"], to=half))
            node.input[index] = f"{name}_half"
    last = graph.node[-1]
    output = last.output[0]
    last.output[0] = f"{output}_half"
    graph.node.append(helper.make_node("Cast", [last.output[0]], [output], to=TensorProto.FLOAT))
    graph.value_info.append(helper.make_tensor_value_info(last.output[0], half, None))
    onnx.checker.check_model(model, full_check=True)
    return run(model, *arrays)


def intermediates(model: onnx.ModelProto, *arrays: Array) -> list[tuple[str, Array]]:
    """Run with the function inlined: operator and result of every node, several if it has."""
    flat = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    known = {value.name for value in flat.graph.output}
    flat.graph.output.extend(value for value in flat.graph.value_info if value.name not in known)
    names = [value.name for value in flat.graph.output]
    found = dict(zip(names, run(flat, *arrays), strict=True))
    return [(node.op_type, found[name]) for node in flat.graph.node for name in node.output]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
