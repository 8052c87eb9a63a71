"""Candidates for NMS against mmdetection's values and by hand, and what the operators refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.models.boxes import Anchors
from carafe_deploy.models.config import AnchorConfig
from carafe_deploy.ops import box_candidates, rpn_candidates
from tests.ops.faces import PATHS

each_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(scope="module")
def units(data_dir: Path) -> dict[str, np.ndarray]:
    """Recorded anchors and decoded boxes."""
    with np.load(data_dir / "units.npz") as file:
        return {name: file[name] for name in file.files if name.startswith(("anchors", "coder"))}


# --- decoding ------------------------------------------------------------------------------------


def decode(
    boxes: Tensor, deltas: Tensor, sizes: Tensor, stds: tuple[float, ...] = (1.0,) * 4
) -> Tensor:
    """Boxes [B, P, 4] and deltas [B, P, 4*C] -> [B, P, C, 4]."""
    batch, count, columns = deltas.shape
    found, _ = box_candidates(
        torch.zeros(batch, count, columns // 4 + 1, dtype=deltas.dtype),
        deltas,
        boxes,
        torch.full((batch, 1), count, dtype=torch.int32),
        sizes,
        torch.tensor([(0.0,) * 4, stds]),
    )
    return found.transpose(1, 2)


@each_path
@pytest.mark.parametrize(("name", "stds"), [("rpn", (1.0,) * 4), ("rcnn", (0.1, 0.1, 0.2, 0.2))])
def test_decoding(
    units: dict[str, np.ndarray], name: str, stds: tuple[float, ...], path: str
) -> None:
    rois, deltas = (torch.from_numpy(units[f"coder/{key}"]) for key in ("rois", "deltas"))
    size = torch.tensor([[160.0, 200.0]])
    with PATHS[path]():
        one = decode(rois.unsqueeze(0), deltas[:, :4].unsqueeze(0), size, stds)
        three = decode(rois.unsqueeze(0), deltas.unsqueeze(0), size, stds)
    expected = units[f"coder/{name}_out"]
    np.testing.assert_allclose(one[0, :, 0].numpy(), expected, rtol=1e-5, atol=1e-4)
    expected = units[f"coder/{name}_out_3cls"]
    np.testing.assert_allclose(three[0].flatten(1).numpy(), expected, rtol=1e-5, atol=1e-4)


def test_decoding_by_hand() -> None:
    # Box 10x20 at (20, 40), centre (25, 50). dx 0.1 -> centre x 26; dw ln 2 -> width 20, so x from
    # 16 to 36. dy -0.5 -> centre y 40; dh 0 -> height 20, y from 30 to 50, clipped to 45.
    boxes = torch.tensor([[[20.0, 40.0, 30.0, 60.0]]])
    deltas = torch.tensor([[[0.1, -0.5, math.log(2), 0.0]]])
    out = decode(boxes, deltas, torch.tensor([[45.0, 100.0]]))
    np.testing.assert_allclose(out[0, 0, 0].numpy(), [16, 30, 36, 45], rtol=1e-6)


def test_growth_is_limited_to_62_5() -> None:
    boxes = torch.tensor([[[499.0, 499.0, 501.0, 501.0]]])
    out = decode(boxes, torch.tensor([[[0.0, 0.0, 50.0, -50.0]]]), torch.tensor([[1e3, 1e3]]))
    x1, y1, x2, y2 = out[0, 0, 0].tolist()
    assert x2 - x1 == pytest.approx(2 * 62.5, rel=1e-5)
    assert y2 - y1 == pytest.approx(2 / 62.5, rel=1e-2)


def test_boxes_are_clipped_to_their_own_image() -> None:
    boxes = torch.tensor([[[-5.0, -5.0, 99.0, 99.0]], [[-5.0, -5.0, 99.0, 99.0]]])
    out = decode(boxes, torch.zeros(2, 1, 4), torch.tensor([[40.0, 30.0], [50.0, 60.0]]))
    assert out[:, 0, 0].tolist() == [[0, 0, 30, 40], [0, 0, 60, 50]]


@each_path
def test_half_deltas_are_decoded_in_float32(path: str) -> None:
    boxes = torch.tensor([[[1000.25, 0.0, 1040.75, 20.0]]])
    with PATHS[path]():
        out = decode(boxes, torch.zeros(1, 1, 4, dtype=torch.float16), torch.tensor([[2e3, 2e3]]))
    assert out.dtype == torch.float32
    assert torch.equal(out[:, :, 0], boxes)


# --- anchors -------------------------------------------------------------------------------------


@each_path
def test_anchors_lie_where_mmdetection_has_them(units: dict[str, np.ndarray], path: str) -> None:
    """With equal logits they come in order; clipped, since all boxes are."""
    sizes = ((3, 4), (2, 3), (2, 2), (1, 2), (1, 1))
    anchors = Anchors(AnchorConfig())
    with PATHS[path]():
        boxes, scores = rpn_candidates(
            torch.tensor([[1e4, 1e4]]),
            anchors.base,
            torch.tensor([[0.0] * 4, [1.0] * 4]),
            [torch.zeros(1, channels, *size) for channels in (3, 12) for size in sizes],
            num_candidates=40,
            min_size=-1,
            strides=anchors.strides,
        )
    for level in range(5):
        grid = units[f"anchors/grid{level}"].clip(min=0)
        found = boxes[0, level, : len(grid)].numpy()
        np.testing.assert_allclose(found, grid, rtol=1e-6, atol=1e-5)
        assert scores[0, level].isfinite().sum() == len(grid)


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_best_of_many_by_another_way(path: str, dtype: torch.dtype) -> None:
    """More anchors than the CUDA kernel and its twin hold at a time, with ties in float16."""
    logits = torch.randn(2, 3, 60, 50, generator=torch.Generator().manual_seed(3)).to(dtype)
    with PATHS[path]():
        _, scores = rpn_candidates(
            torch.tensor([[240.0, 200.0]] * 2),
            torch.tensor([[[-8.0, -8, 8, 8], [-9, -9, 9, 9], [-4, -4, 4, 4]]]),
            torch.tensor([[0.0] * 4, [1.0] * 4]),
            [logits, torch.zeros(2, 12, 60, 50, dtype=dtype)],
            num_candidates=1500,
            min_size=-1,
            strides=[4],
        )
    assert torch.equal(scores[:, 0], logits.flatten(1).float().sort(descending=True)[0][:, :1500])


# --- errors --------------------------------------------------------------------------------------

_RPN: Mapping[str, Any] = {
    "image_sizes": torch.ones(2, 2),
    "anchors": torch.ones(1, 3, 4),
    "normalization": torch.ones(2, 4),
    "logits": [torch.ones(2, 3, 4, 5)],
    "deltas": [torch.ones(2, 12, 4, 5)],
    "num_candidates": 7,
    "min_size": 0.0,
    "strides": [4],
}
_BOX: Mapping[str, Any] = {
    "logits": torch.ones(2, 6, 4),
    "deltas": torch.ones(2, 6, 12),
    "proposals": torch.ones(2, 6, 4),
    "num_proposals": torch.ones(2, 1, dtype=torch.int32),
    "image_sizes": torch.ones(2, 2),
    "normalization": torch.ones(2, 4),
}
_BAD: tuple[tuple[Callable[..., Any], Mapping[str, Any], str, Any, str], ...] = (
    (rpn_candidates, _RPN, "num_candidates", 0, "num_candidates is 0, expected 1 to 4096"),
    (rpn_candidates, _RPN, "num_candidates", 4097, "num_candidates is 4097, expected 1 to 4096"),
    (rpn_candidates, _RPN, "min_size", math.inf, "min_size is inf, expected a finite number"),
    (rpn_candidates, _RPN, "min_size", math.nan, "min_size is nan, expected a finite number"),
    (rpn_candidates, _RPN, "strides", [0], r"strides is \[0\], expected none below 1"),
    (rpn_candidates, _RPN, "strides", [4, 8], "2 maps for 2 strides, expected logits and deltas"),
    (rpn_candidates, _RPN, "logits", [], "1 maps for 1 strides"),
    (
        rpn_candidates,
        _RPN,
        "deltas",
        [torch.ones(2, 11, 4, 5)],
        r"deltas of level 0 have shape \(2, 11, 4, 5\), expected \(2, 12, 4, 5\)",
    ),
    (
        rpn_candidates,
        _RPN,
        "deltas",
        [torch.ones(2, 12, 4, 5).half()],
        "deltas of level 0 are torch.float16 on cpu, expected torch.float32 on cpu",
    ),
    (
        rpn_candidates,
        _RPN,
        "logits",
        [torch.ones(2, 3, 4)],
        r"logits of level 0 are torch.float32 of shape \(2, 3, 4\)",
    ),
    (
        rpn_candidates,
        {**_RPN, "deltas": [torch.ones(2, 12, 0, 5)]},
        "logits",
        [torch.ones(2, 3, 0, 5)],
        r"logits of level 0 have shape \(2, 3, 0, 5\), expected at least one pixel",
    ),
    (
        rpn_candidates,
        _RPN,
        "image_sizes",
        torch.ones(1, 2),
        r"image_sizes has shape \(1, 2\), expected \(2, 2\)",
    ),
    (
        rpn_candidates,
        _RPN,
        "anchors",
        torch.ones(1, 3, 4).half(),
        "anchors is torch.float16, expected float32 whatever the maps' dtype",
    ),
    (
        rpn_candidates,
        _RPN,
        "normalization",
        torch.ones(4),
        r"normalization has shape \(4,\), expected \(2, 4\)",
    ),
    (
        box_candidates,
        _BOX,
        "logits",
        torch.ones(2, 6),
        r"logits are torch.float32 of shape \(2, 6\)",
    ),
    (
        box_candidates,
        _BOX,
        "deltas",
        torch.ones(2, 6, 16),
        r"deltas have shape \(2, 6, 16\), expected \(2, 6, 12\)",
    ),
    (
        box_candidates,
        _BOX,
        "deltas",
        torch.ones(2, 6, 12).bfloat16(),
        "deltas are torch.bfloat16 on cpu, expected torch.float32 on cpu",
    ),
    (
        box_candidates,
        _BOX,
        "num_proposals",
        torch.ones(2, 1),
        "num_proposals is torch.float32 on cpu, expected int32 on cpu",
    ),
    (
        box_candidates,
        _BOX,
        "num_proposals",
        torch.ones(2, dtype=torch.int32),
        r"num_proposals has shape \(2,\), expected \(2, 1\)",
    ),
    (
        box_candidates,
        _BOX,
        "proposals",
        torch.ones(2, 5, 4),
        r"proposals has shape \(2, 5, 4\), expected \(2, 6, 4\)",
    ),
)


@each_path
@pytest.mark.parametrize(("function", "good", "name", "value", "message"), _BAD)
def test_errors_name_the_argument(
    function: Callable[..., Any],
    good: Mapping[str, Any],
    name: str,
    value: Any,
    message: str,
    path: str,
) -> None:
    def call(**arguments: Any) -> Any:
        if function is box_candidates:
            return function(*arguments.values())
        arguments["maps"] = [*arguments.pop("logits"), *arguments.pop("deltas")]
        settings = {key: arguments.pop(key) for key in ("num_candidates", "min_size", "strides")}
        return function(*arguments.values(), **settings)

    with PATHS[path]():
        with pytest.raises(ValueError, match=message):
            call(**{**good, name: value})
        if name not in ("logits",):
            call(**good)
