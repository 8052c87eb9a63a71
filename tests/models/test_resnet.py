"""ResNet of every depth against torchvision's, which shares keys and the 'pytorch' style."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from carafe_deploy.models.config import BackboneConfig
from carafe_deploy.models.resnet import BLOCKS, ResNet


def randomise_norms(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize("depth", BLOCKS)
def test_levels_equal_torchvisions(depth: int) -> None:
    torch.manual_seed(depth)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    randomise_norms(theirs)
    ours = ResNet(BackboneConfig(depth)).eval()
    weights = {key: value for key, value in theirs.state_dict().items() if key[:3] != "fc."}
    assert set(ours.state_dict()) == set(weights)
    ours.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for stage, out in enumerate(ours(images), start=1):
            x = getattr(theirs, f"layer{stage}")(x)
            torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)
            assert out.shape[1] == BackboneConfig(depth).out_channels[stage - 1]


def test_width_scales_every_level() -> None:
    levels = ResNet(BackboneConfig(50, base_channels=8)).eval()(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape) for level in levels] == [
        (1, 32, 16, 16),
        (1, 64, 8, 8),
        (1, 128, 4, 4),
        (1, 256, 2, 2),
    ]
