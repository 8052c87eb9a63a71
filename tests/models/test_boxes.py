"""Anchors and box coder against mmdetection's values; their constants stay float32."""

from __future__ import annotations

import math
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


@pytest.mark.parametrize(
    ("level", "height", "width"), [(0, 3, 4), (1, 2, 3), (2, 2, 2), (3, 1, 2), (4, 1, 1)]
)
def test_anchor_grid_order_and_centres(
    units: dict[str, np.ndarray], level: int, height: int, width: int
) -> None:
    index = torch.arange(height * width * 3)
    grid = Anchors(AnchorConfig())(level, index, torch.empty(height, width))
    np.testing.assert_allclose(grid.numpy(), units[f"anchors/grid{level}"], rtol=1e-6, atol=1e-5)


def test_anchors_of_several_scales_vary_the_scale_fastest() -> None:
    anchors = Anchors(AnchorConfig(scales=(2.0, 4.0), ratios=(1.0, 4.0), strides=(8,)))
    # Areas are (8*scale)**2, height/width the ratio: 16x16, 32x32, 8x32 and 16x64.
    assert anchors.base[0].tolist() == [
        [-8, -8, 8, 8],
        [-16, -16, 16, 16],
        [-4, -16, 4, 16],
        [-8, -32, 8, 32],
    ]


@pytest.mark.parametrize(("name", "stds"), [("rpn", (1.0,) * 4), ("rcnn", STDS)])
def test_box_decoding(
    units: dict[str, np.ndarray], name: str, stds: tuple[float, float, float, float]
) -> None:
    coder = BoxCoder(BoxCoderConfig(stds=stds))
    rois, deltas = (torch.from_numpy(units[f"coder/{key}"]) for key in ("rois", "deltas"))
    size = torch.tensor([[160.0, 200.0]])
    one = coder(rois.unsqueeze(0), deltas[:, :4].unsqueeze(0), size)
    np.testing.assert_allclose(one[0].numpy(), units[f"coder/{name}_out"], rtol=1e-5, atol=1e-4)
    three = coder(rois.view(1, 64, 1, 4), deltas.view(1, 64, 3, 4), size)
    np.testing.assert_allclose(
        three[0].flatten(1).numpy(), units[f"coder/{name}_out_3cls"], rtol=1e-5, atol=1e-4
    )


def test_box_decoding_by_hand() -> None:
    # Box 10x20 at (20, 40), centre (25, 50). dx 0.1 -> centre x 26; dw ln 2 -> width 20, so x from
    # 16 to 36. dy -0.5 -> centre y 40; dh 0 -> height 20, y from 30 to 50, clipped to 45.
    coder = BoxCoder(BoxCoderConfig())
    boxes = torch.tensor([[[20.0, 40.0, 30.0, 60.0]]])
    deltas = torch.tensor([[[0.1, -0.5, math.log(2), 0.0]]])
    out = coder(boxes, deltas, torch.tensor([[45.0, 100.0]]))
    np.testing.assert_allclose(out[0, 0].numpy(), [16, 30, 36, 45], rtol=1e-6)


def test_box_growth_is_limited_to_62_5() -> None:
    coder = BoxCoder(BoxCoderConfig())
    boxes = torch.tensor([[[499.0, 499.0, 501.0, 501.0]]])
    out = coder(boxes, torch.tensor([[[0.0, 0.0, 50.0, -50.0]]]), torch.tensor([[1e3, 1e3]]))
    x1, y1, x2, y2 = out[0, 0].tolist()
    assert x2 - x1 == pytest.approx(2 * 62.5, rel=1e-5)
    assert y2 - y1 == pytest.approx(2 / 62.5, rel=1e-2)


def test_boxes_are_clipped_to_their_own_image() -> None:
    coder = BoxCoder(BoxCoderConfig())
    boxes = torch.tensor([[[-5.0, -5.0, 99.0, 99.0]], [[-5.0, -5.0, 99.0, 99.0]]])
    out = coder(boxes, torch.zeros(2, 1, 4), torch.tensor([[40.0, 30.0], [50.0, 60.0]]))
    assert out[:, 0].tolist() == [[0, 0, 30, 40], [0, 0, 60, 50]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_constants_stay_exact_in_any_other_precision(dtype: torch.dtype) -> None:
    modules = nn.ModuleList([BoxCoder(BoxCoderConfig(stds=STDS)), Anchors(AnchorConfig())])
    before = {name: value.clone() for name, value in modules.named_buffers()}
    modules.to(dtype)
    after = dict(modules.named_buffers())
    assert set(after) == {"0.means", "0.stds", "1.base"}
    for name, value in after.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert before["0.stds"].tolist() == torch.tensor(STDS).tolist()


def test_constants_move_to_another_device_and_stay_out_of_the_state_dict() -> None:
    coder = BoxCoder(BoxCoderConfig()).to("meta")
    assert coder.stds.device.type == "meta"
    assert not coder.state_dict()


def test_half_deltas_are_decoded_in_float32() -> None:
    coder = BoxCoder(BoxCoderConfig()).half()
    boxes = torch.tensor([[[1000.25, 0.0, 1040.75, 20.0]]])
    out = coder(boxes, torch.zeros(1, 1, 4, dtype=torch.float16), torch.tensor([[2e3, 2e3]]))
    assert out.dtype == torch.float32
    assert torch.equal(out, boxes)


def test_gather_rows() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    index = torch.tensor([[2, 0], [1, 1]])
    expected: Tensor = torch.stack((values[0, [2, 0]], values[1, [1, 1]]))
    assert torch.equal(gather_rows(values, index), expected)
