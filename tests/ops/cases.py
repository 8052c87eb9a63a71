"""One list of cases an operator; every face of the operator runs all of them.

A case is its inputs in float32, its attributes, and the reason why it is there. Inputs are made
once, so that a case means the same numbers on every face.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BOX_CASES",
    "CARAFE_CASES",
    "CASES",
    "NMS_CASES",
    "ROI_ALIGN_CASES",
    "RPN_CASES",
    "Case",
    "named",
    "normalized",
]

Attributes = Mapping[str, Any]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs and attributes of one call.

    Attributes:
        reason: why the case is in the list; also its name.
        inputs: in the operator's order, lists one by one; numbers that are int32 stay so.
        attributes: by name.
        layout: gives tensors of four axes their strides, after any change of dtype.
    """

    reason: str
    inputs: tuple[Tensor, ...]
    attributes: Attributes
    layout: Callable[[Tensor], Tensor] = _as_is

    def arranged(self, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
        """The inputs in the given dtypes, the last one repeated, in the case's layout."""
        kinds = (*dtypes, *[dtypes[-1]] * (len(self.inputs) - len(dtypes)))
        copies = (
            t.to(torch.int32 if t.dtype == torch.int32 else kind, copy=True)
            for t, kind in zip(self.inputs, kinds, strict=True)
        )
        return tuple(self.layout(copy) if copy.dim() == 4 else copy for copy in copies)

    def __str__(self) -> str:
        return self.reason


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- layouts -------------------------------------------------------------------------------------


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _every_second_column(tensor: Tensor) -> Tensor:
    wide = tensor.new_full((*tensor.shape[:3], 2 * tensor.shape[3]), math.nan)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def _columns_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


# --- CARAFE --------------------------------------------------------------------------------------


def _carafe(
    reason: str,
    n: int,
    c: int,
    h: int,
    w: int,
    *,
    k: int = 5,
    g: int = 1,
    s: int = 2,
    spread: float = 1.0,
    layout: Callable[[Tensor], Tensor] = _as_is,
) -> Case:
    """Features and encoder output; ``spread`` is the standard deviation of the latter's logits."""
    generator = _random(len(reason))
    features = torch.randn(n, c, h, w, generator=generator)
    encoded = torch.randn(n, s * s * g * k * k, h, w, generator=generator) * spread
    attributes = {"kernel_size": k, "group_size": g, "scale_factor": s}
    return Case(reason, (features, encoded), attributes, layout)


#: Inputs are features and encoded; the masks of the other entry are computed from encoded.
CARAFE_CASES: Sequence[Case] = (
    _carafe("neck of the detectors", 1, 256, 7, 9),
    _carafe("mask head of the detectors, one reordered channel", 6, 1, 14, 14),
    _carafe("1x1 map: the centre tap alone", 1, 4, 1, 1),
    _carafe("one row", 1, 2, 1, 9),
    _carafe("one column", 1, 2, 9, 1),
    _carafe("kernel larger than the map", 1, 3, 2, 3, k=7),
    _carafe("one tap: nearest upsampling", 1, 3, 4, 5, k=1),
    _carafe("odd sizes", 1, 5, 11, 13, k=3),
    _carafe("wider than a tile of 32", 1, 2, 3, 70),
    _carafe("four groups", 1, 8, 5, 6, g=4),
    _carafe("as many groups as channels", 2, 3, 4, 4, k=3, g=3),
    _carafe("batch of three", 3, 4, 5, 4),
    _carafe("no image: no RoI reaches the mask head", 0, 4, 5, 4),
    _carafe("no upsampling", 1, 4, 6, 5, s=1),
    _carafe("odd ratio", 2, 4, 4, 5, k=3, g=2, s=3),
    _carafe("ratio 4", 1, 2, 3, 4, k=3, s=4),
    _carafe("large odd kernel and ratio, groups", 1, 6, 5, 4, k=7, g=2, s=3),
    _carafe("logits whose exponentials overflow", 1, 4, 4, 4, spread=300.0),
    _carafe("channels last", 2, 8, 5, 6, layout=_channels_last),
    _carafe("strided columns", 1, 4, 5, 6, layout=_every_second_column),
    _carafe("transposed in memory", 1, 4, 5, 6, k=3, layout=_columns_first),
)


# --- MultilevelRoiAlign --------------------------------------------------------------------------

_PYRAMID = ((40, 56), (20, 28), (10, 14), (5, 7))  # of a 160x224 image


def _sized(*sides: tuple[float, float], at: tuple[float, float] = (3.3, 5.7)) -> Tensor:
    """RoIs of the given widths and heights, cornered at ``at``: [1, K, 4]."""
    return torch.tensor([[(*at, at[0] + width, at[1] + height) for width, height in sides]])


def _scattered(count: int, batch: int) -> Tensor:
    """RoIs of 4 to 200 pixels in and somewhat beyond a 160x224 image."""
    generator = _random(count)
    centre = torch.rand(batch, count, 2, generator=generator) * torch.tensor([224.0, 160.0])
    half = 2 + 98 * torch.rand(batch, count, 2, generator=generator) ** 2
    return torch.cat((centre - half, centre + half), dim=2)


def _roi_align(
    reason: str,
    rois: Tensor,
    *,
    c: int = 2,
    sizes: Sequence[tuple[int, int]] = _PYRAMID,
    size: int = 7,
    ratio: int = 0,
    strides: Sequence[int] = (4, 8, 16, 32),
    finest: int = 56,
    layout: Callable[[Tensor], Tensor] = _as_is,
) -> Case:
    generator = _random(len(reason))
    maps = tuple(torch.randn(rois.shape[0], c, h, w, generator=generator) for h, w in sizes)
    attributes = {
        "output_size": size,
        "sampling_ratio": ratio,
        "strides": list(strides)[: len(sizes)],
        "finest_scale": finest,
    }
    return Case(reason, (rois, *maps), attributes, layout)


ROI_ALIGN_CASES: Sequence[Case] = (
    _roi_align("box head: all levels, two images", _scattered(10, 2)),
    _roi_align("mask head: 14 bins", _scattered(5, 1), size=14),
    _roi_align("many channels", _scattered(5, 1), c=130),
    _roi_align("finest level alone", _sized((20, 30), (60, 41), (100, 90))),
    _roi_align("coarsest level alone", _sized((500, 460), (470, 520), at=(-150, -160))),
    _roi_align("one level in the pyramid", _scattered(6, 1), sizes=_PYRAMID[:1]),
    _roi_align(
        "five levels",
        _scattered(8, 1),
        sizes=(*_PYRAMID, (3, 4)),
        strides=(4, 8, 16, 32, 64),
        finest=14,
    ),
    _roi_align("no RoI", torch.zeros(2, 0, 4)),
    _roi_align("one RoI", _sized((33, 47))),
    _roi_align("padding rows of zeros", torch.cat((_sized((33, 47)), torch.zeros(1, 3, 4)), dim=1)),
    _roi_align("no width or no height", _sized((0, 40), (40, 0))),
    _roi_align("corners swapped", _sized((-30, 20), (30, -20), (-30, -20), at=(90, 80))),
    _roi_align("wholly outside", _sized((40, 40), (90, 20), at=(400, 300))),
    _roi_align("partly outside", _sized((60, 50), (300, 280), at=(-30, -40))),
    _roi_align("whole image and beyond", _sized((224, 160), (226, 162), at=(-1, -1))),
    _roi_align(
        "tall and narrow: 20 samples by one",
        _sized((3, 540), (540, 3), at=(10, 10)),
        sizes=((140, 140), (70, 70), (35, 35), (18, 18)),
    ),
    _roi_align("sub-pixel", _sized((0.3, 0.2), (1.5, 0.01))),
    _roi_align("fixed sampling ratio", _scattered(8, 1), ratio=2),
    _roi_align("no image", torch.zeros(0, 5, 4)),
    _roi_align(
        "fixed sampling ratio, partly outside",
        _sized((60, 50), (300, 280), (900, 800), at=(-30, -40)),
        ratio=2,
    ),
    _roi_align("fixed sampling ratio, no area", _sized((0, 40), (0, 0), (-30, 20)), ratio=2),
    _roi_align("one bin", _scattered(6, 1), size=1),
    _roi_align("1x1 maps", _scattered(5, 1), sizes=((1, 1),) * 4),
    _roi_align(
        "beyond x = 1000, where float16 has whole pixels only",
        _sized((60.3, 51.9), (40, 40), at=(1041.37, 7.41)),
        sizes=((16, 280), (8, 140), (4, 70), (2, 35)),
    ),
    _roi_align("strides that are no powers of two", _scattered(8, 1), strides=(5, 10, 15, 30)),
    _roi_align("channels last", _scattered(8, 2), layout=_channels_last),
    _roi_align("strided columns", _scattered(8, 1), layout=_every_second_column),
)


# --- RpnCandidates -------------------------------------------------------------------------------


def _rpn(
    reason: str,
    *,
    batch: int = 1,
    sizes: Sequence[tuple[int, int]] = ((6, 7), (3, 4)),
    anchors: int = 3,
    keep: int = 20,
    min_size: float = 0.0,
    logits: Callable[[Tensor], Tensor] = _as_is,
    deltas: Callable[[Tensor], Tensor] = _as_is,
    layout: Callable[[Tensor], Tensor] = _as_is,
) -> Case:
    """Levels of strides 4, 8, ... with anchors of some strides; functions change what is given."""
    generator = _random(len(reason))
    strides = [4 << level for level in range(len(sizes))]
    half = torch.rand(len(sizes), anchors, 2, generator=generator) * 3 + 1
    half *= torch.tensor(strides).view(-1, 1, 1)
    normalization = torch.tensor([[0.1, -0.1, 0.05, 0.0], [1.0, 0.5, 0.4, 0.5]])
    height, width = (4.0 * side for side in sizes[0])
    extent = torch.tensor([[height, width], [height - 3, width - 5]])[torch.arange(batch) % 2]

    def maps(channels: int) -> list[Tensor]:
        return [torch.randn(batch, channels, h, w, generator=generator) for h, w in sizes]

    inputs = (
        *(extent, torch.cat((-half, half), dim=2), normalization),
        *(*map(logits, maps(anchors)), *map(deltas, maps(4 * anchors))),
    )
    attributes = {"num_candidates": keep, "min_size": min_size, "strides": strides}
    return Case(reason, inputs, attributes, layout)


def _with(*values: float) -> Callable[[Tensor], Tensor]:
    """Values in turn, instead of every second element."""

    def change(tensor: Tensor) -> Tensor:
        flat = tensor.clone().flatten()
        places = torch.arange(0, flat.numel(), 2)
        flat[places] = torch.tensor(values)[torch.arange(len(places)) % len(values)]
        return flat.view_as(tensor)

    return change


RPN_CASES: Sequence[Case] = (
    _rpn("two levels", batch=2),
    _rpn("fewer anchors than candidates", keep=50),
    _rpn("one candidate of each level", keep=1),
    _rpn("one level", sizes=((5, 9),)),
    _rpn("five levels down to one pixel", sizes=((16, 18), (8, 9), (4, 5), (2, 3), (1, 1))),
    _rpn("one anchor a pixel", anchors=1, keep=9),
    _rpn("more anchors than a block's memory holds", sizes=((40, 41),), anchors=3, keep=1000),
    _rpn("equal logits rank by number", logits=torch.zeros_like, keep=30),
    _rpn("many equal logits", logits=lambda tensor: (2 * tensor).round(), keep=30),
    _rpn("zeros of both signs", logits=_with(0.0, -0.0, -1.0)),
    _rpn("NaN and -inf are no candidates", logits=_with(math.nan, -math.inf, 1.0), keep=60),
    _rpn("+inf is the best", logits=_with(math.inf, 3.0)),
    _rpn("boxes of no more than 16 pixels are dropped", min_size=16.0),
    _rpn("no box is dropped", min_size=-1.0),
    _rpn("NaN deltas", deltas=_with(math.nan, 0.5, 0.1)),
    _rpn("deltas beyond the largest", deltas=lambda tensor: 9 * tensor),
    _rpn("no image", batch=0),
    _rpn("channels last", batch=2, layout=_channels_last),
    _rpn("strided columns", layout=_every_second_column),
)


# --- BoxCandidates -------------------------------------------------------------------------------


def _box(
    reason: str,
    *,
    batch: int = 1,
    count: int = 9,
    classes: int = 5,
    held: Sequence[int] = (7,),
    logits: Callable[[Tensor], Tensor] = _as_is,
    deltas: Callable[[Tensor], Tensor] = _as_is,
) -> Case:
    generator = _random(len(reason))

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, count, *shape, generator=generator)

    low = torch.rand(batch, count, 2, generator=generator) * 60
    size = torch.rand(batch, count, 2, generator=generator) * 40
    normalization = torch.tensor([[0.0, 0.1, -0.1, 0.0], [0.1, 0.1, 0.2, 0.2]])
    inputs = (
        logits(2 * normal(classes + 1)),
        deltas(normal(4 * classes)),
        torch.cat((low, low + size), dim=2),
        torch.tensor(held, dtype=torch.int32).expand(batch, -1)[:, :1].clone()
        if len(held) == 1
        else torch.tensor(held, dtype=torch.int32).view(-1, 1),
        torch.tensor([[70.0, 90.0], [64.0, 80.0]])[torch.arange(batch) % 2],
        normalization,
    )
    return Case(reason, inputs, {})


BOX_CASES: Sequence[Case] = (
    _box("some classes"),
    _box("two images with other numbers of proposals", batch=2, held=(4, 9)),
    _box("more proposals than a warp has lanes", count=70, held=(69,)),
    _box("80 classes", classes=80),
    _box("one class", classes=1),
    _box("no class but the background", classes=0),
    _box("no proposal is valid", held=(0,)),
    _box("more valid ones than there are", held=(12,)),
    _box("no proposal", count=0, held=(0,)),
    _box("no image", batch=0, held=(3,)),
    _box("logits whose exponentials overflow", logits=lambda tensor: 300 * tensor),
    _box("a NaN logit makes its proposal's scores NaN", logits=_with(math.nan, *[1.0] * 5)),
    _box("deltas beyond the largest", deltas=lambda tensor: 40 * tensor),
)


# --- BatchedNms ----------------------------------------------------------------------------------


def _nms(
    reason: str,
    boxes: Tensor,
    scores: Tensor,
    *,
    iou: float = 0.5,
    threshold: float = 0.05,
    keep: int = 10,
) -> Case:
    attributes = {"iou_threshold": iou, "score_threshold": threshold, "max_output": keep}
    return Case(reason, (boxes, scores), attributes)


def _boxes(*rows: Sequence[float]) -> Tensor:
    """One image, one label: [1, 1, M, 4]."""
    return torch.tensor(rows, dtype=torch.float32).view(1, 1, -1, 4)


def _scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1)


def _crowd(batch: int, labels: int, count: int, image: float = 300.0) -> tuple[Tensor, Tensor]:
    """Boxes that overlap in clusters, distinct scores."""
    generator = _random(labels * count)
    centre = torch.rand(batch, labels, count, 2, generator=generator) * image
    half = 10 + 30 * torch.rand(batch, labels, count, 2, generator=generator)
    ranks = torch.empty(batch, labels * count)
    for image_ranks in ranks:
        image_ranks[:] = torch.randperm(labels * count, generator=generator)
    scores = (ranks.view(batch, labels, count) + 0.5) / max(labels * count, 1)
    return torch.cat((centre - half, centre + half), dim=-1), scores


def _ties(batch: int, labels: int, count: int) -> tuple[Tensor, Tensor]:
    """A crowd whose scores have 21 values."""
    boxes, scores = _crowd(batch, labels, count)
    return boxes, (scores * 20).round() / 20


def _grid(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Boxes that do not touch: one image, one label."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    low = torch.stack((x, y), dim=-1).view(1, 1, -1, 2) * 10.0
    ranks = torch.randperm(rows * columns, generator=_random(0)).view(1, 1, -1)
    return torch.cat((low, low + 8), dim=-1), (ranks + 200) / 1500


_UNIT = (0.0, 0.0, 4.0, 4.0)
#: IoU with _UNIT is 8/16, exactly one half.
_HALF = (0.0, 0.0, 4.0, 2.0)

NMS_CASES: Sequence[Case] = (
    _nms("one box", _boxes(_UNIT), _scores(0.9)),
    _nms("nothing above the threshold", _boxes(_UNIT, _HALF), _scores(0.01, 0.02)),
    _nms("a score equal to the threshold is out", _boxes(_UNIT), _scores(0.25), threshold=0.25),
    _nms("an IoU equal to the threshold is kept", _boxes(_UNIT, _HALF), _scores(0.9, 0.8)),
    _nms("an IoU just above it is not", _boxes(_UNIT, _HALF), _scores(0.9, 0.8), iou=0.4999),
    _nms(
        "threshold 0: any overlap suppresses, touching does not",
        _boxes(_UNIT, (3, 3, 9, 9), (4, 0, 8, 3)),
        _scores(0.9, 0.8, 0.7),
        iou=0.0,
    ),
    _nms(
        "threshold 1: nothing suppresses, not even itself",
        _boxes(_UNIT, _UNIT),
        _scores(0.9, 0.8),
        iou=1.0,
    ),
    _nms(
        "the best of three comes last",
        _boxes(_HALF, (0, 0, 4, 3), _UNIT),
        _scores(0.2, 0.3, 0.9),
        iou=0.4,
    ),
    _nms(
        "the suppressed do not suppress",
        _boxes((0, 0, 10, 4), (4, 0, 14, 4), (8, 0, 18, 4)),
        _scores(0.9, 0.8, 0.7),
        iou=0.4,
    ),
    _nms(
        "equal scores rank by index",
        _boxes((0, 0, 1, 1), (5, 0, 6, 1), (9, 0, 10, 1)),
        _scores(0.5, 0.5, 0.5),
    ),
    _nms("equal scores, the first suppresses", _boxes(_UNIT, _UNIT, _UNIT), _scores(0.5, 0.5, 0.5)),
    _nms(
        "labels do not suppress each other",
        _boxes(_UNIT, _UNIT).view(1, 2, 1, 4),
        _scores(0.4, 0.9).view(1, 2, 1),
    ),
    _nms(
        "equal scores over labels rank by index",
        _boxes(_UNIT, (9, 9, 10, 10), _UNIT, (7, 7, 8, 8)).view(1, 2, 2, 4),
        torch.full((1, 2, 2), 0.5),
    ),
    _nms("fewer rows than kept boxes", *_crowd(1, 1, 40), keep=3),
    _nms(
        "cut off between equal scores",
        _boxes(*((i, 0, i + 1, 1) for i in range(0, 12, 2))),
        torch.full((1, 1, 6), 0.5),
        keep=4,
    ),
    _nms(
        "padding of -inf with boxes of zeros",
        _boxes(_UNIT, (0, 0, 0, 0), (9, 0, 10, 1), (0, 0, 0, 0)),
        _scores(0.9, -math.inf, 0.3, -math.inf),
        threshold=-1.0,
    ),
    _nms(
        "a label with padding only",
        _boxes(_UNIT, (0, 0, 0, 0)).view(1, 2, 1, 4),
        _scores(0.9, -math.inf).view(1, 2, 1),
        threshold=-1.0,
    ),
    _nms(
        "padding at a threshold of -inf",
        _boxes(_UNIT, (0, 0, 0, 0)),
        _scores(-7.0, -math.inf),
        threshold=-math.inf,
    ),
    _nms(
        "NaN scores never pass",
        _boxes(_UNIT, _HALF, (9, 0, 10, 1)),
        _scores(math.nan, 0.8, math.nan),
        threshold=-1.0,
    ),
    _nms(
        "boxes without area neither suppress nor are suppressed",
        _boxes((2, 2, 2, 2), (2, 2, 2, 2), _UNIT, (0, 0, 0, 4)),
        _scores(0.9, 0.8, 0.7, 0.6),
    ),
    _nms(
        "negative coordinates",
        _boxes((-4, -4, 0, 0), (-4, -4, 0, -1), (-9, -9, -8, -8)),
        _scores(0.3, 0.9, 0.5),
    ),
    _nms("two images differ", *_crowd(2, 1, 25)),
    _nms(
        "region proposals: five levels, padded",
        *_crowd(1, 5, 60),
        iou=0.7,
        threshold=-1.0,
        keep=400,
    ),
    _nms("box head: many classes, two images", *_crowd(2, 12, 50), keep=100),
    _nms("every box kept", *_crowd(1, 2, 8, image=30000.0), keep=16),
    _nms("1,200 boxes kept: nothing is capped", *_grid(30, 40), keep=1200),
    _nms("clusters whose scores tie", *_ties(2, 3, 40), threshold=0.3, keep=50),
    _nms("any overlap in clusters suppresses", *_ties(1, 2, 30), iou=0.0, keep=60),
    _nms("no image", *_crowd(0, 2, 30)),
    _nms("no label", *_crowd(2, 0, 30)),
    _nms("no candidate", *_crowd(2, 2, 0)),
    _nms(
        "coordinates in the thousands", _crowd(1, 3, 40)[0] + 4000.0, _crowd(1, 3, 40)[1], keep=120
    ),
)


# --- all -----------------------------------------------------------------------------------------


def normalized(encoded: Tensor, k: int, groups: int, s: int) -> Tensor:
    """What the definition of CarafeEncoded hands to Carafe: softmax over k*k after the shuffle."""
    masks = torch.nn.functional.pixel_shuffle(encoded, s)
    return masks.unflatten(1, (groups, k * k)).softmax(dim=2).flatten(1, 2)


def _given_masks(case: Case) -> Case:
    features, encoded = case.inputs
    masks = normalized(encoded, *case.attributes.values())
    return Case(case.reason, (features, masks), case.attributes, case.layout)


#: By torch name. The first case of an operator is what the detectors give it.
CASES: Mapping[str, Sequence[Case]] = {
    "carafe": tuple(map(_given_masks, CARAFE_CASES)),
    "carafe_encoded": CARAFE_CASES,
    "rpn_candidates": RPN_CASES,
    "multilevel_roi_align": ROI_ALIGN_CASES,
    "box_candidates": BOX_CASES,
    "batched_nms": NMS_CASES,
}


def named(name: str, reason: str) -> Case:
    """One of an operator's cases."""
    return next(case for case in CASES[name] if case.reason == reason)
