"""Candidates for NMS from what a head predicts, in one operator each.

``rpn_candidates`` is the part of mmdetection's RPNHead between its convolutions and NMS,
``box_candidates`` that of its box head (Faster R-CNN, arXiv:1506.01497). Both decode by its
DeltaXYWHBBoxCoder. In single operations they are hundreds of small kernels on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from carafe_deploy.kernels import (
    MAX_LEVELS,
    BoxCandidatesParams,
    KernelLibrary,
    RpnCandidatesParams,
)
from carafe_deploy.operators.candidates import MAX_LOG_RATIO, MOST_CANDIDATES
from carafe_deploy.operators.specification import Attributes, Implementation, Shape
from carafe_deploy.ops import _kernels

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = [
    "box_candidates",
    "box_candidates_reference",
    "rpn_candidates",
    "rpn_candidates_reference",
]

Boxes = tuple[Tensor, Tensor]
Maps = Sequence[Tensor]


def rpn_candidates(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    *,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    """The best anchors of every level, decoded and clipped to the image.

    Anchors of a level are numbered ``(y*W + x)*A + anchor``. They rank by logit, equal logits by
    lower number; NaN and -inf are no candidates.

    Args:
        image_sizes: [B, 2] float32, height and width in pixels.
        anchors: [L, A, 4] float32, boxes x1, y1, x2, y2 of each level around its first pixel.
        normalization: [2, 4] float32, means and standard deviations of the deltas.
        maps: first the logits [B, A, H_l, W_l] of each level, finest first, then the deltas
            [B, 4*A, H_l, W_l] of each: dx, dy, dw, dh of every anchor; all of one floating dtype.
        num_candidates: of each level, K; 1 to :data:`MOST_CANDIDATES`.
        min_size: boxes are dropped unless both sides are longer, in pixels; negative: none is.
        strides: of the levels, in image pixels.

    Returns:
        boxes: [B, L, K, 4] float32.
        scores: [B, L, K] float32, the logits. Rows without a candidate are zeros, their score -inf.

    Raises:
        ValueError: a shape, dtype or argument does not fit; the message names it.
    """
    boxes, scores = torch.ops.carafe.rpn_candidates(
        image_sizes,
        anchors,
        normalization,
        list(maps),
        num_candidates,
        min_size,
        list(strides),
    )
    return boxes, scores


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


def _decode(boxes: Tensor, deltas: Tensor, image_sizes: Tensor, normalization: Tensor) -> Tensor:
    """Boxes and deltas [B, ..., 4] -> boxes [B, ..., 4] inside the images."""
    means, stds = normalization.unbind(0)
    deltas = deltas * stds + means
    shift, log_ratio = deltas[..., :2], deltas[..., 2:]
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    center = (low + high) * 0.5 + size * shift
    half = size * log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    limit = image_sizes.flip(1).view(-1, *(1,) * (center.dim() - 2), 2)
    low = torch.minimum((center - half).clamp(min=0), limit)
    high = torch.minimum((center + half).clamp(min=0), limit)
    return torch.cat((low, high), dim=-1)


def _best(scores: Tensor, count: int) -> Tensor:
    """Places of the best of each row, equal ones by place, which topk does not promise."""
    if scores.dtype != torch.float32:
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    bits = (scores + 0.0).view(torch.int32).long()  # -0 becomes +0
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (ascending << 32) - torch.arange(scores.shape[1], device=scores.device)
    best = keys.topk(count, dim=1).values
    return (-best) & 0xFFFFFFFF


def _rpn_in_pytorch(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    """All images at once, level by level."""
    kind, levels = image_sizes.dtype, len(strides)
    per_pixel = anchors.shape[1]
    scores, boxes, deltas = [], [], []
    for level, stride in enumerate(strides):
        logits = maps[level].permute(0, 2, 3, 1).flatten(1).to(kind)
        logits = logits.nan_to_num(-math.inf, math.inf, -math.inf)
        # Padding keeps the number of rows constant however small the level is.
        padded = F.pad(logits, (0, num_candidates), value=-math.inf)
        index = _best(padded, num_candidates)
        scores.append(padded.gather(1, index))
        index = index.clamp(max=logits.shape[1] - 1)
        pixel = index.div(per_pixel, rounding_mode="trunc")
        row = pixel.div(maps[level].shape[3], rounding_mode="trunc")
        column = pixel - row * maps[level].shape[3]
        corner = torch.stack((column, row, column, row), dim=-1) * stride
        boxes.append(corner.to(kind) + anchors[level][index - pixel * per_pixel])
        rows = maps[levels + level].permute(0, 2, 3, 1).unflatten(3, (per_pixel, 4)).flatten(1, 3)
        deltas.append(rows.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)).to(kind))
    score, box, delta = (torch.stack(each, dim=1) for each in (scores, boxes, deltas))
    box = _decode(box, delta, image_sizes, normalization)
    kept = score > -math.inf
    if min_size >= 0:
        kept &= (box[..., 2:] - box[..., :2]).amin(dim=-1) > min_size
    return box.masked_fill(~kept.unsqueeze(-1), 0.0), score.masked_fill(~kept, -math.inf)


def _box_in_pytorch(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    kind, classes = proposals.dtype, logits.shape[2] - 1
    scores = logits.to(kind).softmax(dim=-1)[..., :classes].transpose(1, 2)
    boxes = _decode(
        proposals.unsqueeze(1),
        deltas.to(kind).unflatten(2, (classes, 4)).transpose(1, 2),
        image_sizes,
        normalization,
    )
    place = torch.arange(logits.shape[1], device=logits.device)
    is_padding = (place >= num_proposals).unsqueeze(1)  # [B, 1, P]
    boxes = boxes.masked_fill(is_padding.unsqueeze(-1), 0.0)
    return boxes, scores.masked_fill(is_padding, -math.inf).contiguous()


# --- references ----------------------------------------------------------------------------------


def _decode_one(box: Sequence[float], deltas: Sequence[float], extent: Sequence[float]) -> Tensor:
    """One box, a side at a time."""
    corners = [0.0] * 4
    for axis in (0, 1):
        size = box[2 + axis] - box[axis]
        center = (box[axis] + box[2 + axis]) / 2 + size * deltas[axis]
        ratio = min(max(deltas[2 + axis], -MAX_LOG_RATIO), MAX_LOG_RATIO)
        half = size * math.exp(ratio) / 2
        for corner, at in ((axis, center - half), (2 + axis, center + half)):
            corners[corner] = min(max(at, 0.0), extent[1 - axis])
    return torch.tensor(corners, dtype=torch.float64)


def rpn_candidates_reference(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    """``torch.ops.carafe.rpn_candidates`` an anchor at a time; float64 stays float64."""
    _check_rpn(image_sizes, anchors, normalization, maps, num_candidates, min_size, strides)
    batch, levels, per_pixel = len(image_sizes), len(strides), anchors.shape[1]
    boxes = image_sizes.new_zeros(batch, levels, num_candidates, 4)
    scores = image_sizes.new_full((batch, levels, num_candidates), -math.inf)
    means, stds = normalization.double()
    for b in range(batch):
        for level, stride in enumerate(strides):
            logits, deltas = maps[level][b].double(), maps[levels + level][b].double()
            flat = logits.permute(1, 2, 0).flatten().tolist()
            possible = [i for i, logit in enumerate(flat) if logit > -math.inf]
            possible.sort(key=lambda i: (-flat[i], i))
            for row, index in enumerate(possible[:num_candidates]):
                pixel, anchor = divmod(index, per_pixel)
                y, x = divmod(pixel, logits.shape[2])
                corner = torch.tensor([x, y, x, y]) * stride
                delta = deltas[4 * anchor : 4 * anchor + 4, y, x] * stds + means
                box = _decode_one(
                    (corner + anchors[level, anchor].double()).tolist(),
                    delta.tolist(),
                    image_sizes[b].tolist(),
                )
                if min_size < 0 or bool((box[2:] - box[:2]).min() > min_size):
                    boxes[b, level, row] = box
                    scores[b, level, row] = flat[index]
    return boxes, scores


def box_candidates_reference(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    """``torch.ops.carafe.box_candidates`` a box at a time; float64 stays float64."""
    _check_box(logits, deltas, proposals, num_proposals, image_sizes, normalization)
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
                boxes[b, label, row] = _decode_one(
                    proposals[b, row].tolist(), delta.tolist(), image_sizes[b].tolist()
                )
    return boxes, scores


# --- checks --------------------------------------------------------------------------------------


def _check_float(name: str, tensor: Tensor, beside: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {tensor.dtype}, expected float32 whatever the maps' dtype")
    if tensor.device != beside.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {beside.device}")


def _check_rpn(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> None:
    if not maps or len(maps) != 2 * len(strides):
        raise ValueError(
            f"{len(maps)} maps for {len(strides)} strides, expected logits and deltas of each"
        )
    if min(strides) < 1:
        raise ValueError(f"strides is {list(strides)}, expected none below 1")
    if not 1 <= num_candidates <= MOST_CANDIDATES:
        raise ValueError(f"num_candidates is {num_candidates}, expected 1 to {MOST_CANDIDATES}")
    if not min_size < math.inf:
        raise ValueError(f"min_size is {min_size}, expected a finite number")
    if anchors.dim() != 3 or anchors.shape[1] < 1:
        raise ValueError(f"anchors has shape {tuple(anchors.shape)}, expected [levels, A, 4]")
    first, levels = maps[0], len(strides)
    for index, tensor in enumerate(maps):
        what = f"{'deltas' if index >= levels else 'logits'} of level {index % levels}"
        if tensor.dim() != 4 or not tensor.is_floating_point():
            raise ValueError(
                f"{what} are {tensor.dtype} of shape {tuple(tensor.shape)}, expected floating "
                "point [B, C, H, W]"
            )
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{what} are {tensor.dtype} on {tensor.device}, expected {first.dtype} on "
                f"{first.device}"
            )
        channels = anchors.shape[1] * (4 if index >= levels else 1)
        expected = (first.shape[0], channels, *maps[index % levels].shape[2:])
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{what} have shape {tuple(tensor.shape)}, expected {expected}")
        if 0 in expected[2:]:
            raise ValueError(f"{what} have shape {expected}, expected at least one pixel")
    _check_float("image_sizes", image_sizes, first, (first.shape[0], 2))
    _check_float("anchors", anchors, first, (levels, anchors.shape[1], 4))
    _check_float("normalization", normalization, first, (2, 4))


def _check_box(
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
    _check_float("proposals", proposals, logits, (batch, count, 4))
    _check_float("image_sizes", image_sizes, logits, (batch, 2))
    _check_float("normalization", normalization, logits, (2, 4))


# --- torch operators -----------------------------------------------------------------------------


def _serving(features: Tensor, *others: Tensor) -> KernelLibrary | None:
    """The library, if it computes on the features; the others are float32 then."""
    library = _kernels.library_for(features)
    return library if all(each.dtype == torch.float32 for each in others) else None


def _empty(like: Tensor, *shape: int) -> Boxes:
    """Boxes [..., 4] and scores [...]."""
    return like.new_empty((*shape, 4)), like.new_empty(shape)


def _rpn_candidates(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    arguments = image_sizes, anchors, normalization, maps, num_candidates, min_size, strides
    _check_rpn(*arguments)
    library = _serving(maps[0], image_sizes, anchors, normalization)
    if library is None or len(strides) > MAX_LEVELS:
        return _rpn_in_pytorch(*arguments)
    levels = len(strides)
    memory_format = _kernels.memory_format_of(maps[levels])  # logits may have one channel
    dense = [tensor.contiguous(memory_format=memory_format) for tensor in maps]
    sizes, base, statistics = (
        tensor.contiguous() for tensor in (image_sizes, anchors, normalization)
    )
    boxes, scores = _empty(image_sizes, len(image_sizes), levels, num_candidates)
    params = RpnCandidatesParams(
        dtype=_kernels.KERNEL_DTYPES[maps[0].dtype],
        layout=_kernels.layout_of(memory_format),
        batch=len(image_sizes),
        levels=levels,
        anchors=anchors.shape[1],
        candidates=num_candidates,
        heights=tuple(tensor.shape[2] for tensor in dense[:levels]),
        widths=tuple(tensor.shape[3] for tensor in dense[:levels]),
        strides=tuple(strides),
        logit_pitch=anchors.shape[1],
        delta_pitch=4 * anchors.shape[1],
        min_size=min_size if min_size >= 0 else -1.0,  # a tiny one is not zero
    )
    with _kernels.launching_on(maps[0]) as where:
        library.rpn_candidates(
            params,
            sizes.data_ptr(),
            base.data_ptr(),
            statistics.data_ptr(),
            [tensor.data_ptr() for tensor in dense],
            boxes.data_ptr(),
            scores.data_ptr(),
            **where,
        )
    return boxes, scores


def _rpn_fake(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    _check_rpn(image_sizes, anchors, normalization, maps, num_candidates, min_size, strides)
    return _empty(image_sizes, image_sizes.shape[0], len(strides), num_candidates)


def _box_candidates(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    inputs = logits, deltas, proposals, num_proposals, image_sizes, normalization
    _check_box(*inputs)
    library = _serving(logits, proposals, image_sizes, normalization)
    if library is None:
        return _box_in_pytorch(*inputs)
    batch, count, columns = logits.shape
    dense = [tensor.contiguous() for tensor in inputs]
    boxes, scores = _empty(proposals, batch, columns - 1, count)
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


def _box_fake(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    num_proposals: Tensor,
    image_sizes: Tensor,
    normalization: Tensor,
) -> Boxes:
    _check_box(logits, deltas, proposals, num_proposals, image_sizes, normalization)
    return _empty(proposals, logits.shape[0], logits.shape[2] - 1, logits.shape[1])


# --- ONNX ----------------------------------------------------------------------------------------


def _rpn_body(attributes: Attributes, shapes: Sequence[Shape | None], opset: int) -> FunctionProto:
    from carafe_deploy.ops._body_candidates import rpn_candidates_body

    return rpn_candidates_body(strides=tuple(attributes["strides"]), opset=opset)


def _box_body(attributes: Attributes, shapes: Sequence[Shape | None], opset: int) -> FunctionProto:
    from carafe_deploy.ops._body_candidates import box_candidates_body

    return box_candidates_body(opset=opset)


IMPLEMENTATIONS = {
    "rpn_candidates": Implementation(
        forward=_rpn_candidates,
        fake=_rpn_fake,
        reference=rpn_candidates_reference,
        body=_rpn_body,
        has_kernels=True,
    ),
    "box_candidates": Implementation(
        forward=_box_candidates,
        fake=_box_fake,
        reference=box_candidates_reference,
        body=_box_body,
        has_kernels=True,
    ),
}
