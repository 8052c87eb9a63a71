"""An operator's ONNX function body, alone in a model, ready to run in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from carafe_deploy.graph.functions import attach_function_bodies
from carafe_deploy.graph.onnx_export import IR_VERSION, OPSET
from carafe_deploy.operators import OPERATORS
from carafe_deploy.operators.specification import PLUGIN_ATTRIBUTES
from carafe_deploy.types import DOMAIN

__all__ = ["prepare"]


def prepare(
    entry: str, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> Callable[[], list[Any]]:
    """A call that runs the body and returns arrays, on as many threads as torch uses.

    Args:
        entry: torch name of the operator.
        inputs: tensors on the CPU, feature maps float32; a list holds one a level.
        attributes: keyword arguments of the operator.
    """
    flat = [each for item in inputs for each in (item if isinstance(item, list) else [item])]
    feeds = {f"x{index}": tensor.numpy() for index, tensor in enumerate(flat)}
    operator = OPERATORS[entry]
    outputs = {
        each.name: TensorProto.FLOAT
        if each.is_feature_map
        else helper.np_dtype_to_tensor_dtype(np.dtype(each.type))
        for each in operator.outputs
    }
    node = helper.make_node(
        operator.onnx_name,
        list(feeds),
        list(outputs),
        domain=DOMAIN,
        **attributes,
        **PLUGIN_ATTRIBUTES,
    )
    given = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    wanted = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    model = helper.make_model(
        helper.make_graph([node], entry, given, wanted),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    attach_function_bodies(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run() -> list[Any]:
        arrays: list[Any] = session.run(None, feeds)
        return arrays

    return run
