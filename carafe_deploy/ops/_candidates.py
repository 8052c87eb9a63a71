"""What RpnCandidates and BoxCandidates share: deltas to boxes, by mmdetection's DeltaXYWHBBoxCoder.

Faster R-CNN, arXiv:1506.01497.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from carafe_deploy.kernels import KernelLibrary
from carafe_deploy.operators.candidates import MAX_LOG_RATIO
from carafe_deploy.ops import _kernels

__all__ = ["Boxes", "check_float", "decode", "decode_one", "empty", "serving"]

#: Boxes [..., 4] and their scores [...].
Boxes = tuple[Tensor, Tensor]


def decode(boxes: Tensor, deltas: Tensor, image_sizes: Tensor, normalization: Tensor) -> Tensor:
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


def decode_one(box: Sequence[float], deltas: Sequence[float], extent: Sequence[float]) -> Tensor:
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


def check_float(name: str, tensor: Tensor, beside: Tensor, expected: Sequence[int]) -> None:
    """Raise ValueError unless a tensor has the shape, float32, and lies where another does."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {tensor.dtype}, expected float32 whatever the maps' dtype")
    if tensor.device != beside.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {beside.device}")


def serving(features: Tensor, *others: Tensor) -> KernelLibrary | None:
    """The library, if it computes on the features; the others are float32 then."""
    library = _kernels.library_for(features)
    return library if all(each.dtype == torch.float32 for each in others) else None


def empty(like: Tensor, *shape: int) -> Boxes:
    """Boxes [..., 4] and scores [...]."""
    return like.new_empty((*shape, 4)), like.new_empty(shape)
