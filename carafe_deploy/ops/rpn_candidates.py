"""Candidates for NMS from what the RPN predicts: the best anchors of every level, as boxes.

It is the part of mmdetection's RPNHead between its convolutions and NMS. In single operations it is
hundreds of small kernels on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from carafe_deploy.kernels import MAX_LEVELS, RpnCandidatesParams
from carafe_deploy.operators.candidates import MOST_CANDIDATES
from carafe_deploy.operators.specification import Attributes, Implementation, Shape
from carafe_deploy.ops import _kernels
from carafe_deploy.ops._candidates import Boxes, check_float, decode, decode_one, empty, serving

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = ["rpn_candidates", "rpn_candidates_reference"]

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


# --- in plain PyTorch ----------------------------------------------------------------------------


def _best(scores: Tensor, count: int) -> Tensor:
    """Places of the best of each row, equal ones by place, which topk does not promise."""
    if scores.dtype != torch.float32:
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    bits = (scores + 0.0).view(torch.int32).long()  # -0 becomes +0
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (ascending << 32) - torch.arange(scores.shape[1], device=scores.device)
    best = keys.topk(count, dim=1).values
    return (-best) & 0xFFFFFFFF


def _in_pytorch(
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
    box = decode(box, delta, image_sizes, normalization)
    kept = score > -math.inf
    if min_size >= 0:
        kept &= (box[..., 2:] - box[..., :2]).amin(dim=-1) > min_size
    return box.masked_fill(~kept.unsqueeze(-1), 0.0), score.masked_fill(~kept, -math.inf)


# --- reference -----------------------------------------------------------------------------------


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
    _check(image_sizes, anchors, normalization, maps, num_candidates, min_size, strides)
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
                box = decode_one(
                    (corner + anchors[level, anchor].double()).tolist(),
                    delta.tolist(),
                    image_sizes[b].tolist(),
                )
                if min_size < 0 or bool((box[2:] - box[:2]).min() > min_size):
                    boxes[b, level, row] = box
                    scores[b, level, row] = flat[index]
    return boxes, scores


# --- checks --------------------------------------------------------------------------------------


def _check(
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
    check_float("image_sizes", image_sizes, first, (first.shape[0], 2))
    check_float("anchors", anchors, first, (levels, anchors.shape[1], 4))
    check_float("normalization", normalization, first, (2, 4))


# --- torch operator ------------------------------------------------------------------------------


def _forward(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    arguments = image_sizes, anchors, normalization, maps, num_candidates, min_size, strides
    _check(*arguments)
    library = serving(maps[0], image_sizes, anchors, normalization)
    if library is None or len(strides) > MAX_LEVELS:
        return _in_pytorch(*arguments)
    levels = len(strides)
    memory_format = _kernels.memory_format_of(maps[levels])  # logits may have one channel
    dense = [tensor.contiguous(memory_format=memory_format) for tensor in maps]
    sizes, base, statistics = (
        tensor.contiguous() for tensor in (image_sizes, anchors, normalization)
    )
    boxes, scores = empty(image_sizes, len(image_sizes), levels, num_candidates)
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


def _fake(
    image_sizes: Tensor,
    anchors: Tensor,
    normalization: Tensor,
    maps: Maps,
    num_candidates: int,
    min_size: float,
    strides: Sequence[int],
) -> Boxes:
    _check(image_sizes, anchors, normalization, maps, num_candidates, min_size, strides)
    return empty(image_sizes, image_sizes.shape[0], len(strides), num_candidates)


# --- ONNX ----------------------------------------------------------------------------------------


def _body(attributes: Attributes, shapes: Sequence[Shape | None], opset: int) -> FunctionProto:
    from carafe_deploy.ops._body_candidates import rpn_candidates_body

    return rpn_candidates_body(strides=tuple(attributes["strides"]), opset=opset)


IMPLEMENTATIONS = {
    "rpn_candidates": Implementation(
        forward=_forward,
        fake=_fake,
        reference=rpn_candidates_reference,
        body=_body,
        has_kernels=True,
    )
}
