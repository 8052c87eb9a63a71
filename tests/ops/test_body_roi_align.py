"""Body of MultilevelRoiAlign: valid ONNX, equal to the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from carafe_deploy.ops._body_roi_align import multilevel_roi_align_body
from carafe_deploy.ops.roi_align import multilevel_roi_align_reference
from tests.ops.one_node import (
    Array,
    infer_checked,
    intermediates,
    normal,
    one_node_model,
    run,
    run_in_type,
    set_input_shapes,
)

STRIDES = (4, 8, 16, 32)


def _roi_align(
    size: int, ratio: int, strides: tuple[int, ...] = STRIDES, *, opset: int = 18
) -> onnx.ModelProto:
    attributes: dict[str, Any] = {
        "output_size": size,
        "sampling_ratio": ratio,
        "strides": strides,
        "finest_scale": 56,
    }
    body = multilevel_roi_align_body(
        num_levels=len(strides),
        sampling_ratio=ratio,
        strides=strides,
        finest_scale=56,
        opset=opset,
        overload="x",
    )
    maps = [["b", "c", f"h{stride}", f"w{stride}"] for stride in strides]
    return one_node_model(body, [["b", "k", 4], *maps], attributes)


def _pyramid(batch: int, channels: int = 3, strides: tuple[int, ...] = STRIDES) -> list[Array]:
    return [normal(batch, channels, 256 // s, 320 // s, seed=s) for s in strides]


def _pooled(rois: Array, maps: Sequence[Array], size: int, ratio: int) -> Array:
    strides = STRIDES[: len(maps)]
    doubles = [torch.from_numpy(array).double() for array in (rois, *maps)]
    return multilevel_roi_align_reference(doubles[0], doubles[1:], size, ratio, strides, 56).numpy()


def _rois(*rows: Sequence[float]) -> Array:
    return np.array([rows], np.float32)


ROI_CASES = {
    "all levels": _rois([8, 8, 40, 60], [9, 9, 140, 150], [0, 0, 300, 250], [-80, -60, 500, 500]),
    "one level": _rois([8, 8, 40, 60], [1, 2, 30, 17], [200, 100, 250, 130]),
    "boundaries": _rois([0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [9, 9, 120, 121]),
    "beyond the map": _rois([300, 240, 360, 300], [900, 900, 990, 990], [-90, -90, -10, -10]),
    "fractions": _rois([5.3, 5.1, 5.9, 5.2], [100.7, 30.2, 201.3, 99.9]),
    "no area": _rois([0, 0, 0, 0], [10, 10, 10, 90], [10, 10, 90, 10], [0, 0, 0, 0]),
    "inside out": _rois([90, 20, 10, 80], [20, 90, 80, 10], [90, 90, 10, 10]),
    "none": np.zeros((1, 0, 4), np.float32),
}  # fmt: skip


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("rois", ROI_CASES.values(), ids=ROI_CASES)
def test_equals_reference(rois: Array, ratio: int) -> None:
    maps, model = _pyramid(1), _roi_align(7, ratio)
    infer_checked(model)
    (found,) = run(model, rois, *maps)
    assert found.shape == (1, rois.shape[1], 3, 7, 7)
    # Sample positions are float32: up to 1e-5 of a pixel off at x = 300, times a slope of order 1.
    np.testing.assert_allclose(found, _pooled(rois, maps, 7, ratio), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("rois", ROI_CASES.values(), ids=ROI_CASES)
def test_at_opset_22_equals_reference(rois: Array, ratio: int) -> None:
    # ONNX's own evaluator: ONNX Runtime 1.32 has no CPU kernel of that version of RoiAlign.
    maps, model = _pyramid(1, channels=1), _roi_align(2, ratio, opset=22)
    infer_checked(model)
    names = [value.name for value in model.graph.input]
    found = ReferenceEvaluator(model).run(None, dict(zip(names, [rois, *maps], strict=True)))[0]
    np.testing.assert_allclose(found, _pooled(rois, maps, 2, ratio), rtol=0, atol=1e-4)


def test_keeps_images_apart() -> None:
    rois = np.concatenate([ROI_CASES["all levels"], ROI_CASES["all levels"][:, ::-1]])
    maps = _pyramid(2)
    (found,) = run(_roi_align(14, 0), rois, *maps)
    np.testing.assert_allclose(found, _pooled(rois, maps, 14, 0), rtol=0, atol=1e-4)


def test_takes_one_level() -> None:
    maps = _pyramid(1, strides=(4,))
    (found,) = run(_roi_align(7, 0, (4,)), ROI_CASES["all levels"], *maps)
    expected = _pooled(ROI_CASES["all levels"], maps, 7, 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_takes_an_empty_batch() -> None:
    (found,) = run(_roi_align(7, 0), np.zeros((0, 5, 4), np.float32), *_pyramid(0))
    assert found.shape == (0, 5, 3, 7, 7)


def test_pools_an_roi_on_its_own_level_only() -> None:
    rois = ROI_CASES["all levels"]
    results = intermediates(_roi_align(7, 0), rois, *_pyramid(1))
    pooled = [array.shape[0] for op_type, array in results if op_type == "RoiAlign"]
    assert pooled == [1, 1, 1, 1]


def test_keeps_rois_in_float32_for_half_features() -> None:
    rois = _rois([5.3, 5.1, 77.7, 60.9], [200.3, 100.1, 309.7, 230.3])
    maps = [array.astype(np.float16).astype(np.float32) for array in _pyramid(1)]
    (found,) = run_in_type(_roi_align(7, 0), TensorProto.FLOAT16, rois, *maps, keep=1)
    # float16's half unit in the last place; float16 RoIs would be 0.05 px, and 1e-2, off.
    np.testing.assert_allclose(found, _pooled(rois, maps, 7, 0), rtol=2.0**-11, atol=2e-4)


def test_static_shape_is_inferred() -> None:
    model = _roi_align(7, 0)
    set_input_shapes(model, (2, 9, 4), *(array.shape for array in _pyramid(2)))
    assert infer_checked(model) == [[2, 9, 3, 7, 7]]
