"""FPN_CARAFE against mmdetection's values, odd sizes included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from carafe_deploy.models.config import NeckConfig, UpsampleConfig
from carafe_deploy.models.fpn_carafe import FPNCarafe

CHANNELS = (8, 12, 16, 20)


@pytest.fixture(scope="module")
def recorded(data_dir: Path) -> dict[str, torch.Tensor]:
    """Parameters, C2..C5 and P2..P6 of a neck whose maps are not multiples of each other."""
    with np.load(data_dir / "units.npz") as file:
        return {
            name.removeprefix("fpn_odd/"): torch.from_numpy(file[name])
            for name in file.files
            if name.startswith("fpn_odd/")
        }


@pytest.fixture(scope="module")
def neck(recorded: dict[str, torch.Tensor]) -> FPNCarafe:
    """The neck with the recorded parameters."""
    module = FPNCarafe(CHANNELS, NeckConfig(8, UpsampleConfig(compressed_channels=4)))
    module.load_state_dict(
        {name: value for name, value in recorded.items() if name.endswith(("weight", "bias"))}
    )
    return module.requires_grad_(False)


def test_odd_sizes_are_sliced_at_the_top_left(
    neck: FPNCarafe, recorded: dict[str, torch.Tensor]
) -> None:
    # 4x5 -> 7x10 -> 13x19 -> 25x38 -> 50x75: every step drops a row, a column or both.
    pyramid = neck([recorded[f"C{level}"] for level in range(2, 6)])
    for level, out in enumerate(pyramid, start=2):
        expected = recorded[f"P{level}"]
        assert out.shape == expected.shape
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_p6_is_a_convolution_of_c5(neck: FPNCarafe, recorded: dict[str, torch.Tensor]) -> None:
    c5 = recorded["C5"]
    lateral = torch.nn.functional.conv2d(
        c5,
        recorded["lateral_convs.4.conv.weight"],
        recorded["lateral_convs.4.conv.bias"],
        stride=2,
        padding=1,
    )
    expected = neck.fpn_convs[4](lateral)
    out = neck([recorded[f"C{level}"] for level in range(2, 6)])[4]
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_smallest_input(neck: FPNCarafe) -> None:
    sizes = (16, 8, 4, 2)
    features = [torch.zeros(1, c, s, s) for c, s in zip(CHANNELS, sizes, strict=True)]
    assert [tuple(out.shape[2:]) for out in neck(features)] == [(s, s) for s in (*sizes, 1)]
