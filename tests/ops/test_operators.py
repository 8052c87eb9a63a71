"""Every operator: every case on every face, against the reference in float64."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from carafe_deploy.graph.onnx_export import EXPORTERS
from carafe_deploy.operators import BY_ONNX_NAME, OPERATORS
from tests.ops import faces
from tests.ops.cases import CASES, Case
from tests.ops.one_node import infer_checked, one_node_model

ROOT = Path(__file__).parents[2]

each_name = pytest.mark.parametrize("name", CASES)
each_case = pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{case}") for name in CASES for case in CASES[name]],
)
each_case_and_dtype = pytest.mark.parametrize(
    ("name", "case", "dtype"),
    [
        pytest.param(name, case, dtype, id=f"{name}-{case}-{dtype}")
        for name in CASES
        for case in CASES[name]
        for dtype in faces.dtypes(name)
    ],
)


def test_every_operator_has_cases() -> None:
    assert CASES.keys() == OPERATORS.keys()


@each_case_and_dtype
def test_torch_operator(name: str, case: Case, dtype: torch.dtype) -> None:
    out = faces.operator(name)(*faces.typed(name, case, dtype), **case.attributes)
    faces.assert_right(name, out, faces.truth(name, case, dtype), dtype)


@each_case
@pytest.mark.parametrize("face", ["reference", "torchscript"])
def test_face(name: str, case: Case, face: str, tmp_path: Path) -> None:
    faces.assert_right(name, faces.FACES[face](name, case, tmp_path), faces.truth(name, case))


#: Models in float32 and float16 have opset 18, those in bfloat16, which NumPy lacks, opset 22.
BODIES = ((torch.float32, 18), (torch.float16, 18), (torch.float32, 22))


@pytest.mark.parametrize(
    ("name", "case", "dtype", "opset"),
    [
        pytest.param(name, case, dtype, opset, id=f"{name}-{case}-{dtype}-{opset}")
        for name in CASES
        for case in CASES[name]
        for dtype, opset in BODIES
        # ONNX Runtime 1.32 has no RoiAlign of opset 22 on the CPU: see test_body_roi_align.py.
        if dtype in faces.dtypes(name) and not (name == "multilevel_roi_align" and opset == 22)
    ],
)
def test_function_body(name: str, case: Case, dtype: torch.dtype, opset: int) -> None:
    arrays = [tensor.numpy() for tensor in faces.typed(name, case, dtype)]
    out = faces.run_body(name, case.attributes, arrays, opset)
    faces.assert_right(name, out, faces.truth(name, case, dtype), dtype)


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, faces.Outputs]]:
    """Results of every case of an operator in a file of one exporter."""
    folder = tmp_path_factory.mktemp(request.param)

    @functools.cache
    def run(name: str) -> dict[str, faces.Outputs]:
        return faces.run_exported(name, CASES[name], request.param, folder / f"{name}.onnx")

    return run


@each_case
def test_exported_file(
    exported: Callable[[str], dict[str, faces.Outputs]], name: str, case: Case
) -> None:
    faces.assert_right(name, exported(name)[case.reason], faces.truth(name, case))


# --- as torch sees it ----------------------------------------------------------------------------

#: Cases for what takes long; of an operator without any, the first.
OPCHECKED = (
    *("odd sizes", "odd ratio", "channels last", "strided columns"),
    *("box head: all levels, two images", "no RoI", "fixed sampling ratio"),
    *("one box", "two images differ", "NaN scores never pass"),
)
COMPILED = ("odd ratio", "box head: all levels, two images", "two images differ")


def chosen(name: str, reasons: Sequence[str]) -> Sequence[Case]:
    found = [case for case in CASES[name] if case.reason in reasons]
    return found or CASES[name][:1]


def inputs_of(name: str, case: Case) -> list[Tensor]:
    """That want gradients, if the operator has any."""
    trains = OPERATORS[name].implementation.gradients is not None
    return [tensor.requires_grad_(trains) for tensor in case.arranged(torch.float32)]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case}")
        for name in CASES
        for case in chosen(name, OPCHECKED)
    ],
)
def test_opcheck(name: str, case: Case) -> None:
    inputs, attributes = inputs_of(name, case), case.attributes.values()
    grouped = OPERATORS[name].grouped(inputs)
    torch.library.opcheck(getattr(torch.ops.carafe, name), (*grouped, *attributes))
    if OPERATORS[name].implementation.gradients is not None:
        out = faces.operator(name)(*inputs, **case.attributes)
        torch.library.opcheck(
            getattr(torch.ops.carafe, f"{name}_backward"),
            (torch.randn_like(out), *(tensor.detach() for tensor in inputs), *attributes),
        )


@each_name
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(name: str, backend: str) -> None:
    torch.compiler.reset()  # all operators' calls are one function's, of which torch keeps eight
    case = chosen(name, COMPILED)[0]
    inputs = inputs_of(name, case)
    call = faces.Call(faces.operator(name), case.attributes)
    out = torch.compile(call, fullgraph=True, backend=backend)(*inputs)
    expected = call(*inputs)
    torch.testing.assert_close(out, expected)
    if OPERATORS[name].implementation.gradients is not None:
        found = torch.autograd.grad(out.square().sum(), inputs)
        wanted = torch.autograd.grad(expected.square().sum(), inputs)
        torch.testing.assert_close(found, wanted)


# --- as it is described --------------------------------------------------------------------------


@each_case
def test_shapes_follow_from_the_specification(name: str, case: Case) -> None:
    spec = OPERATORS[name]
    found = spec.shapes([tuple(tensor.shape) for tensor in case.inputs], case.attributes)
    expected = [out.shape for out in faces.truth(name, case)]
    assert [tuple(shape) for shape in found] == expected
    assert [len(each.axes) for each in spec.outputs] == list(map(len, expected))
    flat = spec.flat_inputs(len(case.inputs))
    assert [len(each.axes) for each in flat] == [tensor.dim() for tensor in case.inputs]
    assert list(case.attributes) == list(spec.attributes)


@each_name
def test_the_torch_schema_is_the_specifications(name: str) -> None:
    overload = getattr(torch.ops.carafe, name).default
    assert str(overload._schema) == f"carafe::{name}{OPERATORS[name].schema}"


@each_name
@pytest.mark.parametrize("opset", [18, 22])
def test_the_body_is_of_the_specification(name: str, opset: int) -> None:
    spec, case = OPERATORS[name], CASES[name][0]
    shapes = [tuple(tensor.shape) for tensor in case.inputs]
    for known in (shapes, [None] * len(shapes)):
        body = spec.implementation.body(case.attributes, known, opset)
        assert body.name == spec.onnx_name
        assert list(body.input) == [each.name for each in spec.flat_inputs(len(shapes))]
        assert list(body.output) == [each.name for each in spec.outputs]
        declared = {*spec.attributes, "plugin_version", "plugin_namespace"}
        assert (body.domain, set(body.attribute)) == ("carafe", declared)
        assert onnx.helper.make_opsetid("", opset) in body.opset_import
        found = infer_checked(one_node_model(body, shapes, dict(case.attributes)))
        for inferred, shape, each in zip(
            found, spec.shapes(shapes, case.attributes), spec.outputs, strict=True
        ):
            # ONNX's inference knows no integer that comes from the node, as NMS's rows do.
            assert inferred == list(shape) if each.is_feature_map else len(inferred) == len(shape)


def test_kernels_and_plugins_are_of_the_same_list() -> None:
    header = ROOT / "plugins/kernels/operators.h"
    listed = re.findall(r"^ +X\((\w+), (\w+), \w+\)", header.read_text(), re.MULTILINE)
    assert listed == [(each.name, onnx_name) for onnx_name, each in BY_ONNX_NAME.items()]
