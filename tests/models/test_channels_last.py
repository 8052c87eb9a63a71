"""Detectors laid out for channels-last feature maps: same results, and no map is copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.models.config import BoxHeadConfig
from carafe_deploy.models.detector import (
    Detector,
    ImageNormalization,
    StagedDetector,
    build_detector,
    lay_out_channels_last,
)
from carafe_deploy.models.roi_heads import BoxHead
from carafe_deploy.ops import _kernels
from carafe_deploy.types import Preprocessing

LAST = torch.channels_last


@pytest.fixture(scope="module")
def arguments() -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([[120.0, 180.0], [128.0, 192.0]])


def last(arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return arguments[0].contiguous(memory_format=LAST), arguments[1]


@torch.no_grad()
def test_outputs_and_stages_are_the_same(
    detector: Detector, arguments: tuple[Tensor, Tensor]
) -> None:
    plain = StagedDetector(deployable(detector, ExportOptions()))
    staged = StagedDetector(deployable(detector, ExportOptions(), channels_last=True))
    pairs = list(zip(staged(*last(arguments)), plain(*arguments), strict=True))
    names = plain.stage_names
    for name, (found, expected) in zip(names, pairs[len(pairs) - len(names) :], strict=True):
        # Selections may differ in ties; what they select from may not.
        if "roi" in name or name.startswith(("prop", "shared", "cls", "bbox", "mask")):
            continue
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    scores, expected_scores = pairs[2]
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-4)


@torch.no_grad()
def test_stages_do_not_change_what_is_detected(
    detector: Detector, arguments: tuple[Tensor, Tensor]
) -> None:
    """Nor do they see the sums that are written over the laterals."""
    deployed = deployable(detector, ExportOptions(), channels_last=True)
    staged = StagedDetector(deployed)
    named = dict(zip(staged.stage_names[::-1], staged(*last(arguments))[::-1], strict=False))
    for found, expected in zip(deployed(*last(arguments)), staged(*last(arguments)), strict=False):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for level, name in enumerate(("L2", "L3", "L4", "L5")):
        lateral = deployed.neck.lateral_convs[level](named[f"C{level + 2}"])
        torch.testing.assert_close(named[name], lateral)
    assert deployed.neck.keep_laterals is False


class Copies(TorchDispatchMode):
    """Shapes of the feature maps, [N, C, H, W] or [B, K, C, S, S], that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::clone", "aten::copy_", "aten::_to_copy"):
            source = args[1] if func._schema.name == "aten::copy_" else args[0]
            if source.dim() >= 4:
                self.shapes.append(tuple(source.shape))
        return result


@pytest.mark.parametrize("uint8", [False, True])
def test_no_feature_map_is_copied(
    detector: Detector, arguments: tuple[Tensor, Tensor], uint8: bool
) -> None:
    if _kernels.kernel_library() is None:
        pytest.skip("needs libcarafe_kernels.so: make plugins")
    module: Any = deployable(detector, ExportOptions(), channels_last=True)
    given = last(arguments)
    allowed: list[tuple[int, ...]] = []
    if uint8:
        module = ImageNormalization(module, detector.config.preprocessing, channels_last=True)
        given = torch.zeros(2, 128, 192, 3, dtype=torch.uint8), given[1]
        allowed = [(2, 128, 192, 3)]  # to float32
    with torch.no_grad(), Copies() as copies:
        module(*given)
    assert copies.shapes == allowed
    # What the box head would copy as mmdetection lays its weights out:
    plain = deployable(detector, ExportOptions()).to(memory_format=LAST)
    given = last(arguments)
    with torch.no_grad(), Copies() as copies:
        plain(*given)
    assert [len(shape) for shape in copies.shapes] == [5]


@torch.no_grad()
def test_a_box_head_takes_either_layout() -> None:
    torch.manual_seed(0)
    config = BoxHeadConfig()
    head = BoxHead(8, 3, config).eval()
    pooled = torch.randn(1, 5, 8, config.roi_size, config.roi_size)
    expected = head(pooled)
    weight = head.shared_fcs[0].weight.clone()
    for _ in range(2):  # twice is once
        head.lay_out_channels_last()
        assert not torch.equal(head.shared_fcs[0].weight, weight)
        for found, one in zip(head(pooled), expected, strict=True):
            torch.testing.assert_close(found, one)
    last_pooled = pooled.flatten(0, 1).contiguous(memory_format=LAST).view(pooled.shape)
    torch.testing.assert_close(head(last_pooled), expected)


def test_the_trained_detector_is_left_alone(detector: Detector) -> None:
    trained = build_detector(detector.config)  # as in training, it takes gradients
    trained.load_state_dict(detector.state_dict())
    deployed = lay_out_channels_last(deployable(trained, ExportOptions()))
    assert deployed.backbone.conv1.weight.is_contiguous(memory_format=LAST)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, detector.state_dict()[name])
        assert value.dim() != 4 or value.is_contiguous()
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())


def test_uint8_images_are_handed_on_as_they_lie() -> None:
    class Keep(torch.nn.Module):
        def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
            return images

    images = torch.randint(0, 256, (2, 64, 128, 3), dtype=torch.uint8)
    sizes = torch.tensor([[60.0, 100.0], [64.0, 128.0]])
    settings = Preprocessing()
    expected = ImageNormalization(Keep(), settings)(images, sizes)
    found = ImageNormalization(Keep(), settings, channels_last=True)(images, sizes)
    assert torch.equal(found, expected)
    assert expected.is_contiguous()
    assert found.is_contiguous(memory_format=LAST)
    assert not found.is_contiguous()
