"""Ways to run one operator: TorchScript, its ONNX function body, both exporters' files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor, nn

from carafe_deploy.graph.functions import attach_function_bodies
from carafe_deploy.graph.onnx_export import IR_VERSION, OPSET, export_operator_network
from carafe_deploy.ops._registry import PLUGIN_ATTRIBUTES
from carafe_deploy.types import DOMAIN
from tests.ops.cases import Attributes, Case

Operator = Callable[..., Any]
Outputs = tuple[np.ndarray, ...]


class Call(nn.Module):
    """One call of an operator as a network: its tensors in, its results out."""

    def __init__(self, operator: Operator, attributes: Attributes) -> None:
        super().__init__()
        self.operator = operator
        self.attributes = dict(attributes)

    def forward(self, *tensors: Tensor) -> Any:
        return self.operator(*tensors, **self.attributes)


class Calls(nn.Module):
    """Many independent calls as one network, so that one export serves all cases."""

    def __init__(self, operator: Operator, cases: Sequence[Case]) -> None:
        super().__init__()
        self.calls = nn.ModuleList(Call(operator, case.attributes) for case in cases)
        self.counts = [len(case.inputs) for case in cases]

    def forward(self, *tensors: Tensor) -> list[Any]:
        start, outputs = 0, []
        for call, count in zip(self.calls, self.counts, strict=True):
            outputs.append(call(*tensors[start : start + count]))
            start += count
        return outputs


def as_outputs(result: Any) -> Outputs:
    """Results of a torch operator as arrays."""
    tensors = (result,) if isinstance(result, Tensor) else result
    return tuple(tensor.detach().numpy() for tensor in tensors)


def run_traced(operator: Operator, case: Case, inputs: tuple[Tensor, ...]) -> Outputs:
    """Trace, save, load and run."""
    traced = torch.jit.trace(Call(operator, case.attributes), inputs)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return as_outputs(torch.jit.load(file)(*inputs))


def run_file(model: str | Path | bytes, inputs: Sequence[np.ndarray]) -> Outputs:
    """Run an ONNX file in stock ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return tuple(session.run(None, dict(zip(names, inputs, strict=True))))


def run_body(
    op_type: str,
    attributes: Attributes,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
) -> Outputs:
    """Run the function body of one node; `outputs` tells the results' types and shapes."""
    given = [f"input{i}" for i in range(len(inputs))]
    wanted = [f"output{i}" for i in range(len(outputs))]
    node = helper.make_node(
        op_type, given, wanted, domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES
    )

    def values(names: Sequence[str], arrays: Sequence[np.ndarray]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(names, arrays, strict=True)
        ]

    graph = helper.make_graph([node], op_type, values(given, inputs), values(wanted, outputs))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    attach_function_bodies(model)
    onnx.checker.check_model(model, full_check=True)
    return run_file(model.SerializeToString(), inputs)


def run_exported(
    operator: Operator, cases: Sequence[Case], exporter: str, path: Path, num_outputs: int = 1
) -> dict[str, Outputs]:
    """Export all cases as one float32 network, run it, and return the results by reason."""
    inputs = [tensor for case in cases for tensor in case.arranged(torch.float32)]
    export_operator_network(Calls(operator, cases), tuple(inputs), path, exporter=exporter)
    results = run_file(path, [tensor.numpy() for tensor in inputs])
    return {
        case.reason: results[i * num_outputs : (i + 1) * num_outputs]
        for i, case in enumerate(cases)
    }
