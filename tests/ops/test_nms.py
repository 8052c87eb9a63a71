"""BatchedNms: every case on every face, against the reference in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from carafe_deploy.graph.onnx_export import export_operator_network
from carafe_deploy.ops import batched_nms
from carafe_deploy.ops.nms import batched_nms_reference
from tests.ops import faces
from tests.ops.cases import Attributes, Case, named


def test_dynamic_export_takes_other_sizes(tmp_path: Path) -> None:
    traced = named("batched_nms", "box head: many classes, two images")
    names = ("batch", "labels", "candidates")
    sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(names)}
    path = tmp_path / "dynamic.onnx"
    export_operator_network(
        faces.Call(batched_nms, traced.attributes),
        traced.inputs,
        path,
        dynamic_shapes=((sizes, sizes),),
    )
    for reason in ("two images differ", "labels do not suppress each other", "one box"):
        case = Case(reason, named("batched_nms", reason).inputs, traced.attributes)
        out = faces.run_file(path, [tensor.numpy() for tensor in case.inputs])
        faces.assert_right("batched_nms", out, faces.truth("batched_nms", case))


# --- an example by hand --------------------------------------------------------------------------


def test_hand_computed_example() -> None:
    # Label 0: A = 10x10 at (0, 0), B = 10x10 at (0, 2), C = 10x10 at (0, 6); label 1: D = A's box.
    # IoU(A, B) = 80/120 = 0.667, IoU(B, C) = 60/140 = 0.429, IoU(A, C) = 40/160 = 0.25.
    # At 0.4, by score B (0.9) suppresses A (0.8) and C (0.7); D (0.6) is alone in its label: B, D.
    # At 0.5 B suppresses A only: B, C, D. At 0.7 nothing is suppressed: B, A, C, D.
    a, b, c = [0.0, 0, 10, 10], [0.0, 2, 10, 12], [0.0, 6, 10, 16]
    boxes = torch.tensor([[[a, b, c], [a, a, a]]])
    scores = torch.tensor([[[0.8, 0.9, 0.7], [0.6, -math.inf, -math.inf]]])
    for iou, expected in ((0.4, [1, 3]), (0.5, [1, 2, 3]), (0.7, [1, 0, 2, 3])):
        num_dets, indices = batched_nms(
            boxes, scores, iou_threshold=iou, score_threshold=0.0, max_output=5
        )
        assert num_dets.tolist() == [[len(expected)]]
        assert indices.tolist() == [expected + [-1] * (5 - len(expected))]


# --- recorded vectors ----------------------------------------------------------------------------


def by_label(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in any order -> [1, L, M, 4], [1, L, M] padded with -inf, and [L*M] their numbers."""
    num_labels = int(labels.max()) + 1
    per_label = int(labels.bincount().max())
    number = torch.full((num_labels, per_label), -1)
    for label in range(num_labels):
        members = (labels == label).nonzero().squeeze(1)
        number[label, : len(members)] = members
    padding = number < 0
    laid_out = boxes[number].masked_fill(padding.unsqueeze(2), 0.0)
    return (
        laid_out.unsqueeze(0),
        scores[number].masked_fill(padding, -math.inf).unsqueeze(0),
        number.flatten(),
    )


@pytest.mark.parametrize("face", [face for face in faces.FACES if face != "reference"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_recorded_vectors(data_dir: Path, tmp_path: Path, size: str, face: str) -> None:
    """mmcv keeps the same of 2,000 and 12,000 boxes, in spite of its offsets.

    Its order is the same too, but for equal scores (two pairs of the 10,283 kept): the lower index
    comes first here, either does there.
    """
    with np.load(data_dir / "units.npz") as file:
        boxes, scores, labels, keep = (
            torch.from_numpy(file[f"nms/{size}_{name}"].astype(kind))
            for name, kind in (("boxes", "f4"), ("scores", "f4"), ("ids", "i8"), ("keep", "i8"))
        )
    laid_out, laid_out_scores, number = by_label(boxes, scores, labels)
    attributes = {"iou_threshold": 0.5, "score_threshold": -1.0, "max_output": len(boxes)}
    case = Case("recorded", (laid_out, laid_out_scores), attributes)
    num_dets, indices = faces.FACES[face]("batched_nms", case, tmp_path)
    assert num_dets.item() == len(keep)
    ours = number[indices[0, : len(keep)]]
    assert torch.equal(ours.sort().values, keep.sort().values)
    assert torch.equal(scores[ours], scores[keep])
    assert int((ours != keep).sum()) == {"small": 0, "large": 4}[size]
    assert (indices[0, len(keep) :] == -1).all()


# --- mmcv's offset arithmetic --------------------------------------------------------------------


def keep_with_offsets(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> set[int]:
    """Kept boxes as mmcv finds them: labels apart by ``label * (largest coordinate + 1)``.

    Above 10,000 boxes mmcv goes through the labels one by one, on the shifted boxes still.
    """
    shifted = boxes + (labels.to(boxes) * (boxes.max() + 1)).unsqueeze(1)
    kept: set[int] = set()
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        kept.update(members[nms(shifted[members], scores[members], iou)].tolist())
    return kept


def ious_and_errors(
    box: np.ndarray, others: np.ndarray, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """IoUs of [4] with [K, 4], and how far coordinates off by ``shift`` may move them."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    overlap = (high - low).clip(min=0)
    side, sides = box[2:] - box[:2], others[:, 2:] - others[:, :2]
    intersection = overlap.prod(axis=1)
    union = side.prod() + sides.prod(axis=1) - intersection
    iou = intersection / union

    def error(lengths: np.ndarray) -> np.ndarray:
        """Of an area whose sides are off by two coordinates each."""
        return 2 * shift * lengths.sum(axis=-1) + 4 * shift**2

    change = error(overlap)
    return iou, (change + iou * (error(side) + error(sides) + change)) / union


def test_differences_from_offset_arithmetic_are_rounding() -> None:
    """Of 24,530 kept boxes mmcv's arithmetic drops five, and it keeps three others: 1 in 3,066.

    80,000 boxes as after a box head (80 labels of 1,000, image 1333x800). Shifted by up to
    79 * 1,334 pixels, coordinates are rounded to 1/128 pixel; an IoU nearer to the threshold than
    that moves it falls on either side. So each difference is explained by such a pair, or by one
    before it. Other seeds give two to nine.
    """
    threshold, num_labels, per_label, objects = 0.5, 80, 1000, 200
    generator = torch.Generator().manual_seed(1)
    count = num_labels * per_label
    number = torch.arange(count)
    labels = number % num_labels
    positions = torch.rand(objects, num_labels, 2, generator=generator)
    centre = (positions * torch.tensor([1333.0, 800.0]))[number // num_labels % objects, labels]
    centre = centre + torch.randn(count, 2, generator=generator) * 6
    half = 25 + 25 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat((centre - half, centre + half), dim=1).clamp(min=0, max=1333.0)
    scores = (torch.randperm(count, generator=generator) + 0.5) / count

    laid_out, laid_out_scores, number = by_label(boxes, scores, labels)
    num_dets, indices = batched_nms(
        laid_out, laid_out_scores, iou_threshold=threshold, score_threshold=-1.0, max_output=count
    )
    ours = set(number[indices[0, : num_dets.item()]].tolist())
    theirs = keep_with_offsets(boxes, scores, labels, threshold)

    largest = float(boxes.max() + 1) * num_labels
    shift = 2.0 ** (math.floor(math.log2(largest)) - 23)  # one unit in the last place
    exact = boxes.double().numpy()
    kept = torch.tensor(sorted(ours | theirs))
    flips = sorted(ours ^ theirs, key=lambda index: -float(scores[index]))
    for position, flip in enumerate(flips):
        rivals = kept[(labels[kept] == labels[flip]) & (scores[kept] > scores[flip])].numpy()
        iou, error = ious_and_errors(exact[flip], exact[rivals], shift)
        rounding = abs(iou - threshold) <= error
        consequence = np.isin(rivals, flips[:position]) & (iou > threshold)
        assert (rounding | consequence).any(), f"box {flip} flipped without a reason"
    assert 0 < len(flips) < len(ours) / 1000  # 8; the last bits of randn vary with the processor


# --- values that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("face", ["operator", "reference", "body"])
def test_infinite_scores_rank_first_and_minus_infinity_never_passes(face: str) -> None:
    boxes = torch.tensor([[[[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]]])
    scores = torch.tensor([[[0.5, math.inf, -math.inf]]])
    attributes = {"iou_threshold": 0.5, "score_threshold": -math.inf, "max_output": 3}
    assert run(face, boxes, scores, attributes) == (2, [1, 0, -1])


@pytest.mark.parametrize("face", ["operator", "reference", "body"])
def test_boxes_with_nan_neither_suppress_nor_are_suppressed(face: str) -> None:
    boxes = torch.tensor([[[[math.nan, 0, 4, 4], [0.0, 0, 4, 4], [math.nan] * 4, [0, 0, 4, 4]]]])
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6]]])
    attributes = {"iou_threshold": 0.5, "score_threshold": 0.0, "max_output": 4}
    assert run(face, boxes, scores, attributes) == (3, [0, 1, 2, -1])


def run(face: str, boxes: Tensor, scores: Tensor, attributes: Attributes) -> tuple[int, list[int]]:
    case = Case("not finite", (boxes, scores), attributes)
    num_dets, indices = faces.FACES[face]("batched_nms", case, Path())
    return num_dets.item(), indices[0].tolist()


# --- errors --------------------------------------------------------------------------------------

BOXES = torch.zeros(1, 2, 3, 4)
SCORES = torch.zeros(1, 2, 3)

ERRORS: list[tuple[Tensor, Tensor, dict[str, float], str]] = [
    (BOXES[0], SCORES, {}, r"boxes has shape \(2, 3, 4\), expected \[B, L, M, 4\]"),
    (BOXES[..., :3], SCORES, {}, r"boxes has shape \(1, 2, 3, 3\), expected \[B, L, M, 4\]"),
    (BOXES, SCORES[0], {}, r"scores has shape \(2, 3\), expected \(1, 2, 3\)"),
    (BOXES, SCORES[:, :1], {}, r"scores has shape \(1, 1, 3\), expected \(1, 2, 3\)"),
    (BOXES, SCORES.double(), {}, "boxes is torch.float32 and scores torch.float64, expected float"),
    (BOXES.half(), SCORES.half(), {}, "boxes is torch.float16 and scores torch.float16, expected"),
    (BOXES, SCORES.to("meta"), {}, "boxes is on cpu, scores on meta, expected one"),
    (BOXES, SCORES, {"iou_threshold": 1.5}, "iou_threshold is 1.5, expected a number from 0 to 1"),
    (BOXES, SCORES, {"iou_threshold": math.nan}, "iou_threshold is nan, expected a number from 0"),
    (BOXES, SCORES, {"score_threshold": math.nan}, "score_threshold is nan, expected a finite"),
    (BOXES, SCORES, {"score_threshold": math.inf}, "score_threshold is inf, expected a finite"),
    (BOXES, SCORES, {"max_output": 0}, "max_output is 0, expected at least 1"),
]


@pytest.mark.parametrize(("boxes", "scores", "changed", "message"), ERRORS)
def test_errors(boxes: Tensor, scores: Tensor, changed: dict[str, float], message: str) -> None:
    attributes: dict[str, Any] = {"iou_threshold": 0.5, "score_threshold": 0.0, "max_output": 5}
    attributes |= changed
    with pytest.raises(ValueError, match=message):
        batched_nms(boxes, scores, **attributes)
    with pytest.raises(ValueError, match=message):
        batched_nms_reference(boxes, scores, *attributes.values())
