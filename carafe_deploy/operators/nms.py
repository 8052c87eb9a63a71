"""BatchedNms: what it is; computed by :mod:`carafe_deploy.ops.nms`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from carafe_deploy.brief import OneLine
from carafe_deploy.operators.specification import (
    IMAGE,
    MAPS,
    STRIDES,
    Argument,
    Array,
    Attributes,
    Operator,
    Peer,
    Shape,
)
from carafe_deploy.types import OperatorCall

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["BATCHED_NMS", "NmsCall"]


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    batch = inputs[0][0]
    return [batch, 1], [batch, attributes["max_output"]]


def _label(call: OperatorCall) -> str:
    return f"{call.shapes[0][1]}x{call.shapes[0][2]}"


def _candidates(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    """Boxes in clusters; the end is padded with -inf.

    Coordinates are multiples of half a pixel and scores of 2**-12, so that no rounding decides an
    overlap and ties occur.
    """
    boxes_shape, (batch, labels, count) = call.shapes
    clusters = max(count // 32, 1)
    side = np.exp2(generator.uniform(4, 8, (batch, labels, clusters, 1)))
    centre = generator.uniform(0, 1024, (batch, labels, clusters, 2))
    owner = generator.integers(0, clusters, (batch, labels, count))[..., None]
    side = np.take_along_axis(side, owner, axis=2)
    spread = side * 0.08 * generator.standard_normal((batch, labels, count, 4))
    centre = np.take_along_axis(centre, owner, axis=2) + spread[..., :2]
    half = side * 0.5 + spread[..., 2:]
    boxes = np.concatenate((centre - half, centre + half), axis=-1)
    boxes = (boxes.clip(0, 1024) * 2).round() / 2
    # A box head's scores are mostly near zero; an RPN keeps all it is given.
    power = 40 if call.attributes["score_threshold"] > 0 else 4
    scores = np.round(generator.uniform(0, 1, (batch, labels, count)) ** power * 4096) / 4096
    padding = np.zeros(scores.shape, np.bool_)
    padding[..., count - count // 10 :] = True
    padding[:, -1, count // 2 :] = True
    scores[padding], boxes[padding] = -np.inf, 0.0
    return boxes.reshape(boxes_shape).astype(np.float32), scores.astype(np.float32)


# --- for the benchmark ---------------------------------------------------------------------------


Scores = Callable[["Tensor"], "Tensor"]


def _logits(ranks: Tensor) -> Tensor:
    """From -6 to 4, best first in every label: the RPN takes the best of each level."""
    return (10 * ranks - 6).sort(dim=1, descending=True).values


def _few_above(ranks: Tensor) -> Tensor:
    """Every tenth label is of an object in the image."""
    import torch

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
        import torch

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


def _workloads() -> tuple[tuple[str, tuple[NmsCall, ...], bool], ...]:
    rpn = NmsCall(
        labels=5,
        candidates=1000,
        max_output=1000,
        iou_threshold=0.7,
        # Every logit passes, padding does not.
        score_threshold=float(np.finfo(np.float32).min),
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
    return tuple((name, (call,), False) for name, call in calls.items())


def _torchvision_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """Candidates above the threshold through ``batched_nms``, the best of them padded with -1."""
    import torch
    import torch.nn.functional as F
    import torchvision

    candidates = (scores.flatten() > score_threshold).nonzero().squeeze(1)
    chosen, of_chosen = boxes.reshape(-1, 4)[candidates], scores.flatten()[candidates]
    labels = candidates // scores.shape[2]
    kept = torchvision.ops.batched_nms(chosen, of_chosen, labels, iou_threshold)[:max_output]
    indices = F.pad(candidates[kept], (0, max_output - len(kept)), value=-1)
    count = torch.tensor([[len(kept)]], dtype=torch.int32, device=boxes.device)
    return count, indices.unsqueeze(0)


def _reference(*inputs: Any, **attributes: Any) -> Any:
    return BATCHED_NMS.implementation.reference(*inputs, *attributes.values())


# --- the operator --------------------------------------------------------------------------------

BATCHED_NMS = Operator(
    name="batched_nms",
    inputs=(Argument("boxes", "BLM4", "float32"), Argument("scores", "BLM", "float32")),
    outputs=(Argument("num_dets", "B1", "int32"), Argument("indices", "BD", "int64")),
    attributes={"iou_threshold": "FLOAT", "score_threshold": "FLOAT", "max_output": "INT"},
    shapes=_shapes,
    module="carafe_deploy.ops.nms",
    tolerance="batched_nms",
    family="nms",
    title="NMS",
    random_inputs=_candidates,
    label=_label,
    compared="kept",
    workloads=_workloads(),
    data=(
        "candidates scatter around objects, centre by 10 % of the side, sides by 2**N(0, 0.2), in "
        "steps of half a pixel: RPN 100 objects a level, box head 100 a label, one label 500; "
        "scores of the box head: 13 % above 0.05 in 8 labels, 0.2 % in the other 72"
    ),
    peers=(
        Peer("torchvision", _torchvision_nms),
        Peer("reference", _reference, in_full_only=True),
    ),
)
