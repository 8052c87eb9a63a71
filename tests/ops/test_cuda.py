"""The torch operators on a GPU, through libcarafe_kernels.so and in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.ops import _kernels, batched_nms, plain_operators
from tests.ops import faces, test_carafe, test_nms, test_roi_align
from tests.ops.cases import NMS_CASES, ROI_ALIGN_CASES, Case
from tests.ops.layouts import LAYOUTS, has_layout_of

pytestmark = pytest.mark.gpu

PATHS = {"kernels": nullcontext, "PyTorch": plain_operators}
each_path = pytest.mark.parametrize("path", PATHS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)

OPERATORS = {"Carafe": "carafe", "CarafeEncoded": "carafe_encoded"}


@pytest.fixture(scope="module", autouse=True)
def _library_with_cuda() -> None:
    library = _kernels.kernel_library()
    if library is None or not library.has_cuda:
        pytest.fail("libcarafe_kernels.so has no CUDA kernels: build it with `make plugins`")


def on(device: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies; dense tensors keep their strides."""
    return tuple(tensor.to(device) for tensor in tensors)


@each_path
@each_layout
@test_carafe.each_case
def test_carafe_cases(path: str, layout: str, entry: str, case: Case) -> None:
    operator = getattr(torch.ops.carafe, OPERATORS[entry])
    for dtype in test_carafe.TOLERANCES:
        inputs = LAYOUTS[layout](case, [tensor.to("cuda", dtype) for tensor in case.inputs])
        with PATHS[path]():
            out = operator(*inputs, *case.attributes.values())
        assert out.device == inputs[0].device
        assert out.dtype == dtype
        assert has_layout_of(out, inputs[0])
        test_carafe.assert_close(out.cpu(), test_carafe.truth(entry, case, dtype), dtype)


@each_path
@each_layout
@test_roi_align.each_case
def test_multilevel_roi_align_cases(path: str, layout: str, case: Case) -> None:
    for dtype in test_roi_align.TOLERANCES:
        rois, *maps = case.inputs
        inputs = [rois.float().cuda(), *(feature.to("cuda", dtype) for feature in maps)]
        rois, *maps = LAYOUTS[layout](case, inputs)
        with PATHS[path]():
            out = torch.ops.carafe.multilevel_roi_align(rois, maps, *case.attributes.values())
        assert out.dtype == dtype
        assert has_layout_of(out.flatten(0, 1), maps[0])
        test_roi_align.assert_close(out.cpu(), test_roi_align.truth(case, dtype), dtype)


@each_path
@test_nms.each_case
def test_batched_nms_cases(path: str, case: Case) -> None:
    with PATHS[path]():
        out = batched_nms(*on("cuda", case.inputs), **case.attributes)
    test_nms.assert_same([tensor.cpu().numpy() for tensor in out], test_nms.truth(case))


# --- one call of each, as networks make them -----------------------------------------------------

Operator = Callable[..., Any]


def named(cases: Sequence[Case], reason: str) -> Case:
    return next(case for case in cases if case.reason == reason)


CALLS: dict[str, tuple[Operator, Case, Callable[[], Sequence[np.ndarray]]]] = {}
for _entry, _cases in test_carafe.CASES.items():
    _case = named(_cases, "neck of the detectors")
    CALLS[_entry] = (
        test_carafe.OPERATORS[_entry],
        _case,
        lambda entry=_entry, case=_case: [test_carafe.truth(entry, case)],
    )
_case = named(ROI_ALIGN_CASES, "box head: all levels, two images")
CALLS["MultilevelRoiAlign"] = (
    test_roi_align.operator,
    _case,
    lambda case=_case: [test_roi_align.truth(case)],
)
_case = named(NMS_CASES, "box head: many classes, two images")
CALLS["BatchedNms"] = (batched_nms, _case, lambda case=_case: test_nms.truth(case))

each_call = pytest.mark.parametrize("name", CALLS)


def assert_right(name: str, result: Any) -> None:
    results = (result,) if isinstance(result, Tensor) else result
    for out, expected in zip(results, CALLS[name][2](), strict=True):
        np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-5, atol=1e-4)


@each_call
def test_captured_in_a_cuda_graph_and_replayed_on_other_values(name: str) -> None:
    operator, case, _ = CALLS[name]
    values = on("cuda", case.arranged(torch.float32))
    static = tuple(torch.zeros_like(tensor) for tensor in values)
    operator(*static, **case.attributes)  # loads the library outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = operator(*static, **case.attributes)
    for buffer, tensor in zip(static, values, strict=True):
        buffer.copy_(tensor)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert_right(name, result)


@each_call
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_as_one_graph(name: str, mode: str) -> None:
    operator, case, _ = CALLS[name]
    inputs = on("cuda", case.arranged(torch.float32))
    compiled = torch.compile(faces.Call(operator, case.attributes), fullgraph=True, mode=mode)
    for _ in range(3):  # the third replays the graph that reduce-overhead captures
        result = compiled(*inputs)
    assert_right(name, result)


@each_call
def test_takes_the_current_stream(name: str) -> None:
    """Inputs are written on a side stream behind a long wait: another stream would read zeros."""
    operator, case, _ = CALLS[name]
    values = on("cuda", case.arranged(torch.float32))
    inputs = tuple(torch.zeros_like(tensor) for tensor in values)
    operator(*inputs, **case.attributes)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for buffer, tensor in zip(inputs, values, strict=True):
            buffer.copy_(tensor)
        result = operator(*inputs, **case.attributes)
    stream.synchronize()
    assert_right(name, result)


@each_call
def test_takes_the_device_of_its_tensors(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    operator, case, _ = CALLS[name]
    result = operator(*on("cuda:1", case.arranged(torch.float32)), **case.attributes)
    assert torch.cuda.current_device() == 0
    assert_right(name, result)


@each_call
def test_nothing_synchronises(name: str) -> None:
    operator, case, _ = CALLS[name]
    inputs = on("cuda", case.arranged(torch.float32))
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = operator(*inputs, **case.attributes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_right(name, result)


# --- gradients and errors ------------------------------------------------------------------------


@pytest.mark.parametrize("entry", OPERATORS)
def test_gradients_equal_those_on_the_cpu(entry: str) -> None:
    case = named(test_carafe.CASES[entry], "large odd kernel and ratio, groups")
    gradients = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.requires_grad_() for tensor in on(device, case.arranged(torch.float32))]
        out = test_carafe.OPERATORS[entry](*inputs, **case.attributes)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    for cpu, cuda in zip(*gradients, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-4)


def test_mixed_devices_are_refused() -> None:
    features, masks = test_carafe.CASES["Carafe"][0].inputs
    attributes = test_carafe.CASES["Carafe"][0].attributes
    with pytest.raises(ValueError, match="features is on cuda:0 and masks on cpu, expected one"):
        test_carafe.carafe(features.cuda(), masks, **attributes)
    rois, *maps = ROI_ALIGN_CASES[0].inputs
    with pytest.raises(ValueError, match=r"feature map 0 is torch\.float32 on cuda:0, expected"):
        test_roi_align.operator(rois, *on("cuda", maps), **ROI_ALIGN_CASES[0].attributes)
    boxes, scores = NMS_CASES[0].inputs
    with pytest.raises(ValueError, match="boxes is on cuda:0, scores on cpu, expected one"):
        batched_nms(boxes.cuda(), scores, **NMS_CASES[0].attributes)
