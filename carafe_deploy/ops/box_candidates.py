"""Candidates for NMS from what the box head predicts: probabilities of all classes and their boxes.

It is the part of mmdetection's box head between its linear layers and NMS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from carafe_deploy.kernels import BoxCandidatesParams
from carafe_deploy.operators.specification import Attributes, Implementation, Shape
from carafe_deploy.ops import _kernels
from carafe_deploy.ops._candidates import Boxes, check_float, decode, decode_one, empty, serving

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = ["box_candidates", "box_candidates_reference"]


def box_candidates(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    """Probabilities of all classes and their boxes, decoded and clipped to the image.

    Args:
        logits: [B, P, C+1], the background last.
        deltas: [B, P, 4*C] of the same dtype; those of class c are columns 4*c to 4*c+3.
        proposals: [B, P, 4] float32, x1, y1, x2, y2 in pixels.
        num_proposals: [B, 1] int32; rows from there on are padding.
        image_sizes: [B, 2] float32, height and width in pixels.
        normalization: [2, 4] float32, means and standard deviations of the deltas.

    Returns:
        boxes: [B, C, P, 4] float32.
        scores: [B, C, P] float32. Boxes of padding are zeros, their score -inf.

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.
    """
    boxes, scores = torch.ops.carafe.box_candidates(
        logits, deltas, proposals, num_proposals, image_sizes, normalization
    )
    return boxes, scores


# --- in plain PyTorch ----------------------------------------------------------------------------


def _in_pytorch(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    kind, classes = proposals.dtype, logits.shape[2] - 1
    scores = logits.to(kind).softmax(dim=-1)[..., :classes].transpose(1, 2)
    boxes = decode(
        proposals.unsqueeze(1),
        deltas.to(kind).unflatten(2, (classes, 4)).transpose(1, 2),
        image_sizes,
        normalization,
    )
    place = torch.arange(logits.shape[1], device=logits.device)
    is_padding = (place >= num_proposals).unsqueeze(1)  # [B, 1, P]
    boxes = boxes.masked_fill(is_padding.unsqueeze(-1), 0.0)
    return boxes, scores.masked_fill(is_padding, -math.inf).contiguous()


# --- reference -----------------------------------------------------------------------------------


def box_candidates_reference(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    """``torch.ops.carafe.box_candidates`` a box at a time; float64 stays float64."""
    _check(logits, deltas, proposals, num_proposals, image_sizes, normalization)
    batch, count, columns = logits.shape
    boxes = proposals.new_zeros(batch, columns - 1, count, 4)
    scores = proposals.new_full((batch, columns - 1, count), -math.inf)
    means, stds = normalization.double()
    for b in range(batch):
        for row in range(min(int(num_proposals[b]), count)):
            weights = (logits[b, row].double() - logits[b, row].double().max()).exp()
            scores[b, :, row] = (weights / weights.sum())[:-1]
            for label in range(columns - 1):
                delta = deltas[b, row, 4 * label : 4 * label + 4].double() * stds + means
                boxes[b, label, row] = decode_one(
                    proposals[b, row].tolist(), delta.tolist(), image_sizes[b].tolist()
                )
    return boxes, scores


# --- checks --------------------------------------------------------------------------------------


def _check(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> None:
    if logits.dim() != 3 or logits.shape[2] < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits are {logits.dtype} of shape {tuple(logits.shape)}, expected floating point "
            "[B, P, C+1]"
        )
    batch, count, columns = logits.shape
    expected = (batch, count, 4 * (columns - 1))
    if tuple(deltas.shape) != expected:
        raise ValueError(f"deltas have shape {tuple(deltas.shape)}, expected {expected}")
    if deltas.dtype != logits.dtype or deltas.device != logits.device:
        raise ValueError(
            f"deltas are {deltas.dtype} on {deltas.device}, expected {logits.dtype} on "
            f"{logits.device}"
        )
    if tuple(num_proposals.shape) != (batch, 1):
        raise ValueError(
            f"num_proposals has shape {tuple(num_proposals.shape)}, expected {(batch, 1)}"
        )
    if num_proposals.dtype != torch.int32 or num_proposals.device != logits.device:
        raise ValueError(
            f"num_proposals is {num_proposals.dtype} on {num_proposals.device}, expected int32 on "
            f"{logits.device}"
        )
    check_float("proposals", proposals, logits, (batch, count, 4))
    check_float("image_sizes", image_sizes, logits, (batch, 2))
    check_float("normalization", normalization, logits, (2, 4))


# --- torch operator ------------------------------------------------------------------------------


def _forward(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    inputs = logits, deltas, proposals, num_proposals, image_sizes, normalization
    _check(*inputs)
    library = serving(logits, proposals, image_sizes, normalization)
    if library is None:
        return _in_pytorch(*inputs)
    batch, count, columns = logits.shape
    dense = [tensor.contiguous() for tensor in inputs]
    boxes, scores = empty(proposals, batch, columns - 1, count)
    params = BoxCandidatesParams(
        dtype=_kernels.KERNEL_DTYPES[logits.dtype],
        batch=batch,
        proposals=count,
        classes=columns - 1,
    )
    with _kernels.launching_on(logits) as where:
        addresses = (tensor.data_ptr() for tensor in (*dense, boxes, scores))
        library.box_candidates(params, *addresses, **where)
    return boxes, scores


def _fake(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    _check(logits, deltas, proposals, num_proposals, image_sizes, normalization)
    return empty(proposals, logits.shape[0], logits.shape[2] - 1, logits.shape[1])


# --- ONNX ----------------------------------------------------------------------------------------


def _body(attributes: Attributes, shapes: Sequence[Shape | None], opset: int) -> FunctionProto:
    from carafe_deploy.ops._body_candidates import box_candidates_body

    return box_candidates_body(opset=opset)


IMPLEMENTATIONS = {
    "box_candidates": Implementation(
        forward=_forward,
        fake=_fake,
        reference=box_candidates_reference,
        body=_body,
        has_kernels=True,
    )
}
