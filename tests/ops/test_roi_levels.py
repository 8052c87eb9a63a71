"""Which pyramid level a RoI is pooled from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.kernels import Device
from carafe_deploy.operators.roi_align import assign_levels
from carafe_deploy.ops import multilevel_roi_align
from carafe_deploy.ops.roi_align import multilevel_roi_align_reference
from tests.ops import faces
from tests.plugins import problems
from tests.plugins.emulated import FORWARD, EmulatedLibrary, built_emulator


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


# --- every face ----------------------------------------------------------------------------------

#: What the pyramid of these tests has: its maps are constant, so that a result is a level.
ATTRIBUTES = {
    "output_size": 1,
    "sampling_ratio": 1,
    "strides": [256, 256, 256, 256],
    "finest_scale": 56,
}


def maps() -> list[Tensor]:
    return [torch.full((1, 1, 16, 16), float(level)) for level in range(4)]


def by_kernels(
    device: Device, place: problems.Place, rois: Tensor, library: EmulatedLibrary | None = None
) -> Tensor:
    size, ratio, strides, finest = ATTRIBUTES.values()
    problem = problems.RoiAlignProblem(
        "levels", rois, tuple(maps()), size, ratio, tuple(strides), finest, place
    )
    library = library or built_emulator()
    library.set_order(FORWARD)
    return problem.run(library, device)


def by_body(rois: Tensor) -> Tensor:
    inputs = [rois.numpy(), *(level.numpy() for level in maps())]
    (out,) = faces.run_body("multilevel_roi_align", ATTRIBUTES, inputs)
    return torch.from_numpy(out)


#: Everything that assigns levels, RoIs [1, K, 4] -> [1, K, 1, 1, 1].
FACES: dict[str, Callable[[Tensor], Tensor]] = {
    "reference": lambda rois: multilevel_roi_align_reference(rois, maps(), *ATTRIBUTES.values()),
    "torch operator": lambda rois: multilevel_roi_align(rois, maps(), **ATTRIBUTES),
    "function body": by_body,
    "CPU kernel, planes": functools.partial(by_kernels, Device.CPU, problems.NCHW),
    "CPU kernel, channels-last": functools.partial(by_kernels, Device.CPU, problems.NHWC),
    "CUDA source, planes": functools.partial(by_kernels, Device.CUDA, problems.NCHW),
    "CUDA source, channels-last": functools.partial(by_kernels, Device.CUDA, problems.NHWC),
}


def levels_found(face: str, rois: Tensor) -> Tensor:
    """[K]; the weights of a bin add up to one but for rounding."""
    found = FACES[face](rois.unsqueeze(0)).flatten()
    assert (found - found.round()).abs().max() < 1e-5
    return found.round()


each_face = pytest.mark.parametrize("face", FACES)

#: A side and its level. In float32, 1e-6 lifts what is up to 7 numbers below 112, 3 below 224 and 2
#: below 448. The first of 112 and of 448 reach the power of two exactly.
BOUNDARIES = {
    111.99993896484375: 0,
    111.99994659423828: 1,
    111.99999237060547: 1,
    112.0: 1,
    112.00000762939453: 1,
    223.99993896484375: 1,
    223.9999542236328: 2,
    223.99998474121094: 2,
    224.0: 2,
    447.9999084472656: 2,
    447.99993896484375: 3,
    448.0: 3,
    448.000030517578125: 3,
    896.0: 3,
}


@each_face
def test_both_sides_of_every_boundary(face: str) -> None:
    found = levels_found(face, squares(list(BOUNDARIES)))
    assert dict(zip(BOUNDARIES, found.tolist(), strict=True)) == BOUNDARIES


def sides_near_boundaries() -> np.ndarray:
    """Each boundary with the eight numbers of float32 below and above, and what lies between."""
    sides = np.arange(1, 1200, 3.7, dtype=np.float32)
    for boundary in (112, 224, 448, 896):
        near = np.float32(boundary)
        for _ in range(8):
            near = np.nextafter(near, np.float32(0))
        for _ in range(17):
            sides = np.append(sides, near)
            near = np.nextafter(near, np.float32(1e9))
    return sides


@each_face
@pytest.mark.parametrize("factor", [1, 4], ids=["square", "narrow"])
def test_levels_equal_the_logarithm_down_to_one_unit_in_the_last_place(
    face: str, factor: int
) -> None:
    sides = sides_near_boundaries()
    scale = np.sqrt(sides * sides) / np.float32(56) + np.float32(1e-6)  # float32 throughout
    expected = np.floor(np.log2(scale.astype(np.float64))).clip(0, 3)
    rois = squares(sides.tolist())
    rois[:, 2] /= factor  # exactly: the area stays
    rois[:, 3] *= factor
    np.testing.assert_array_equal(levels_found(face, rois), expected)
