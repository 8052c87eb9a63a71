"""Nothing in a detector's forward pass keeps it from being one CUDA graph.

There need be no GPU for that: what a capture forbids is to wait for the device (to ask a tensor
for a value or for the number of its nonzero elements) and to copy constants from the host. Both
show in the operators that are called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import Detector, ImageNormalization
from carafe_deploy.operators import OPERATORS
from carafe_deploy.ops import _kernels
from carafe_deploy.runners._torch import TorchRunner
from carafe_deploy.types import InputFormat, ModelInfo

CHECKPOINTS = {
    "faster": "shapes_faster_rcnn_carafe-2a9d7f44.pth",
    "mask": "shapes_mask_rcnn_carafe-fbec7e06.pth",
}

#: The number of results or the host's next step depends on values.
WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_static",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
#: What ``torch.tensor(...)`` makes of a list: a constant in the host's memory.
CONSTANTS = {"lift", "lift_fresh", "lift_fresh_copy"}

#: The operators' own code, to look into them: to a dispatch mode they are one call.
INSIDE = {name: operator.implementation.forward for name, operator in OPERATORS.items()}


def tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors(value)]
    return []


class Recorder(TorchDispatchMode):
    """Collects what a capture would forbid, and every copy between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.forbidden: list[str] = []
        self.copies: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        self.calls.append(name)
        if name in WAITING | CONSTANTS:
            self.forbidden.append(name)
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        if indexed and any(t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1])):
            self.forbidden.append(f"{name} with a mask")
        if func.namespace == "carafe" and not args[0].is_meta:
            with self:
                result = INSIDE[name](*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if name in ("_to_copy", "to", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            if source.device != tensors(result)[0].device:
                self.copies.append((source.dtype, source.numel() * source.element_size()))
        return result


def record(function: Callable[[], Any]) -> Recorder:
    recorder = Recorder()
    with torch.no_grad(), recorder:
        function()
    return recorder


@pytest.fixture(scope="module", params=CHECKPOINTS)
def detector(request: pytest.FixtureRequest, shapes_dir: Path) -> Detector:
    return load_detector(shapes_dir / CHECKPOINTS[request.param])[0]


def inputs(uint8: bool, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if uint8:
        images = torch.randint(0, 256, (2, 128, 192, 3), generator=generator, dtype=torch.uint8)
    else:
        images = torch.randn(2, 3, 128, 192, generator=generator)
    return images.to(device), torch.tensor([[120.0, 180.0]] * 2).to(device)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("channels_last", [True, False])
def test_no_operator_waits_or_brings_a_constant(
    detector: Detector, channels_last: bool, uint8: bool, precision: str
) -> None:
    if _kernels.kernel_library() is None:
        pytest.skip("needs libcarafe_kernels.so: make plugins")
    options = ExportOptions(precision=precision, uint8_input=uint8)
    module: Any = deployable(detector, options, channels_last=channels_last)
    if uint8:
        module = ImageNormalization(module, detector.config.preprocessing, channels_last)
    arguments = inputs(uint8)
    found = record(lambda: module(*arguments))
    assert found.forbidden == []
    assert found.copies == []
    assert {"carafe_encoded", "multilevel_roi_align", "batched_nms"} <= set(found.calls)
    assert found.calls.count("convolution") > 30


VALUES = torch.arange(6.0)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: VALUES.sum().item(), "_local_scalar_dense"),
        (lambda: bool(VALUES.any()), "_local_scalar_dense"),
        (lambda: VALUES.nonzero(), "nonzero"),
        (lambda: VALUES[VALUES > 2], "index with a mask"),
        (lambda: VALUES.clone().__setitem__(VALUES > 2, VALUES[:3]), "index_put_ with a mask"),
        (lambda: VALUES.masked_select(VALUES > 2), "masked_select"),
        (lambda: VALUES * torch.tensor([1.0] * 6), "lift_fresh"),
    ],
)
def test_what_is_looked_for_is_found(function: Callable[[], Any], name: str) -> None:
    assert name in record(function).forbidden


def test_uint8_images_are_uploaded_as_such(detector: Detector) -> None:
    """A quarter of the bytes; they become float32 on the device."""
    info = ModelInfo("u8", "faster_rcnn", ("a",), input=InputFormat("nhwc_uint8"))
    images, sizes = (tensor.numpy() for tensor in inputs(uint8=True))
    deployed = deployable(detector, ExportOptions(), channels_last=True).to("meta")
    module = ImageNormalization(deployed, detector.config.preprocessing, channels_last=True)
    runner = TorchRunner(info, torch.device("meta"), module, module, channels_last=True)
    found = record(lambda: runner.prepared({"images": images, "image_sizes": sizes})())
    assert found.copies == [(torch.uint8, images.nbytes), (torch.float32, sizes.nbytes)]
    assert images.nbytes == np.prod(images.shape)
