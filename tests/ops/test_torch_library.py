"""The operators registered in C++ and in Python: the same results, errors and ways of either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from carafe_deploy import libraries
from carafe_deploy.operators import OPERATORS
from carafe_deploy.ops import _kernels, plain_operators
from carafe_deploy.ops._torch_library import torch_library
from tests.ops import faces
from tests.ops.cases import CASES
from tests.ops.layouts import LAYOUTS


@pytest.fixture(scope="module")
def kernels_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcarafe_kernels.so and no other library."""
    folder = tmp_path_factory.mktemp("kernels_alone")
    shutil.copy(libraries.require_library("carafe_kernels"), folder)
    return folder


def run(program: str, *arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def lines_of(program: str, *arguments: object, **variables: object) -> list[str]:
    done = run(program, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- who registers -------------------------------------------------------------------------------

WHO = """
import carafe_deploy.ops as ops
from carafe_deploy.ops._torch_library import torch_library
print(torch_library().path)
print(torch_library().reason)
"""


def test_in_this_process_it_is_the_library() -> None:
    assert torch_library().reason == ""
    assert torch_library().path == libraries.require_library("carafe_torch")
    assert all(map(torch_library().has, CASES))
    assert not torch_library().has("carafe_backward")


def test_without_the_library_it_is_python(kernels_alone: Path) -> None:
    path, reason = lines_of(WHO, CARAFE_DEPLOY_PLUGIN=kernels_alone)
    assert path == "None"
    assert reason == f"there is no libcarafe_torch.so beside {kernels_alone}/libcarafe_kernels.so"


def test_switched_off_it_is_python() -> None:
    assert lines_of(WHO, CARAFE_DEPLOY_KERNELS="off") == ["None", "CARAFE_DEPLOY_KERNELS is 'off'"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: b"carafe_torch_abi_version", "libcarafe_torch.so: file too short"),
        (lambda whole: whole[: len(whole) // 2], "libcarafe_torch.so is truncated"),
        (lambda whole: b"", "of another version of carafe-deploy"),
    ],
    ids=["text", "truncated", "another library"],
)
def test_a_library_that_does_not_load(
    kernels_alone: Path, tmp_path: Path, content: Callable[[bytes], bytes], reason: str
) -> None:
    shutil.copy(kernels_alone / "libcarafe_kernels.so", tmp_path)
    whole = libraries.require_library("carafe_torch").read_bytes()
    another = libraries.require_library("carafe_onnxruntime").read_bytes()
    (tmp_path / "libcarafe_torch.so").write_bytes(content(whole) or another)
    path, found = lines_of(WHO, CARAFE_DEPLOY_PLUGIN=tmp_path)
    assert path == "None"
    assert reason in found


SUM = "ops.carafe(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), kernel_size=1, group_size=1, \
scale_factor=1).sum().item()"


def test_loaded_before_it_is_adopted() -> None:
    program = f"import sys, torch; torch.ops.load_library(sys.argv[1])\n{WHO}\nprint({SUM})"
    library = libraries.require_library("carafe_torch")
    assert lines_of(program, library) == [str(library), "", "4.0"]


def test_another_copy_loaded_before_is_told(tmp_path: Path) -> None:
    for name in ("carafe_kernels", "carafe_torch"):
        shutil.copy(libraries.require_library(name), tmp_path)
    program = "import sys, torch; torch.ops.load_library(sys.argv[1]); import carafe_deploy.ops"
    done = run(program, tmp_path / "libcarafe_torch.so")
    assert done.returncode == 1
    message = (
        "torch operator carafe::carafe is registered already, most likely by another libcarafe"
    )
    assert message in done.stderr


def test_after_python_the_library_stands_back(kernels_alone: Path) -> None:
    program = f"""
import sys, torch, carafe_deploy.ops as ops
torch.ops.load_library(sys.argv[1])
print({SUM})
"""
    library = libraries.require_library("carafe_torch")
    done = run(program, library, CARAFE_DEPLOY_PLUGIN=kernels_alone)
    assert (done.returncode, done.stdout) == (0, "4.0\n"), done.stderr
    assert "libcarafe_torch.so: torch did not take its operators" in done.stderr


# --- the same results ----------------------------------------------------------------------------

COMPUTE = """
import sys, torch, carafe_deploy.ops
from carafe_deploy.ops._torch_library import torch_library
assert torch_library().path is None
calls = torch.load(sys.argv[1], weights_only=True)
results = {}
for key, (name, arguments) in calls.items():
    results[key] = getattr(torch.ops.carafe, name)(*arguments)
torch.save(results, sys.argv[2])
"""


def every_call() -> Mapping[str, tuple[str, tuple[Any, ...]]]:
    calls = {}
    for name, cases in CASES.items():
        spec = OPERATORS[name]
        for case in cases:
            for dtype in faces.dtypes(name):
                for layout, arranged in LAYOUTS.items():
                    tensors = arranged(case, faces.typed(name, case, dtype))
                    arguments = (*spec.grouped(tensors), *case.attributes.values())
                    calls[f"{name} {case} {dtype} {layout}"] = (name, arguments)
    return calls


def test_registered_in_python_results_are_the_same_to_the_bit(
    kernels_alone: Path, tmp_path: Path
) -> None:
    calls = every_call()
    torch.save(calls, tmp_path / "calls.pt")
    lines_of(
        COMPUTE, tmp_path / "calls.pt", tmp_path / "out.pt", CARAFE_DEPLOY_PLUGIN=kernels_alone
    )
    expected = torch.load(tmp_path / "out.pt", weights_only=True)
    for key, (name, arguments) in calls.items():
        found = getattr(torch.ops.carafe, name)(*arguments)
        for out, want in zip(as_tuple(found), as_tuple(expected[key]), strict=True):
            assert (out.dtype, out.stride()) == (want.dtype, want.stride()), key
            torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True, msg=key)


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_inputs_of_other_types_are_computed_by_pytorch() -> None:
    for name, cases in CASES.items():
        tensors = faces.typed(name, cases[0], torch.float64)
        if all(each.type != "float32" for each in OPERATORS[name].outputs):
            tensors = tuple(tensor.double() for tensor in tensors)
        found = faces.operator(name)(*tensors, **cases[0].attributes)
        faces.assert_right(name, found, faces.truth(name, cases[0], torch.float64), torch.float64)


@pytest.mark.parametrize("levels", [16, 17])
def test_more_levels_than_the_kernels_take(levels: int) -> None:
    rois = torch.tensor([[[0.0, 0, 4, 4], [1, 1, 3, 2]]])
    maps = [torch.arange(64.0).view(1, 1, 8, 8)] * levels
    arguments = (rois, maps, 2, 2, [1] * levels, 56)
    found = torch.ops.carafe.multilevel_roi_align(*arguments)
    with plain_operators():
        expected = torch.ops.carafe.multilevel_roi_align(*arguments)
    torch.testing.assert_close(found, expected)


TWO_CALLS = '''
import sys, torch
if sys.argv[1:]:
    torch.ops.load_library(sys.argv[1])
else:
    import carafe_deploy.ops

unit = torch.jit.CompilationUnit("""
def two_calls(rois: Tensor, a: Tensor, b: Tensor):
    maps = [a, b]
    first = torch.ops.carafe.multilevel_roi_align(rois, maps, 2, 1, [1, 2], 56)
    return first, torch.ops.carafe.multilevel_roi_align(rois, maps, 3, 1, [1, 2], 56)
""")
rois = torch.tensor([[[0.0, 0, 8, 8]]])
for _ in range(3):  # optimised after the first
    out = unit.two_calls(rois, torch.ones(1, 1, 8, 8), torch.ones(1, 1, 4, 4))
    print([each.sum().item() for each in out])
'''


def test_torchscript_may_give_one_list_to_two_calls(kernels_alone: Path) -> None:
    assert lines_of(TWO_CALLS) == 3 * ["[4.0, 9.0]"]
    assert lines_of(TWO_CALLS, CARAFE_DEPLOY_PLUGIN=kernels_alone) == 3 * ["[4.0, 9.0]"]


def test_without_python_one_list_for_two_calls_is_told() -> None:
    """Torch takes the tensors out; files that are exported now have a list for each call."""
    done = run(TWO_CALLS, libraries.require_library("carafe_torch"))
    assert done.returncode == 1
    assert (
        "a list of tensors is empty, since an earlier call was given the same list" in done.stderr
    )


def test_meta_tensors() -> None:
    for name, cases in CASES.items():
        found = faces.operator(name)(
            *(tensor.to("meta") for tensor in cases[0].inputs), **cases[0].attributes
        )
        shapes = [want.shape for want in faces.truth(name, cases[0])]
        assert [out.shape for out in as_tuple(found)] == shapes


# --- the same errors -----------------------------------------------------------------------------

X = torch.zeros(1, 4, 3, 5)
ROIS, MAPS = torch.zeros(1, 2, 4), [torch.zeros(1, 3, 8, 8)]
BOXES, SCORES = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)


def masks(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


ERRORS: list[tuple[str, tuple[Any, ...]]] = [
    ("carafe", (X, masks(1, 16, 6, 10), 4, 1, 2)),
    ("carafe", (X, masks(1, 16, 6, 10), -3, 1, 2)),
    ("carafe", (X, masks(1, 27, 6, 10), 3, 3, 2)),
    ("carafe", (X, masks(1, 24, 6, 10), 5, 1, 2)),
    ("carafe", (X, masks(1, 9, 6, 9), 3, 1, 2)),
    ("carafe", (X, masks(1, 9, 6, 10), 3, 1, 0)),
    ("carafe", (X, masks(1, 9, 6, 10), 3, 0, 2)),
    ("carafe", (X, masks(1, 9, 6, 10), 3, 1, 2**40)),
    ("carafe", (X, masks(1, 9, 6, 10), 2**21 + 1, 1, 1)),
    ("carafe", (X, masks(1, 9, 6, 10).half(), 3, 1, 2)),
    ("carafe", (X[0], masks(1, 9, 6, 10), 3, 1, 2)),
    ("carafe", (X.int(), masks(1, 9, 6, 10).int(), 3, 1, 2)),
    ("carafe", (X.bool(), masks(1, 9, 6, 10).to(torch.complex64), 3, 1, 2)),
    ("carafe_encoded", (X, masks(1, 9, 3, 5), 3, 1, 2)),
    ("carafe_encoded", (X, masks(2, 36, 3, 5), 3, 1, 2)),
    ("carafe_encoded", (X, masks(1, 36, 3, 5).bfloat16(), 3, 1, 2)),
    ("multilevel_roi_align", (ROIS.half(), MAPS, 7, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS[0], MAPS, 7, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS[0, 0], MAPS, 7, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS, MAPS, 7, 0, [4, 8], 56)),
    ("multilevel_roi_align", (ROIS, [], 7, 0, [], 56)),
    ("multilevel_roi_align", (ROIS, MAPS, 0, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS, MAPS, -7, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS, [MAPS[0]] * 2, 7, -1, [4, 0], 0)),
    ("multilevel_roi_align", (ROIS, [MAPS[0][0]], 7, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS, [MAPS[0].long()], 7, 0, [4], 56)),
    ("multilevel_roi_align", (ROIS, [MAPS[0], MAPS[0].half()], 7, 0, [4, 8], 56)),
    ("multilevel_roi_align", (ROIS, [MAPS[0], MAPS[0][:, :2]], 7, 0, [4, 8], 56)),
    ("multilevel_roi_align", (ROIS, MAPS, 7, 0, [2**31], 56)),
    ("multilevel_roi_align", (ROIS, MAPS, 7, 2**30, [4], 56)),
    ("batched_nms", (BOXES, SCORES.double(), 0.5, 0.0, 5)),
    ("batched_nms", (BOXES.half(), SCORES.half(), 0.5, 0.0, 5)),
    ("batched_nms", (BOXES, SCORES[:, :1], 0.5, 0.0, 5)),
    ("batched_nms", (BOXES, SCORES[0], 0.5, 0.0, 5)),
    ("batched_nms", (BOXES[..., :3], SCORES, 0.5, 0.0, 5)),
    *(("batched_nms", (BOXES, SCORES, value, 0.0, 5)) for value in (-0.1, 1.5, 2.0, 1e-300 + 3)),
    *(("batched_nms", (BOXES, SCORES, value, 0.0, 5)) for value in (1e22, 1e16, 123456.789, 1e5)),
    *(("batched_nms", (BOXES, SCORES, value, 0.0, 5)) for value in (-1e-5, -0.0001, -7e-310)),
    *(("batched_nms", (BOXES, SCORES, float(value), 0.0, 5)) for value in ("nan", "inf", "-inf")),
    ("batched_nms", (BOXES, SCORES, 0.5, float("nan"), 5)),
    ("batched_nms", (BOXES, SCORES, 0.5, float("inf"), 5)),
    ("batched_nms", (BOXES, SCORES, 0.5, 0.0, 0)),
    ("batched_nms", (BOXES, SCORES, 0.5, 0.0, -(2**40))),
]


def error_of(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, str]:
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize(("name", "arguments"), ERRORS)
def test_errors_are_those_of_python(name: str, arguments: tuple[Any, ...]) -> None:
    operator = getattr(torch.ops.carafe, name)
    expected = error_of(OPERATORS[name].implementation.forward, arguments)
    assert expected[0] == "ValueError"
    assert error_of(operator, arguments) == expected
    copies = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in arguments]
    with torch.inference_mode():
        assert error_of(operator, tuple(copies)) == expected


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_errors_of_pytorch_keep_their_type(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise kind("while it computes")

    monkeypatch.setattr(_kernels, "library_for", fail)
    with pytest.raises(kind, match="while it computes"), plain_operators():
        torch.ops.carafe.batched_nms(BOXES, SCORES, 0.5, 0.0, 5)
    with pytest.raises(RuntimeError, match="another"), plain_operators():
        raise RuntimeError("another")


def test_backward_is_refused_as_in_python(kernels_alone: Path) -> None:
    program = """
import torch, carafe_deploy.ops
boxes, scores = torch.rand(1, 1, 2, 4, requires_grad=True), torch.rand(1, 1, 2)
rois, maps = torch.rand(1, 2, 4), [torch.rand(1, 3, 8, 8, requires_grad=True)]
try:
    torch.ops.carafe.multilevel_roi_align(rois, maps, 2, 0, [1], 56).sum().backward()
except RuntimeError as error:
    print(error)
found, _ = torch.ops.carafe.batched_nms(boxes, scores, 0.5, 0.0, 2)
print(found.requires_grad)
"""
    here = lines_of(program)
    assert here == lines_of(program, CARAFE_DEPLOY_PLUGIN=kernels_alone)
    assert "multilevel_roi_align.default but no autograd formula was registered" in here[0]
