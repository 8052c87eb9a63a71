"""Box arithmetic shared by the region proposal network and the box head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from carafe_deploy.models.config import AnchorConfig, BoxCoderConfig

#: Largest |dw| and |dh|: a box grows or shrinks by 62.5 at most.
_MAX_LOG_RATIO = abs(math.log(16 / 1000))


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Take rows along dimension 1: values [B, N, D], index [B, K] int64 -> [B, K, D]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class _Float32Constants(nn.Module):
    """Holds constants that are in no state_dict and stay float32 in a half-precision detector."""

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = dict(self.named_buffers(recurse=False))
        result = super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return result


class BoxCoder(_Float32Constants):
    """Applies deltas to boxes (mmdetection's DeltaXYWHBBoxCoder), in float32."""

    means: Tensor
    stds: Tensor

    def __init__(self, config: BoxCoderConfig) -> None:
        super().__init__()
        self._constant("means", torch.tensor(config.means))
        self._constant("stds", torch.tensor(config.stds))

    def forward(self, boxes: Tensor, deltas: Tensor, image_sizes: Tensor) -> Tensor:
        """Decode and clip to the images: [B, ..., 4] float32.

        Args:
            boxes: [B, ..., 4] float32, x1, y1, x2, y2 in pixels.
            deltas: [B, ..., 4], dx, dy, dw, dh, normalised; broadcast against boxes.
            image_sizes: [B, 2] float32, height and width in pixels.
        """
        deltas = deltas.float() * self.stds + self.means
        shift, log_ratio = deltas[..., :2], deltas[..., 2:]
        low, high = boxes[..., :2], boxes[..., 2:]
        size = high - low
        center = (low + high) * 0.5 + size * shift
        half = size * log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() * 0.5
        limit = torch.cat((image_sizes[:, 1:], image_sizes[:, :1]), dim=1)
        limit = limit.view(-1, *(1,) * (center.dim() - 2), 2)
        low = torch.minimum((center - half).clamp(min=0), limit)
        high = torch.minimum((center + half).clamp(min=0), limit)
        return torch.cat((low, high), dim=-1)


class Anchors(_Float32Constants):
    """Anchors by index, so that no grid of all of them is ever laid out.

    Boxes are mmdetection's AnchorGenerator's: centres at ``(x*stride, y*stride)`` without half a
    pixel, base size equal to the stride, order (y, x, ratio, scale).
    """

    base: Tensor

    def __init__(self, config: AnchorConfig) -> None:
        super().__init__()
        self.strides = config.strides
        self.per_cell = config.per_cell
        ratios = torch.tensor(config.ratios).sqrt().view(-1, 1)
        scales = torch.tensor(config.scales).view(1, -1)
        size = torch.tensor(config.strides, dtype=torch.float32).view(-1, 1, 1)
        half_width = (size * (1 / ratios) * scales).flatten(1) * 0.5
        half_height = (size * ratios * scales).flatten(1) * 0.5
        base = torch.stack((-half_width, -half_height, half_width, half_height), dim=-1)
        self._constant("base", base)  # [levels, per_cell, 4]

    def forward(self, level: int, index: Tensor, scores: Tensor) -> Tensor:
        """Boxes of anchors of one level, 0 the finest: [..., 4] float32, x1, y1, x2, y2 in pixels.

        Args:
            level: of the pyramid.
            index: [...] int64, ``(y*W + x)*per_cell + anchor``.
            scores: [..., H, W] of the level, for W alone. (A number handed from module to module is
                a tensor on the CPU in a TorchScript trace.)
        """
        width = scores.shape[-1]
        cell = torch.div(index, self.per_cell, rounding_mode="trunc")
        row = torch.div(cell, width, rounding_mode="trunc")
        column = cell - row * width
        shift = torch.stack((column, row, column, row), dim=-1) * self.strides[level]
        return shift.float() + self.base[level][index - cell * self.per_cell]
