"""Which pyramid level a RoI is pooled from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.ops.roi_align import assign_levels
from tests.ops import faces


def squares(sides: Sequence[float]) -> Tensor:
    rois = torch.zeros(len(sides), 4)
    rois[:, 2:] = torch.tensor(sides, dtype=torch.float32).unsqueeze(1)
    return rois


@pytest.mark.parametrize(
    ("side", "level"),
    [
        (0, 0),
        (1, 0),
        (111.999, 0),
        (112, 1),
        (math.nextafter(112, 0), 1),  # the 1e-6 added to the scale lifts it
        (223.99, 1),
        (224, 2),
        (447.99, 2),
        (448, 3),
        (896, 3),
        (5000, 3),
    ],
)
def test_levels_at_powers_of_two(side: float, level: int) -> None:
    assert assign_levels(squares([side]), 4, 56).tolist() == [level]


def test_levels_count_area_not_sides() -> None:
    rois = torch.tensor([[0.0, 0, 28, 448], [10, 20, 458, 48], [0, 0, 27.9, 448]])
    assert assign_levels(rois, 4, 56).tolist() == [1, 1, 0]


def test_levels_of_rois_without_area_are_the_finest() -> None:
    rois = torch.tensor([[5.0, 5, 5, 900], [9, 9, 0, 500], [0, 0, math.nan, 1]])
    assert assign_levels(rois, 4, 56).tolist() == [0, 0, 0]


def test_levels_equal_the_logarithm_down_to_one_unit_in_the_last_place() -> None:
    sides = np.arange(1, 1200, 0.37, dtype=np.float32)
    for boundary in (112, 224, 448, 896):
        near = np.float32(boundary)
        for _ in range(8):
            near = np.nextafter(near, np.float32(0))
        for _ in range(17):
            sides = np.append(sides, near)
            near = np.nextafter(near, np.float32(1e9))
    scale = np.sqrt(sides * sides) / np.float32(56) + np.float32(1e-6)  # float32 throughout
    expected = np.floor(np.log2(scale.astype(np.float64))).clip(0, 3).astype(int)
    np.testing.assert_array_equal(assign_levels(squares(sides.tolist()), 4, 56), expected)


@pytest.mark.parametrize("side", [111.9, 112.0, 223.9, 224.0, 447.9, 448.0])
def test_levels_of_the_function_body_are_the_same(side: float) -> None:
    # Each level's map is constant, so the result is the level.
    rois = squares([side]).unsqueeze(0)
    maps = [np.full((1, 1, 4, 4), level, np.float32) for level in range(4)]
    attributes = {
        "output_size": 1,
        "sampling_ratio": 1,
        "strides": [256, 256, 256, 256],
        "finest_scale": 56,
    }
    (out,) = faces.run_body(
        "MultilevelRoiAlign",
        attributes,
        [rois.numpy(), *maps],
        [np.zeros((1, 1, 1, 1, 1), np.float32)],
    )
    assert out.item() == assign_levels(rois, 4, 56).item()
