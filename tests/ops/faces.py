"""Ways to run an operator by its name: torch, TorchScript, its ONNX body, both exporters' files."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from carafe_deploy.operators import OPERATORS
from carafe_deploy.operators.specification import PLUGIN_ATTRIBUTES, Argument
from carafe_deploy.ops import plain_operators
from carafe_deploy.ops._torch_library import torch_library
from carafe_deploy.types import DOMAIN
from tests.ops.cases import Attributes, Case

Outputs = tuple[np.ndarray, ...]

_CLOSE = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2.0**-11, 1e-5),
    torch.bfloat16: (2.0**-8, 1e-5),
}
#: A coordinate of some 300 pixels after an exponential.
_BOXES = {torch.float64: (1e-13, 1e-13), torch.float32: (2e-6, 2e-4)}
#: (relative, absolute). Half types: the result is rounded once (2**-11, 2**-8), sums are float32.
TOLERANCES: Mapping[str, Mapping[torch.dtype, tuple[float, float]]] = {
    "rpn_candidates": _BOXES,
    "box_candidates": _BOXES,
    # float32: a coordinate of 300 is off by 1.5e-5 and features change by about 4 a pixel.
    "multilevel_roi_align": {
        torch.float64: (1e-9, 1e-9),
        torch.float32: (1e-5, 1e-4),
        torch.float16: (2.0**-11, 1e-4),
        torch.bfloat16: (2.0**-8, 1e-4),
    },
}


def tolerance(name: str, dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute."""
    return TOLERANCES.get(name, _CLOSE)[dtype]


def dtypes(name: str) -> tuple[torch.dtype, ...]:
    """What an operator computes in."""
    if OPERATORS[name].has_feature_maps:
        return tuple(_CLOSE)
    return torch.float32, torch.float64


# --- torch ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def through_python() -> Iterator[None]:
    """Inside, calls go on from libcarafe_torch.so to what is registered where it does not load."""
    torch_library().prefer_pytorch(True)
    try:
        yield
    finally:
        torch_library().prefer_pytorch(False)


#: Ways of a call: C++ calls the kernels, ctypes does, or PyTorch computes.
PATHS = {"C++": contextlib.nullcontext, "ctypes": through_python, "PyTorch": plain_operators}


def operator(name: str) -> Callable[..., Any]:
    """The torch operator; takes its tensors one by one and its attributes by keyword."""
    function, inputs = getattr(torch.ops.carafe, name), OPERATORS[name].inputs
    single, is_list = len(inputs) - inputs[-1].many, inputs[-1].many

    def call(*tensors: Tensor, **attributes: Any) -> Any:
        lists = [list(tensors[single:])] if is_list else []
        return function(*tensors[:single], *lists, *attributes.values())

    return call


def reference(name: str, tensors: Sequence[Tensor], attributes: Attributes) -> Any:
    function = OPERATORS[name].implementation.reference
    return function(*OPERATORS[name].grouped(tensors), *attributes.values())


def typed(name: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A case's inputs, laid out: feature maps in a dtype, what has its own type in that."""
    has_maps = OPERATORS[name].has_feature_maps

    def kind(argument: Argument) -> torch.dtype:
        if argument.is_feature_map or (argument.type == "float32" and not has_maps):
            return dtype
        found: torch.dtype = getattr(torch, argument.type)
        return found

    arguments = map(OPERATORS[name].input_at, range(len(case.inputs)))
    return case.arranged(*map(kind, arguments))


@functools.cache
def truth(name: str, case: Case, dtype: torch.dtype = torch.float32) -> Outputs:
    """float64 results on inputs rounded to a dtype."""
    wide = [
        tensor.double() if tensor.is_floating_point() else tensor
        for tensor in typed(name, case, dtype)
    ]
    return as_outputs(reference(name, wide, case.attributes))


def assert_right(
    name: str, results: Any, expected: Outputs, dtype: torch.dtype = torch.float32
) -> None:
    """Numbers are close, in their dtype; counts and indices are equal."""
    found = (results,) if isinstance(results, Tensor | np.ndarray) else results
    for out, want, argument in zip(found, expected, OPERATORS[name].outputs, strict=True):
        kind = argument.type if argument.type != "T" else str(dtype).removeprefix("torch.")
        assert str(out.dtype).removeprefix("torch.") == kind
        values = out.detach().double().cpu().numpy() if isinstance(out, Tensor) else out
        assert values.shape == want.shape
        if argument.is_feature_map or argument.type == "float32":
            relative, absolute = tolerance(name, getattr(torch, kind))
            np.testing.assert_allclose(values, want, rtol=relative, atol=absolute)
        else:
            np.testing.assert_array_equal(values, want)


class Call(nn.Module):
    """One call of an operator as a network: its tensors in, its results out."""

    def __init__(self, function: Callable[..., Any], attributes: Attributes) -> None:
        super().__init__()
        self.function = function
        self.attributes = dict(attributes)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, **self.attributes)


class Calls(nn.Module):
    """Many independent calls as one network, so that one export serves all cases."""

    def __init__(self, name: str, cases: Sequence[Case]) -> None:
        super().__init__()
        self.calls = nn.ModuleList(Call(operator(name), case.attributes) for case in cases)
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


def run_traced(name: str, case: Case, inputs: tuple[Tensor, ...]) -> Outputs:
    """Trace, save, load and run."""
    traced = torch.jit.trace(Call(operator(name), case.attributes), inputs)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return as_outputs(torch.jit.load(file)(*inputs))


# --- ONNX ----------------------------------------------------------------------------------------


def run_file(model: str | Path | bytes, inputs: Sequence[np.ndarray]) -> Outputs:
    """Run an ONNX file in stock ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return tuple(session.run(None, dict(zip(names, inputs, strict=True))))


def run_body(
    name: str, attributes: Attributes, inputs: Sequence[np.ndarray], opset: int = OPSET
) -> Outputs:
    """Run the function body of one node."""
    spec = OPERATORS[name]
    features = next((x for i, x in enumerate(inputs) if spec.input_at(i).is_feature_map), inputs[0])
    shapes = spec.shapes([array.shape for array in inputs], attributes)
    kinds = [
        features.dtype if each.is_feature_map else np.dtype(each.type) for each in spec.outputs
    ]
    given = [f"input{i}" for i in range(len(inputs))]
    wanted = [f"output{i}" for i in range(len(shapes))]
    node = helper.make_node(
        spec.onnx_name, given, wanted, domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES
    )

    def values(
        names: Sequence[str], dtypes: Sequence[np.dtype], shapes: Sequence[Any]
    ) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
            for name, dtype, shape in zip(names, dtypes, shapes, strict=True)
        ]

    graph = helper.make_graph(
        [node],
        spec.onnx_name,
        values(given, [array.dtype for array in inputs], [array.shape for array in inputs]),
        values(wanted, kinds, shapes),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION
    )
    attach_function_bodies(model)
    onnx.checker.check_model(model, full_check=True)
    return run_file(model.SerializeToString(), inputs)


def run_exported(name: str, cases: Sequence[Case], exporter: str, path: Path) -> dict[str, Outputs]:
    """Export all cases as one float32 network, run it, and return the results by reason."""
    inputs = [tensor for case in cases for tensor in case.arranged(torch.float32)]
    export_operator_network(Calls(name, cases), tuple(inputs), path, exporter=exporter)
    results = run_file(path, [tensor.numpy() for tensor in inputs])
    count = len(OPERATORS[name].outputs)
    return {case.reason: results[i * count : (i + 1) * count] for i, case in enumerate(cases)}


#: Every face that takes one case, by what to call it.
FACES: Mapping[str, Callable[[str, Case, Path], Outputs]] = {
    "reference": lambda name, case, folder: as_outputs(
        reference(name, case.arranged(torch.float32), case.attributes)
    ),
    "operator": lambda name, case, folder: as_outputs(
        operator(name)(*case.arranged(torch.float32), **case.attributes)
    ),
    "torchscript": lambda name, case, folder: run_traced(name, case, case.arranged(torch.float32)),
    "body": lambda name, case, folder: run_body(
        name, case.attributes, [tensor.numpy() for tensor in case.arranged(torch.float32)]
    ),
    "dynamo file": lambda name, case, folder: run_exported(
        name, [case], "dynamo", folder / "dynamo.onnx"
    )[case.reason],
    "torchscript file": lambda name, case, folder: run_exported(
        name, [case], "torchscript", folder / "torchscript.onnx"
    )[case.reason],
}
