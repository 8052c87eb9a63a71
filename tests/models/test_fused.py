"""Detectors prepared for a GPU find on the CPU's twins of its kernels what the others find."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carafe_deploy.graph.metadata import model_info
from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.images import load_image
from carafe_deploy.models.config import BackboneConfig
from carafe_deploy.models.detector import Detector, StagedDetector
from carafe_deploy.models.resnet import ResNet, join_biases
from carafe_deploy.ops import convolutions
from carafe_deploy.preprocess import Preprocessor

#: Largest difference of a pyramid's level over its largest value; and of boxes, in pixels.
LIMITS = {"fp32": (1e-5, 1e-2), "fp16": (5e-3, 0.5), "bf16": (4e-2, 4.0)}


@pytest.fixture(scope="module")
def arguments(detector: Detector, shapes_dir: Path) -> tuple[Tensor, Tensor]:
    paths = sorted((shapes_dir / "val").iterdir())[:2]
    info = model_info(detector.config, ExportOptions(), name="x", source={})
    batch = Preprocessor(info)([load_image(path) for path in paths])
    return torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Compute here as there, and count what is fused."""
    called: Counter[str] = Counter()
    compute = convolutions._in_steps

    def counted(*arguments: Any) -> Tensor:
        called["with shortcut" if arguments[3] is not None else "without"] += 1
        return compute(*arguments)

    monkeypatch.setattr(convolutions, "_fuses", lambda x: True)
    monkeypatch.setattr(convolutions, "_convolution_relu", counted)
    return called


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("precision", LIMITS)
def test_detections_stay(
    detector: Detector,
    arguments: tuple[Tensor, Tensor],
    on_a_gpu: Counter[str],
    precision: str,
    channels_last: bool,
) -> None:
    images, sizes = arguments
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    outputs = ("num_dets", "boxes", "scores", "classes", "masks")
    outputs = outputs[: 5 if detector.config.mask else 4]
    options, found = ExportOptions(precision=precision), []
    for fused in (False, True):
        ready = deployable(detector, options, channels_last=channels_last, fused=fused)
        staged = StagedDetector(ready)
        with torch.inference_mode():
            results = staged(images, sizes)
        found.append(dict(zip((*outputs, *staged.stage_names), results, strict=True)))
    expected, ours = found
    relative, pixels = LIMITS[precision]
    for level in ("P2", "P3", "P4", "P5", "P6"):
        difference = (ours[level] - expected[level]).abs().amax() / expected[level].abs().amax()
        assert difference < relative, level
    for image in range(len(sizes)):
        sure = int((expected["scores"][image] > 0.8).sum())
        assert sure >= 1
        for box, label in zip(
            expected["boxes"][image, :sure], expected["classes"][image], strict=False
        ):
            same = ours["boxes"][image][ours["classes"][image] == label]
            assert (same - box).abs().amax(dim=1).amin() < pixels
    if precision == "fp32":
        assert torch.equal(ours["num_dets"], expected["num_dets"])
        assert torch.equal(ours["classes"], expected["classes"])
        for name in ("scores", *outputs[4:]):
            torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=1e-4)
    blocks = 8  # of ResNet-18
    mask_convs = detector.config.mask.num_convs if detector.config.mask else 0
    assert on_a_gpu == {"with shortcut": blocks, "without": 1 + blocks + 5 + mask_convs}


@pytest.mark.parametrize("depth", [18, 50])
def test_a_shortcuts_bias_is_added_once(depth: int) -> None:
    torch.manual_seed(depth)
    backbone = ResNet(BackboneConfig(depth, base_channels=8)).eval().requires_grad_(False)
    blocks = [part for part in backbone.modules() if hasattr(part, "downsample")]
    for block in blocks:
        last = "conv2" if depth == 18 else "conv3"
        convs = [getattr(block, last)]
        if isinstance(block.downsample, nn.Sequential):
            convs.append(block.downsample[0])
            block.downsample[1] = nn.Identity()
        for conv in convs:
            conv.bias = nn.Parameter(torch.randn(conv.out_channels), requires_grad=False)
    images = torch.randn(1, 3, 64, 64)
    expected = backbone(images)
    for part in list(backbone.modules()):
        join_biases(part)
    shortcuts = [b.downsample[0] for b in blocks if isinstance(b.downsample, nn.Sequential)]
    assert [conv.bias for conv in shortcuts] == [None] * (3 if depth == 18 else 4)
    for found, level in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)
