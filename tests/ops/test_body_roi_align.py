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
from tests.ops import faces
from tests.ops.cases import CASES, Case
from tests.ops.one_node import (
    Array,
    infer_checked,
    intermediates,
    normal,
    one_node_model,
    run_in_type,
)

STRIDES = (4, 8, 16, 32)


def _roi_align(
    output_size: int = 7,
    sampling_ratio: int = 0,
    strides: Sequence[int] = STRIDES,
    finest_scale: int = 56,
    opset: int = 18,
) -> onnx.ModelProto:
    attributes: dict[str, Any] = {
        "output_size": output_size,
        "sampling_ratio": sampling_ratio,
        "strides": strides,
        "finest_scale": finest_scale,
    }
    body = multilevel_roi_align_body(
        num_levels=len(strides),
        sampling_ratio=sampling_ratio,
        strides=strides,
        finest_scale=finest_scale,
        opset=opset,
        overload="x",
    )
    maps = [["b", "c", f"h{stride}", f"w{stride}"] for stride in strides]
    return one_node_model(body, [["b", "k", 4], *maps], attributes)


def _pyramid() -> list[Array]:
    return [normal(1, 3, 256 // s, 320 // s, seed=s) for s in STRIDES]


def _pooled(rois: Array, maps: Sequence[Array]) -> Array:
    doubles = [torch.from_numpy(array).double() for array in (rois, *maps)]
    return multilevel_roi_align_reference(doubles[0], doubles[1:], 7, 0, STRIDES, 56).numpy()


def _rois(*rows: Sequence[float]) -> Array:
    return np.array([rows], np.float32)


@pytest.mark.parametrize("case", CASES["multilevel_roi_align"], ids=str)
def test_at_opset_22(case: Case) -> None:
    """By ONNX's own evaluator, which is slow: ONNX Runtime 1.32 has no such RoiAlign on the CPU."""
    rois, *maps = case.inputs
    attributes = {**case.attributes, "output_size": 2}
    small = Case(case.reason, (rois, *(level[:, :1] for level in maps)), attributes)
    model = _roi_align(**attributes, opset=22)
    infer_checked(model)
    arrays = [tensor.numpy() for tensor in small.arranged(torch.float32)]
    names = [value.name for value in model.graph.input]
    found = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))[0]
    (expected,) = faces.truth("multilevel_roi_align", small)
    # Sample positions are float32: up to 1e-5 of a pixel off at x = 300, times a slope of order 1.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_pools_an_roi_on_its_own_level_only() -> None:
    rois = _rois([8, 8, 40, 60], [9, 9, 140, 150], [0, 0, 300, 250], [-80, -60, 500, 500])
    results = intermediates(_roi_align(), rois, *_pyramid())
    pooled = [array.shape[0] for op_type, array in results if op_type == "RoiAlign"]
    assert pooled == [1, 1, 1, 1]


def test_keeps_rois_in_float32_for_half_features() -> None:
    rois = _rois([5.3, 5.1, 77.7, 60.9], [200.3, 100.1, 309.7, 230.3])
    maps = [array.astype(np.float16).astype(np.float32) for array in _pyramid()]
    (found,) = run_in_type(_roi_align(), TensorProto.FLOAT16, rois, *maps, keep=1)
    # float16's half unit in the last place; float16 RoIs would be 0.05 px, and 1e-2, off.
    np.testing.assert_allclose(found, _pooled(rois, maps), rtol=2.0**-11, atol=2e-4)
