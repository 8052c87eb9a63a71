"""The torch operators on a GPU, through libcarafe_kernels.so and in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.operators import OPERATORS
from carafe_deploy.ops import _kernels, plain_operators
from tests.ops import faces
from tests.ops.cases import CASES, Case, named
from tests.ops.layouts import LAYOUTS, has_layout_of
from tests.ops.test_operators import each_case

pytestmark = pytest.mark.gpu

PATHS = {"kernels": nullcontext, "PyTorch": plain_operators}
each_path = pytest.mark.parametrize("path", PATHS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


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
@each_case
def test_cases(path: str, layout: str, name: str, case: Case) -> None:
    spec = OPERATORS[name]
    for dtype in faces.dtypes(name):
        inputs = LAYOUTS[layout](case, on("cuda", faces.typed(name, case, dtype)))
        with PATHS[path]():
            out = faces.operator(name)(*inputs, **case.attributes)
        faces.assert_right(name, out, faces.truth(name, case, dtype), dtype)
        if spec.outputs[0].is_feature_map:
            features = next(x for i, x in enumerate(inputs) if spec.input_at(i).is_feature_map)
            assert out.device == features.device
            assert has_layout_of(out.reshape(-1, *out.shape[-3:]), features)


# --- one call of each, as networks make them -----------------------------------------------------

#: Of an operator that is not named, the first.
REASONS = {"batched_nms": "box head: many classes, two images"}
CALLS = {
    name: named(name, REASONS[name]) if name in REASONS else cases[0]
    for name, cases in CASES.items()
}

each_call = pytest.mark.parametrize("name", CALLS)


def assert_right(name: str, result: Any) -> None:
    results = (result,) if isinstance(result, Tensor) else result
    for out, expected in zip(results, faces.truth(name, CALLS[name]), strict=True):
        np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-5, atol=1e-4)


@each_call
def test_captured_in_a_cuda_graph_and_replayed_on_other_values(name: str) -> None:
    operator, case = faces.operator(name), CALLS[name]
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
    operator, case = faces.operator(name), CALLS[name]
    inputs = on("cuda", case.arranged(torch.float32))
    compiled = torch.compile(faces.Call(operator, case.attributes), fullgraph=True, mode=mode)
    for _ in range(3):  # the third replays the graph that reduce-overhead captures
        result = compiled(*inputs)
    assert_right(name, result)


@each_call
def test_takes_the_current_stream(name: str) -> None:
    """Inputs are written on a side stream behind a long wait: another stream would read zeros."""
    operator, case = faces.operator(name), CALLS[name]
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
    operator, case = faces.operator(name), CALLS[name]
    result = operator(*on("cuda:1", case.arranged(torch.float32)), **case.attributes)
    assert torch.cuda.current_device() == 0
    assert_right(name, result)


@each_call
def test_nothing_synchronises(name: str) -> None:
    operator, case = faces.operator(name), CALLS[name]
    inputs = on("cuda", case.arranged(torch.float32))
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = operator(*inputs, **case.attributes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_right(name, result)


# --- gradients and errors ------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["carafe", "carafe_encoded"])
def test_gradients_equal_those_on_the_cpu(entry: str) -> None:
    case = named(entry, "large odd kernel and ratio, groups")
    gradients = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.requires_grad_() for tensor in on(device, case.arranged(torch.float32))]
        out = faces.operator(entry)(*inputs, **case.attributes)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    for cpu, cuda in zip(*gradients, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "on_cuda", "message"),
    [
        ("carafe", slice(1), "features is on cuda:0 and masks on cpu, expected one"),
        (
            "multilevel_roi_align",
            slice(1, None),
            r"feature map 0 is torch\.float32 on cuda:0, expected",
        ),
        ("batched_nms", slice(1), "boxes is on cuda:0, scores on cpu, expected one"),
    ],
)
def test_mixed_devices_are_refused(name: str, on_cuda: slice, message: str) -> None:
    inputs = list(CASES[name][0].inputs)
    inputs[on_cuda] = on("cuda", inputs[on_cuda])
    with pytest.raises(ValueError, match=message):
        faces.operator(name)(*inputs, **CASES[name][0].attributes)
