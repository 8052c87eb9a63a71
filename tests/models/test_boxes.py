"""Base anchors against mmdetection's values; constants of boxes stay float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carafe_deploy.models.boxes import Anchors, BoxCoder, gather_rows
from carafe_deploy.models.config import AnchorConfig, BoxCoderConfig

STDS = (0.1, 0.1, 0.2, 0.2)


@pytest.fixture(scope="module")
def units(data_dir: Path) -> dict[str, np.ndarray]:
    """Recorded anchors and decoded boxes."""
    with np.load(data_dir / "units.npz") as file:
        return {name: file[name] for name in file.files if name.startswith(("anchors", "coder"))}


@pytest.mark.parametrize("level", range(5))
def test_base_anchors(units: dict[str, np.ndarray], level: int) -> None:
    base = Anchors(AnchorConfig()).base[level]
    np.testing.assert_allclose(base.numpy(), units[f"anchors/base{level}"], rtol=1e-6)


def test_anchors_of_several_scales_vary_the_scale_fastest() -> None:
    anchors = Anchors(AnchorConfig(scales=(2.0, 4.0), ratios=(1.0, 4.0), strides=(8,)))
    # Areas are (8*scale)**2, height/width the ratio: 16x16, 32x32, 8x32 and 16x64.
    assert anchors.base[0].tolist() == [
        [-8, -8, 8, 8],
        [-16, -16, 16, 16],
        [-4, -16, 4, 16],
        [-8, -32, 8, 32],
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_constants_stay_exact_in_any_other_precision(dtype: torch.dtype) -> None:
    modules = nn.ModuleList([BoxCoder(BoxCoderConfig(stds=STDS)), Anchors(AnchorConfig())])
    before = {name: value.clone() for name, value in modules.named_buffers()}
    modules.to(dtype)
    after = dict(modules.named_buffers())
    assert set(after) == {"0.normalization", "1.base"}
    for name, value in after.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert before["0.normalization"].tolist() == torch.tensor([(0.0,) * 4, STDS]).tolist()


def test_constants_move_to_another_device_and_stay_out_of_the_state_dict() -> None:
    coder = BoxCoder(BoxCoderConfig()).to("meta")
    assert coder.normalization.device.type == "meta"
    assert not coder.state_dict()


def test_gather_rows() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    index = torch.tensor([[2, 0], [1, 1]])
    expected: Tensor = torch.stack((values[0, [2, 0]], values[1, [1, 1]]))
    assert torch.equal(gather_rows(values, index), expected)
