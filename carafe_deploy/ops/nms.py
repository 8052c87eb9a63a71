"""Batched NMS: greedy non-maximum suppression inside every label, then the best over all labels.

mmcv's ``batched_nms`` reaches separation of labels by adding ``label * (largest coordinate + 1)``
to the boxes, which costs low bits of the coordinates; here labels are an axis of the input, so
IoUs are those of the boxes as given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carafe_deploy.kernels import KernelLibrary, NmsParams
from carafe_deploy.operators.specification import Attributes, Implementation, Shape
from carafe_deploy.ops import _kernels

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = ["batched_nms", "batched_nms_reference"]


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """Suppress overlapping boxes of one label, keep the best ``max_output`` of all labels.

    A candidate needs ``score > score_threshold`` (NaN and -inf never pass); it is suppressed by a
    kept one of its label when their IoU (no +1 in areas) exceeds ``iou_threshold``. No number of
    candidates is capped. Equal scores rank by lower index.

    Args:
        boxes: [B, L, M, 4] float32: x1, y1, x2, y2.
        scores: [B, L, M] float32; padding is -inf.
        iou_threshold: in [0, 1].
        score_threshold: finite or -inf.
        max_output: rows of the result, at least 1.

    Returns:
        num_dets: [B, 1] int32, number of kept boxes.
        indices: [B, max_output] int64 into the flattened L*M, by descending score, padded with -1.

    Raises:
        ValueError: a shape, dtype or argument does not fit; the message names it.
    """
    num_dets, indices = torch.ops.carafe.batched_nms(
        boxes, scores, iou_threshold, score_threshold, max_output
    )
    return num_dets, indices


# --- reference -----------------------------------------------------------------------------------


def batched_nms_reference(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """:func:`batched_nms` in plain PyTorch, one candidate at a time; float64 stays float64."""
    _check(boxes, scores, iou_threshold, score_threshold, max_output)

    def keep_label(label_boxes: Tensor, label_scores: Tensor) -> Tensor:
        order = label_scores.argsort(descending=True, stable=True)
        order = order[label_scores[order] > score_threshold]
        kept: list[int] = []
        for candidate in order.tolist():
            overlaps = _iou(label_boxes[candidate], label_boxes[kept])
            if not bool((overlaps > iou_threshold).any()):
                kept.append(candidate)
        return torch.tensor(kept, dtype=torch.int64, device=boxes.device)

    return _select(boxes, scores, keep_label, max_output)


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """IoU of one box [4] with others [K, 4]; 0/0 is NaN and never exceeds a threshold."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    area = (box[2:] - box[:2]).prod()
    areas = (others[:, 2:] - others[:, :2]).prod(dim=1)
    return intersection / (area + areas - intersection)


def _select(
    boxes: Tensor, scores: Tensor, keep_label: Any, max_output: int
) -> tuple[Tensor, Tensor]:
    """Run ``keep_label`` on every label, merge by (score descending, index ascending)."""
    batch, labels, per_label = scores.shape
    num_dets = torch.zeros(batch, 1, dtype=torch.int32, device=boxes.device)
    indices = torch.full((batch, max_output), -1, dtype=torch.int64, device=boxes.device)
    for b in range(batch):
        kept = [
            keep_label(boxes[b, label], scores[b, label]) + label * per_label
            for label in range(labels)
        ]
        merged = torch.cat(kept).sort().values if kept else indices.new_empty(0)
        ranking = scores[b].flatten()[merged].argsort(descending=True, stable=True)
        merged = merged[ranking][:max_output]
        num_dets[b, 0] = merged.numel()
        indices[b, : merged.numel()] = merged
    return num_dets, indices


def _check(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_output: int
) -> None:
    if boxes.dim() != 4 or boxes.shape[3] != 4:
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}, expected [B, L, M, 4]")
    if scores.dim() != 3 or any(a != b for a, b in zip(scores.shape, boxes.shape, strict=False)):
        raise ValueError(
            f"scores has shape {tuple(scores.shape)}, expected {tuple(boxes.shape[:3])}"
        )
    if boxes.dtype != scores.dtype or boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"boxes is {boxes.dtype} and scores {scores.dtype}, expected float32 both")
    if boxes.device != scores.device:
        raise ValueError(f"boxes is on {boxes.device}, scores on {scores.device}, expected one")
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold is {iou_threshold}, expected a number from 0 to 1")
    if math.isnan(score_threshold) or score_threshold == math.inf:
        raise ValueError(f"score_threshold is {score_threshold}, expected a finite number")
    if max_output < 1:
        raise ValueError(f"max_output is {max_output}, expected at least 1")


# --- torch operator ------------------------------------------------------------------------------


def _batched_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    _check(boxes, scores, iou_threshold, score_threshold, max_output)
    library = _kernels.library_for(boxes)
    if library is not None:
        return _by_kernels(library, boxes, scores, iou_threshold, score_threshold, max_output)
    from torchvision.ops import nms  # takes seconds, which the kernels spare

    def keep_label(label_boxes: Tensor, label_scores: Tensor) -> Tensor:
        candidates = (label_scores > score_threshold).nonzero().squeeze(1)
        kept = nms(label_boxes[candidates], label_scores[candidates], iou_threshold)
        return candidates[kept]

    return _select(boxes, scores, keep_label, max_output)


def _by_kernels(
    library: KernelLibrary,
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """BatchedNms; boxes are float32."""
    boxes, scores = boxes.contiguous(), scores.contiguous()
    batch, labels, candidates = scores.shape
    params = NmsParams(
        batch=batch,
        labels=labels,
        candidates=candidates,
        max_output=max_output,
        iou_threshold=_float_at_most(iou_threshold),
        score_threshold=score_threshold,
    )
    num_dets = boxes.new_empty((batch, 1), dtype=torch.int32)
    indices = boxes.new_empty((batch, max_output), dtype=torch.int64)
    on_cuda = boxes.device.type == "cuda"
    size = library.batched_nms_workspace(params) if on_cuda else 0
    workspace = boxes.new_empty(size, dtype=torch.uint8)
    with _kernels.launching_on(boxes) as where:
        addresses = (tensor.data_ptr() for tensor in (boxes, scores, num_dets, indices))
        library.batched_nms(params, *addresses, workspace=workspace.data_ptr(), **where)
    return num_dets, indices


def _float_at_most(value: float) -> float:
    """The largest float32 that is not above ``value``: a float32 exceeds both or neither."""
    rounded = np.float32(value)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded if float(rounded) <= value else below)


def _fake(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    _check(boxes, scores, iou_threshold, score_threshold, max_output)
    batch = boxes.shape[0]
    return (
        boxes.new_empty(batch, 1, dtype=torch.int32),
        boxes.new_empty(batch, max_output, dtype=torch.int64),
    )


# --- ONNX ----------------------------------------------------------------------------------------


def _body(attributes: Attributes, shapes: Sequence[Shape | None], opset: int) -> FunctionProto:
    from carafe_deploy.ops._body_nms import batched_nms_body

    return batched_nms_body(opset=opset)


IMPLEMENTATIONS = {
    "batched_nms": Implementation(
        forward=_batched_nms,
        fake=_fake,
        reference=batched_nms_reference,
        body=_body,
        has_kernels=True,
    )
}
