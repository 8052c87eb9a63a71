"""MultilevelRoiAlign: what it is; computed by :mod:`carafe_deploy.ops.roi_align`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from carafe_deploy.brief import OneLine
from carafe_deploy.operators.specification import (
    CHANNELS,
    MAPS,
    STRIDES,
    Argument,
    Array,
    Attributes,
    Operator,
    Peer,
    Shape,
    normal,
)
from carafe_deploy.types import OperatorCall

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["MULTILEVEL_ROI_ALIGN", "RoiAlignCall", "assign_levels"]


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    size = attributes["output_size"]
    return ([*inputs[0][:2], inputs[1][1], size, size],)


def _label(call: OperatorCall) -> str:
    size = call.attributes["output_size"]
    return f"{call.shapes[0][1]} to {size}x{size}"


def _rois_and_features(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    """RoIs spread over all levels that the image has room for; one in sixteen is padding."""
    (batch, count, _), *maps = call.shapes
    stride = int(call.attributes["strides"][0])
    extent = np.array([maps[0][3] * stride, maps[0][2] * stride], np.float64)
    finest = float(call.attributes["finest_scale"])
    # sqrt(area) in the middle of each level's octave, as far as the image has room.
    scale = (
        finest * 2.0 ** (np.arange(count) % len(maps)) * generator.uniform(1.1, 1.9, (batch, count))
    )
    scale = np.minimum(scale, extent.min() * generator.uniform(0.5, 0.9, (batch, count)))
    aspect = np.exp2(generator.uniform(-0.5, 0.5, (batch, count)))
    size = np.stack((scale * aspect, scale / aspect), axis=-1)
    size = np.minimum(size, extent)
    low = generator.uniform(0, 1, (batch, count, 2)) * (extent - size)
    rois = np.concatenate((low, low + size), axis=-1).astype(np.float32)
    rois[:, count - count // 16 :] = 0.0
    return rois, *(normal(generator, shape) for shape in maps)


def assign_levels(rois: Tensor, num_levels: int, finest_scale: int) -> Tensor:
    """Level of each RoI: ``clamp(floor(log2(sqrt(w*h)/finest_scale + 1e-6)), 0, num_levels-1)``.

    Computed by comparison with the powers of two, which every backend rounds alike; torch's log2
    differs for scales within one unit in the last place below 4 and 8 only.

    Args:
        rois: [..., 4], x1, y1, x2, y2 in pixels.
        num_levels: of the pyramid.
        finest_scale: RoIs with sqrt(area) below ``2*finest_scale`` pixels go to level 0.

    Returns:
        [...] int64.
    """
    import torch

    width, height = rois[..., 2] - rois[..., 0], rois[..., 3] - rois[..., 1]
    scale = torch.sqrt(width * height) / finest_scale + 1e-6
    level = torch.zeros_like(scale, dtype=torch.int64)
    for power in range(1, num_levels):
        level += scale >= 2.0**power
    return level


# --- for the benchmark ---------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class RoiAlignCall(OneLine):
    """One call of MultilevelRoiAlign over P2 to P5; its inputs are RoIs and a list of maps."""

    entry: ClassVar[str] = "multilevel_roi_align"

    rois: int
    output_size: int
    channels: int = CHANNELS
    maps: tuple[tuple[int, int], ...] = MAPS[:4]

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Keyword arguments of the operator."""
        return {
            "output_size": self.output_size,
            "sampling_ratio": 0,
            "strides": list(STRIDES[: len(self.maps)]),
            "finest_scale": 56,
        }

    def num_bytes(self, item_size: int) -> int:
        """Inputs and results once each; RoIs are float32 whatever the maps are."""
        pixels = sum(height * width for height, width in self.maps)
        bins = self.rois * self.output_size**2
        return item_size * self.channels * (pixels + bins) + 16 * self.rois

    @property
    def flops(self) -> int:
        """They depend on the sizes of the RoIs."""
        return 0

    def inputs(self, generator: torch.Generator) -> tuple[Any, ...]:
        """RoIs [1, K, 4] and maps [1, C, H_l, W_l], float32."""
        import torch

        height, width = (side * STRIDES[0] for side in self.maps[0])
        extent = torch.tensor([width, height], dtype=torch.float32)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        side = 16 * (800 / 16) ** uniform(self.rois, 1)
        aspect = 2 ** (uniform(self.rois, 1) - 0.5)  # square root of width over height
        half = torch.cat((side * aspect, side / aspect), dim=1) / 2
        centre = uniform(self.rois, 2) * extent
        corners = ((centre + sign * half).clamp(min=0).minimum(extent) for sign in (-1, 1))
        rois = torch.cat(tuple(corners), dim=1)
        shapes = ((1, self.channels, *size) for size in self.maps)
        return rois.unsqueeze(0), [torch.randn(shape, generator=generator) for shape in shapes]


def _torchvision_roi_align(
    rois: Tensor,
    features: Sequence[Tensor],
    *,
    output_size: int,
    sampling_ratio: int,
    strides: Sequence[int],
    finest_scale: int,
) -> Tensor:
    """One call a level for the RoIs of that level, as mmdetection's extractor does."""
    import torchvision

    [boxes] = rois
    levels = assign_levels(boxes, len(features), finest_scale)
    shape = (len(boxes), features[0].shape[1], output_size, output_size)
    out = features[0].new_zeros(shape)
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        [chosen] = (levels == level).nonzero(as_tuple=True)
        out[chosen] = torchvision.ops.roi_align(
            feature, [boxes[chosen]], output_size, 1 / stride, sampling_ratio, aligned=True
        )
    return out.unsqueeze(0)


def _reference(*inputs: Any, **attributes: Any) -> Any:
    return MULTILEVEL_ROI_ALIGN.implementation.reference(*inputs, *attributes.values())


# --- the operator --------------------------------------------------------------------------------

MULTILEVEL_ROI_ALIGN = Operator(
    name="multilevel_roi_align",
    inputs=(Argument("rois", "BK4", "float32"), Argument("features", "BCHW", many=True)),
    outputs=(Argument("out", "BKCSS"),),
    attributes={
        "output_size": "INT",
        "sampling_ratio": "INT",
        "strides": "INTS",
        "finest_scale": "INT",
    },
    shapes=_shapes,
    module="carafe_deploy.ops.roi_align",
    tolerance="multilevel_roi_align",
    family="roi_align",
    title="RoIAlign",
    random_inputs=_rois_and_features,
    label=_label,
    workloads=(
        ("box head, 1000 RoIs, 7x7", (RoiAlignCall(1000, 7),), True),
        ("mask head, 100 RoIs, 14x14", (RoiAlignCall(100, 14),), True),
    ),
    data=(
        "RoIs: square root of the area log-uniform from 16 to 800 px, sides' ratio from 1/2 to 2, "
        "centre uniform, clipped to the image; half of them on P2"
    ),
    peers=(
        Peer("torchvision", _torchvision_roi_align),
        Peer("reference", _reference, in_full_only=True),
    ),
    structure=("sampling_ratio", "strides", "finest_scale"),
)
