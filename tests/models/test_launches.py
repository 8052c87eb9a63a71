"""How many operators a forward pass of the R-50 detectors has on a GPU, counted without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from launches import BIAS, DETECTORS, Launches, count

#: At most so many, with fused convolutions. Fewer are better: lower these with what lowers them.
LIMITS = {"mask_r50": 151, "faster_r50": 134}
#: That no fused kernel takes: of the neck's 3x3 convolutions, of content encoders and of P6.
BIASES = {"mask_r50": 11, "faster_r50": 10}


@pytest.mark.parametrize("name", DETECTORS)
def test_fused_convolutions_leave_few(name: str) -> None:
    usual, fused = (count(DETECTORS[name], fused).counts for fused in (False, True))
    assert usual["convolution"] == usual["bias"] == {"mask_r50": 92, "faster_r50": 86}[name]
    assert fused["bias"] == BIASES[name]
    assert fused["convolution"] == BIASES[name] + 4  # the shortcuts' have none
    assert fused["convolution_relu"] == {"mask_r50": 58, "faster_r50": 54}[name]
    assert fused["relu_"] == 0
    assert sum(fused.values()) <= LIMITS[name]


def test_what_counts() -> None:
    x, weight, bias = torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3), torch.zeros(4)
    with torch.no_grad(), Launches() as launches:
        y = torch.conv2d(x, weight, bias) + torch.conv2d(x, weight)
        y[:, 1:].permute(0, 2, 3, 1).unsqueeze(0).relu_().expand(2, *[-1] * 4)
        torch.empty_like(y)
    counts = dict(launches.counts)
    assert counts == {"convolution": 2, "bias": 1, "add": 1, "relu_": 1}
    assert launches.by_kind()[BIAS] == 1
    assert sum(launches.by_kind().values()) == sum(counts.values())
