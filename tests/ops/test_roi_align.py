"""MultilevelRoiAlign: dynamic sizes, recorded vectors, an example by hand, NaN and errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.graph.onnx_export import export_operator_network
from carafe_deploy.operators.roi_align import assign_levels
from carafe_deploy.ops import multilevel_roi_align
from carafe_deploy.ops.roi_align import multilevel_roi_align_reference
from tests.ops import faces
from tests.ops.cases import Case, named

assert_right = functools.partial(faces.assert_right, "multilevel_roi_align")


def test_dynamic_export_takes_other_sizes(tmp_path: Path) -> None:
    case = named("multilevel_roi_align", "box head: all levels, two images")
    batch, rows, height, width = (
        torch.export.Dim(name) for name in ("batch", "rows", "height", "width")
    )
    maps = tuple({0: batch, 2: scale * height, 3: scale * width} for scale in (8, 4, 2, 1))
    path = tmp_path / "dynamic.onnx"
    export_operator_network(
        faces.Call(faces.operator("multilevel_roi_align"), case.attributes),
        case.arranged(torch.float32),
        path,
        dynamic_shapes=(({0: batch, 1: rows}, *maps),),
    )
    for n, k, h, w in ((1, 5, 5, 4), (3, 2, 3, 7), (1, 0, 2, 2)):
        generator = torch.Generator().manual_seed(k)
        low = torch.rand(n, k, 2, generator=generator) * 100
        rois = torch.cat((low, low + torch.rand(n, k, 2, generator=generator) * 150), dim=2)
        features = [
            torch.randn(n, 2, scale * h, scale * w, generator=generator) for scale in (8, 4, 2, 1)
        ]
        out = faces.run_file(path, [tensor.numpy() for tensor in (rois, *features)])
        other = Case(case.reason, (rois, *features), case.attributes)
        assert_right(out, faces.truth("multilevel_roi_align", other))


# --- an example by hand --------------------------------------------------------------------------


def test_hand_computed_example() -> None:
    # One level of stride 1 holding f(y, x) = 10*y + x on 4x4. Coordinates shift by half a pixel,
    # so RoI (1, 1, 3, 3) covers 0.5 to 2.5; two bins a side, ceil(2/2) = 1 sample each, at the
    # bins' centres 1 and 2: pixels (1, 1), (1, 2), (2, 1), (2, 2) themselves.
    # RoI (0, 0, 4, 2) covers x -0.5 to 3.5, y -0.5 to 1.5: ceil(4/2) = 2 samples a bin along x
    # at 0, 1 and 2, 3 (means 0.5 and 2.5), one along y at 0 and 1.
    # RoI (-4, 1, 0, 3): x -4.5 to -0.5, samples at -4, -3 | -2, -1. Beyond -1 a sample is 0, at -1
    # it is clamped to column 0, where f = 10*y: bins are 0 and 10*y/2 with y = 1, 2.
    features = torch.tensor([[[[10.0 * y + x for x in range(4)] for y in range(4)]]])
    rois = torch.tensor([[[1.0, 1, 3, 3], [0, 0, 4, 2], [-4, 1, 0, 3]]])
    expected = [
        [[11.0, 12.0], [21.0, 22.0]],
        [[0.5, 2.5], [10.5, 12.5]],
        [[0.0, 5.0], [0.0, 10.0]],
    ]
    attributes = {"output_size": 2, "sampling_ratio": 0, "strides": [1], "finest_scale": 56}
    out = multilevel_roi_align(rois, [features], **attributes)
    assert out[0, :, 0].tolist() == expected
    reference = multilevel_roi_align_reference(rois, [features], *attributes.values())
    assert reference[0, :, 0].tolist() == expected
    arrays = [rois.numpy(), features.numpy()]
    (body,) = faces.run_body("multilevel_roi_align", attributes, arrays)
    assert body[0, :, 0].tolist() == expected


# --- recorded vectors ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(data_dir: Path) -> dict[str, np.ndarray]:
    """mmdetection's SingleRoIExtractor on two images."""
    with np.load(data_dir / "units.npz") as file:
        return {
            name.removeprefix("roi/"): file[name] for name in file.files if name.startswith("roi/")
        }


def by_image(rois: np.ndarray) -> tuple[Tensor, list[np.ndarray]]:
    """[60, 5] with the image first -> [2, K, 4] padded with zeros, and each image's row numbers."""
    rows = [np.flatnonzero(rois[:, 0] == image) for image in (0, 1)]
    padded = torch.zeros(2, max(map(len, rows)), 4)
    for image, index in enumerate(rows):
        padded[image, : len(index)] = torch.from_numpy(rois[index, 1:])
    return padded, rows


def recorded_case(recorded: dict[str, np.ndarray], size: int) -> tuple[Case, np.ndarray]:
    rois, rows = by_image(recorded["rois"])
    maps = tuple(torch.from_numpy(recorded[f"feat{level}"]) for level in range(4))
    attributes = {
        "output_size": size,
        "sampling_ratio": 0,
        "strides": [4, 8, 16, 32],
        "finest_scale": 56,
    }
    expected = np.zeros((2, rois.shape[1], 3, size, size), np.float32)
    for image, index in enumerate(rows):
        expected[image, : len(index)] = recorded[f"out{size}"][index]
    return Case("recorded", (rois, *maps), attributes), expected


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("face", faces.FACES)
def test_recorded_vectors(
    recorded: dict[str, np.ndarray], face: str, size: int, tmp_path: Path
) -> None:
    case, expected = recorded_case(recorded, size)
    out = faces.FACES[face]("multilevel_roi_align", case, tmp_path)
    assert_right(out, (expected,))


def test_recorded_levels(recorded: dict[str, np.ndarray]) -> None:
    levels = assign_levels(torch.from_numpy(recorded["rois"][:, 1:]), 4, 56)
    np.testing.assert_array_equal(levels.numpy(), recorded["levels"])
    assert set(recorded["levels"].tolist()) == {0, 1, 2, 3}


# --- values that are not finite ------------------------------------------------------------------

PLAIN = {"output_size": 2, "strides": [4], "finest_scale": 56}


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(
    "roi",
    [
        (math.nan, 0, 8, 8),
        (0, 0, 8, math.nan),
        (0, 0, math.inf, 8),
        (-math.inf, -math.inf, math.inf, math.inf),
    ],
)
def test_rois_that_are_not_finite_pool_to_zeros(roi: Sequence[float], ratio: int) -> None:
    rois = torch.tensor([[roi, (4.0, 4.0, 20.0, 20.0)]])
    features = [torch.ones(1, 1, 8, 8)]
    expected = [[0.0] * 4, [1.0] * 4]
    out = multilevel_roi_align(rois, features, sampling_ratio=ratio, **PLAIN)
    assert out.view(2, 4).tolist() == expected
    reference = multilevel_roi_align_reference(rois, features, 2, ratio, [4], 56)
    assert reference.view(2, 4).tolist() == expected
    (body,) = faces.run_body(
        "multilevel_roi_align",
        {"output_size": 2, "sampling_ratio": ratio, "strides": [4], "finest_scale": 56},
        [rois.numpy(), features[0].numpy()],
    )
    assert body.reshape(2, 4).tolist() == expected


def test_a_nan_feature_reaches_the_bins_that_sample_it_only() -> None:
    features = torch.ones(1, 1, 8, 8)
    features[0, 0, 1, 1] = torch.nan
    rois = torch.tensor([[[0.0, 0, 32, 32], [16, 16, 32, 32]]])
    out = multilevel_roi_align(rois, [features], sampling_ratio=0, **PLAIN)
    assert out.isnan().flatten().tolist() == [True, False, False, False] + [False] * 4


# --- errors --------------------------------------------------------------------------------------

ROIS = torch.zeros(2, 3, 4)
MAPS = [torch.zeros(2, 5, 8, 8), torch.zeros(2, 5, 4, 4)]
GOOD = {"output_size": 7, "sampling_ratio": 0, "strides": [4, 8], "finest_scale": 56}

ERRORS: list[tuple[Tensor, list[Tensor], dict[str, Any], str]] = [
    (ROIS[0], MAPS, {}, r"rois has shape \(3, 4\), expected \[B, K, 4\]"),
    (torch.zeros(2, 3, 5), MAPS, {}, r"rois has shape \(2, 3, 5\), expected \[B, K, 4\]"),
    (ROIS.half(), MAPS, {}, "rois is torch.float16, expected float32 whatever the features' dtype"),
    (ROIS, MAPS[:1], {}, "1 feature maps for 2 strides, expected one each"),
    (ROIS, [], {"strides": []}, "0 feature maps for 0 strides, expected one each"),
    (ROIS, MAPS, {"output_size": 0}, "output_size 0, .*: only sampling_ratio may be zero"),
    (ROIS, MAPS, {"sampling_ratio": -1}, "sampling_ratio -1, .*: only sampling_ratio may be zero"),
    (ROIS, MAPS, {"finest_scale": 0}, "finest_scale 0, .*: only sampling_ratio may be zero"),
    (ROIS, MAPS, {"strides": [4, 0]}, r"strides \[4, 0\]: only sampling_ratio may be zero"),
    (
        ROIS,
        [MAPS[0], MAPS[1][0]],
        {},
        r"feature map 1 is torch.float32 of shape \(5, 4, 4\), expected floating point \[B, C",
    ),
    (
        ROIS,
        [MAPS[0].int(), MAPS[1]],
        {},
        "feature map 0 is torch.int32 of shape .*, expected floating point",
    ),
    (
        ROIS,
        [MAPS[0], MAPS[1].half()],
        {},
        "feature map 1 is torch.float16 on cpu, expected torch.float32 on cpu",
    ),
    (
        ROIS,
        [MAPS[0], MAPS[1].to("meta")],
        {},
        "feature map 1 is torch.float32 on meta, expected torch.float32 on cpu",
    ),
    (
        ROIS,
        [MAPS[0], MAPS[1][:1]],
        {},
        r"feature map 1 has batch and channels \(1, 5\), expected \(2, 5\)",
    ),
    (
        ROIS,
        [MAPS[0], MAPS[1][:, :4]],
        {},
        r"feature map 1 has batch and channels \(2, 4\), expected \(2, 5\)",
    ),
]


@pytest.mark.parametrize(("rois", "features", "changed", "message"), ERRORS)
def test_errors(
    rois: Tensor, features: list[Tensor], changed: dict[str, Any], message: str
) -> None:
    attributes = GOOD | changed
    with pytest.raises(ValueError, match=message):
        multilevel_roi_align(rois, features, **attributes)
    with pytest.raises(ValueError, match=message):
        multilevel_roi_align_reference(rois, features, *attributes.values())


@pytest.mark.parametrize("shape", [(1, 3, 0, 6), (1, 3, 6, 0)])
def test_a_map_without_pixels_pools_to_zeros(shape: tuple[int, ...]) -> None:
    rois, feature = torch.tensor([[[0.0, 0.0, 20.0, 20.0]]]), torch.zeros(shape)
    for dtype in (torch.float32, torch.float64):  # by kernels, by torchvision
        out = torch.ops.carafe.multilevel_roi_align(
            rois.to(dtype), [feature.to(dtype)], 2, 2, [4], 56
        )
        assert out.shape == (1, 1, 3, 2, 2)
        assert not out.any()
