"""Box arithmetic shared by the region proposal network and the box head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from carafe_deploy.models.config import AnchorConfig, BoxCoderConfig


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
    """Means and standard deviations of the deltas (mmdetection's DeltaXYWHBBoxCoder): [2, 4]."""

    normalization: Tensor

    def __init__(self, config: BoxCoderConfig) -> None:
        super().__init__()
        self._constant("normalization", torch.tensor((config.means, config.stds)))


class Anchors(_Float32Constants):
    """Boxes of each level around its first pixel, [levels, per_cell, 4]: x1, y1, x2, y2 in pixels.

    They are mmdetection's AnchorGenerator's: centres at ``(x*stride, y*stride)`` without half a
    pixel, base size equal to the stride, order (ratio, scale).
    """

    base: Tensor

    def __init__(self, config: AnchorConfig) -> None:
        super().__init__()
        self.strides = config.strides
        ratios = torch.tensor(config.ratios).sqrt().view(-1, 1)
        scales = torch.tensor(config.scales).view(1, -1)
        size = torch.tensor(config.strides, dtype=torch.float32).view(-1, 1, 1)
        half_width = (size * (1 / ratios) * scales).flatten(1) * 0.5
        half_height = (size * ratios * scales).flatten(1) * 0.5
        self._constant(
            "base", torch.stack((-half_width, -half_height, half_width, half_height), dim=-1)
        )
