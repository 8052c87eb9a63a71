"""Body of BatchedNms: valid ONNX, in ONNX Runtime equal to the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from carafe_deploy.ops._body_nms import batched_nms_body
from carafe_deploy.ops.nms import batched_nms_reference
from tests.ops.one_node import (
    OPSETS,
    Array,
    infer_checked,
    one_node_model,
    run,
    set_input_shapes,
)


def _nms(iou: float, score: float, max_output: int, *, opset: int = 18) -> onnx.ModelProto:
    attributes: dict[str, Any] = {
        "iou_threshold": iou,
        "score_threshold": score,
        "max_output": max_output,
    }
    body = batched_nms_body(opset=opset, overload="x")
    return one_node_model(body, [["b", "l", "m", 4], ["b", "l", "m"]], attributes)


def _candidates(batch: int, labels: int, count: int) -> tuple[Array, Array]:
    """Boxes around few centres, so that many overlap; scores of 21 values, so that many tie."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(50, 400, (batch, labels, 6, 2))[:, :, rng.integers(0, 6, count)]
    centres = centres + rng.normal(0, 8, centres.shape)
    sides = rng.uniform(30, 90, centres.shape)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1)
    scores = np.round(rng.uniform(0, 1, (batch, labels, count)) * 20) / 20
    return boxes.astype(np.float32), scores.astype(np.float32)


def _assert_nms(boxes: Array, scores: Array, iou: float, score: float, max_output: int) -> None:
    for opset in OPSETS:
        model = _nms(iou, score, max_output, opset=opset)
        infer_checked(model)
        num_dets, indices = run(model, boxes, scores)
        expected = batched_nms_reference(
            torch.from_numpy(boxes), torch.from_numpy(scores), iou, score, max_output
        )
        np.testing.assert_array_equal(num_dets, expected[0].numpy(), strict=True)
        np.testing.assert_array_equal(indices, expected[1].numpy(), strict=True)


@pytest.mark.parametrize(
    ("batch", "labels", "count", "iou", "score", "max_output"),
    [
        pytest.param(2, 3, 40, 0.5, 0.3, 50, id="box head"),
        pytest.param(1, 5, 60, 0.7, -1.0, 100, id="proposals"),
        pytest.param(1, 5, 60, 0.7, -1.0, 1000, id="more rows than candidates"),
        pytest.param(2, 2, 30, 0.5, 2.0, 8, id="no score is high enough"),
        pytest.param(2, 1, 1, 0.5, -np.inf, 3, id="one candidate"),
        pytest.param(1, 2, 30, 0.0, 0.1, 60, id="any overlap suppresses"),
        pytest.param(1, 2, 30, 1.0, 0.1, 60, id="no overlap suppresses"),
        pytest.param(0, 2, 30, 0.5, 0.1, 5, id="empty batch"),
        pytest.param(2, 0, 30, 0.5, 0.1, 5, id="no labels"),
        pytest.param(2, 2, 0, 0.5, 0.1, 5, id="no candidates"),
    ],
)
def test_equals_reference(
    batch: int, labels: int, count: int, iou: float, score: float, max_output: int
) -> None:
    _assert_nms(*_candidates(batch, labels, count), iou, score, max_output)


def test_never_selects_minus_infinity_or_nan() -> None:
    boxes, scores = _candidates(1, 2, 20)
    scores[0, 0, ::2], scores[0, 1, ::3] = -np.inf, np.nan
    _assert_nms(boxes, scores, 0.5, -np.inf, 40)


def test_threshold_is_exclusive() -> None:
    boxes, _ = _candidates(1, 1, 3)
    _assert_nms(boxes, np.array([[[0.5, 0.25, 0.75]]], np.float32), 1.0, 0.5, 3)


def test_caps_nothing() -> None:
    corners = np.stack(np.meshgrid(np.arange(30), np.arange(40)), -1).reshape(1, 1, -1, 2) * 10.0
    boxes = np.concatenate([corners, corners + 8], -1).astype(np.float32)
    scores = np.random.default_rng(0).uniform(0.1, 1, (1, 1, 1200)).astype(np.float32)
    num_dets, _ = run(_nms(0.5, 0.05, 1200), boxes, scores)
    assert num_dets.tolist() == [[1200]]


def test_ranks_are_inferred() -> None:
    """Sizes are not: ONNX's inference knows no integer that comes from the node."""
    model = _nms(0.5, 0.05, 100)
    set_input_shapes(model, (2, 3, 50, 4), (2, 3, 50))
    (_, one), (_, _) = infer_checked(model)
    assert one == 1
