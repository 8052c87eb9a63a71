"""What the operators are given in an R-50 detector at 832x1344, and what that costs at least.

Feature maps have 256 channels. Values are seeded: feature maps normal, encoder outputs normal with
deviation 2, RoIs and NMS candidates as :data:`DATA` says. Bytes and operations are counted from
shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from carafe_deploy.brief import OneLine

__all__ = [
    "DATA",
    "OPERATORS",
    "SEED",
    "WORKLOADS",
    "CarafeCall",
    "NmsCall",
    "RoiAlignCall",
    "Variant",
    "Workload",
]

#: Of the values of every call.
SEED = 0

#: Height and width of the padded image, and of the maps P2 to P6 with their strides.
IMAGE = (832, 1344)
STRIDES = (4, 8, 16, 32, 64)
MAPS = tuple((IMAGE[0] // stride, IMAGE[1] // stride) for stride in STRIDES)
CHANNELS = 256

#: Where data decides how long a call takes: by operator, how it is distributed.
DATA: Mapping[str, str] = {
    "roi_align": (
        "RoIs: square root of the area log-uniform from 16 to 800 px, sides' ratio from 1/2 to 2, "
        "centre uniform, clipped to the image; half of them on P2"
    ),
    "nms": (
        "candidates scatter around objects, centre by 10 % of the side, sides by 2**N(0, 0.2), in "
        "steps of half a pixel: RPN 100 objects a level, box head 100 a label, one label 500; "
        "scores of the box head: 13 % above 0.05 in 8 labels, 0.2 % in the other 72"
    ),
}


@dataclass(frozen=True)
class Variant:
    """Element type and memory layout.

    Attributes:
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        layout: ``"nchw"`` or ``"channels-last"``; empty where it has no meaning.
    """

    dtype: str
    layout: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch names it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def arranged(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A feature map or weights [N, C, H, W] in this type and layout."""
        last = self.layout == "channels-last"
        return tensor.to(
            device,
            self.torch_dtype,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )


_VARIANTS = tuple(
    Variant(dtype, layout)
    for dtype in ("float32", "float16", "bfloat16")
    for layout in ("nchw", "channels-last")
)


# --- calls ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CarafeCall:
    """One call of CARAFE; its inputs are features and encoded, see :mod:`carafe_deploy.ops.carafe`.

    With masks in place of encoded it moves as many bytes.
    """

    entry: ClassVar[str] = "carafe_encoded"

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int = 5
    group_size: int = 1
    scale_factor: int = 2

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Keyword arguments of the operator."""
        return {
            "kernel_size": self.kernel_size,
            "group_size": self.group_size,
            "scale_factor": self.scale_factor,
        }

    @property
    def elements(self) -> tuple[int, int, int]:
        """Of features, encoder output and result."""
        pixels = self.batch * self.height * self.width
        phases = self.scale_factor**2
        weights = phases * self.group_size * self.kernel_size**2
        return pixels * self.channels, pixels * weights, pixels * phases * self.channels

    def num_bytes(self, item_size: int) -> int:
        """Inputs and results once each, with elements of ``item_size`` bytes."""
        return item_size * sum(self.elements)

    @property
    def flops(self) -> int:
        """A multiplication and an addition a tap of every output; the softmax is not counted."""
        return 2 * self.kernel_size**2 * self.elements[2]

    def inputs(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Features [N, C, H, W] and encoded [N, s*s*G*k*k, H, W], float32."""
        pixels = self.batch * self.height * self.width
        shapes = (
            (self.batch, count // pixels, self.height, self.width) for count in self.elements[:2]
        )
        features, encoded = (torch.randn(shape, generator=generator) for shape in shapes)
        return features, encoded * 2


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


Scores = Callable[[Tensor], Tensor]


def _logits(ranks: Tensor) -> Tensor:
    """From -6 to 4, best first in every label: the RPN takes the best of each level."""
    return (10 * ranks - 6).sort(dim=1, descending=True).values


def _few_above(ranks: Tensor) -> Tensor:
    """Every tenth label is of an object in the image."""
    present = (torch.arange(ranks.shape[0]) % 10 == 0).unsqueeze(1)
    return ranks ** torch.where(present, 22.0, 1500.0)


def _all_above(ranks: Tensor) -> Tensor:
    return 0.05 + 0.95 * ranks


@dataclass(frozen=True, repr=False)
class NmsCall(OneLine):
    """One call of BatchedNms; its inputs are boxes and scores.

    Attributes:
        labels: L.
        candidates: M, of each label.
        max_output: boxes kept at most.
        iou_threshold: see :func:`carafe_deploy.ops.batched_nms`.
        score_threshold: likewise.
        objects: that the candidates of a label scatter around.
        sides: bounds of the objects' sizes in pixels, of each label or of all.
        scores: from distinct ranks in (0, 1), [L, M], to scores.
        padding: rows at the end of the last label that hold no candidate.
    """

    entry: ClassVar[str] = "batched_nms"

    labels: int
    candidates: int
    max_output: int
    iou_threshold: float
    score_threshold: float
    objects: int
    sides: tuple[tuple[float, float], ...] = ((16.0, 800.0),)
    scores: Scores = _all_above
    padding: int = 0

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Keyword arguments of the operator."""
        return {
            "iou_threshold": self.iou_threshold,
            "score_threshold": self.score_threshold,
            "max_output": self.max_output,
        }

    def num_bytes(self, item_size: int) -> int:
        """Boxes and scores, float32, the number of boxes kept and int64 indices."""
        return 20 * self.labels * self.candidates + 4 + 8 * self.max_output

    @property
    def flops(self) -> int:
        """They depend on what overlaps."""
        return 0

    def inputs(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Boxes [1, L, M, 4] and scores [1, L, M], float32.

        Coordinates are multiples of half a pixel, so that areas are exact and no rounding decides
        an overlap; scores above the threshold are distinct.
        """
        shape = (self.labels, self.candidates)
        low, high = torch.tensor(self.sides).view(-1, 1, 2).unbind(dim=2)
        extent = torch.tensor(IMAGE[::-1], dtype=torch.float32)

        def uniform(*last: int) -> Tensor:
            return torch.rand((self.labels, self.objects, *last), generator=generator)

        def normal() -> Tensor:
            return torch.randn((*shape, 2), generator=generator)

        side = low * (high / low) ** uniform()
        aspect = 2 ** (uniform() - 0.5)
        owner = (
            torch.randint(self.objects, shape, generator=generator).unsqueeze(2).expand(-1, -1, 2)
        )
        size = torch.stack((side * aspect, side / aspect), dim=2).gather(1, owner)
        centre = (uniform(2) * extent).gather(1, owner) + 0.1 * size * normal()
        half = size * 2 ** (0.2 * normal()) / 2
        corners = ((centre + sign * half).clamp(min=0).minimum(extent) for sign in (-1, 1))
        boxes = (torch.cat(tuple(corners), dim=2) * 2).round() / 2

        count = self.labels * self.candidates
        ranks = torch.randperm(count, generator=generator).view(shape)
        scores = self.scores((ranks + 0.5) / count)
        if self.padding:
            boxes[-1, -self.padding :] = 0.0
            scores[-1, -self.padding :] = -math.inf
        return boxes.unsqueeze(0), scores.unsqueeze(0)


Call = CarafeCall | RoiAlignCall | NmsCall


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Workload(OneLine):
    """Calls of one operator that are measured as one.

    Attributes:
        operator: ``"carafe"``, ``"roi_align"`` or ``"nms"``.
        name: where it occurs and its shapes.
        calls: made one after the other.
        in_all_variants: measured in every type and layout, not only when all is asked for.
    """

    operator: str
    name: str
    calls: tuple[Call, ...]
    in_all_variants: bool = False

    def variants(self, *, full: bool = False) -> tuple[Variant, ...]:
        """Types and layouts to measure; float32 NCHW comes first. NMS knows float32 only."""
        if self.operator == "nms":
            return (Variant("float32", ""),)
        return _VARIANTS if full or self.in_all_variants else _VARIANTS[:1]

    def num_bytes(self, variant: Variant) -> int:
        """Inputs read and results written once each."""
        size = variant.torch_dtype.itemsize
        return sum(call.num_bytes(size) for call in self.calls)

    @property
    def flops(self) -> int:
        """Multiplications and additions; 0 where they depend on the data."""
        return sum(call.flops for call in self.calls)

    def inputs(self) -> list[tuple[Any, ...]]:
        """Of each call, float32; the same at every time of asking."""
        generator = torch.Generator().manual_seed(SEED)
        return [call.inputs(generator) for call in self.calls]


def _carafe_workloads() -> tuple[Workload, ...]:
    # Coarsest first: P6 to P5, ..., P3 to P2.
    neck = {
        f"neck P{level} to P{level - 1}, {CHANNELS}x{height}x{width}": CarafeCall(
            1, CHANNELS, height, width
        )
        for level, (height, width) in reversed(tuple(zip((3, 4, 5, 6), MAPS[1:], strict=True)))
    }
    head = {
        f"mask head, 100 RoIs, {channels}x14x14": CarafeCall(100, channels, 14, 14)
        for channels in (CHANNELS, 1)
    }
    height, width = MAPS[2]
    kernels = {
        f"k {k}, G {groups}, {CHANNELS}x{height}x{width}": CarafeCall(
            1, CHANNELS, height, width, kernel_size=k, group_size=groups
        )
        for groups in (1, 4)
        for k in (3, 5, 7)
    }
    return (
        Workload("carafe", "neck, all four", tuple(neck.values()), in_all_variants=True),
        *(
            # One channel is what the detectors reassemble, see carafe_deploy/models/roi_heads.py.
            Workload("carafe", name, (call,), in_all_variants=call.channels == 1)
            for name, call in (neck | head | kernels).items()
        ),
    )


def _nms_workloads() -> tuple[Workload, ...]:
    rpn = NmsCall(
        labels=5,
        candidates=1000,
        max_output=1000,
        iou_threshold=0.7,
        # Every logit passes, padding does not.
        score_threshold=torch.finfo(torch.float32).min,
        objects=100,
        # Anchors have 8 strides a side.
        sides=tuple((5.6 * stride, 11.2 * stride) for stride in STRIDES),
        scores=_logits,
        padding=1000 - 3 * math.prod(MAPS[4]),
    )
    box_head, all_above = (
        NmsCall(80, 1000, 100, 0.5, 0.05, objects=100, scores=scores)
        for scores in (_few_above, _all_above)
    )
    one_label = NmsCall(1, 10_000, 100, 0.5, 0.05, objects=500)
    calls = {
        "RPN, 5x1000": rpn,
        "box head, 80x1000": box_head,
        "box head, 80x1000, all above the threshold": all_above,
        "one label, 1x10000": one_label,
    }
    return tuple(Workload("nms", name, (call,)) for name, call in calls.items())


#: Workloads by operator.
WORKLOADS: Mapping[str, tuple[Workload, ...]] = {
    "carafe": _carafe_workloads(),
    "roi_align": (
        Workload("roi_align", "box head, 1000 RoIs, 7x7", (RoiAlignCall(1000, 7),), True),
        Workload("roi_align", "mask head, 100 RoIs, 14x14", (RoiAlignCall(100, 14),), True),
    ),
    "nms": _nms_workloads(),
}
OPERATORS = tuple(WORKLOADS)
