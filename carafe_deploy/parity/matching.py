"""Pair detections and proposals of two artefacts; rows of equal score may come in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError, BackendUnavailableError
from carafe_deploy.tolerances import coarsest, tolerance
from carafe_deploy.types import Detections, ModelInfo

__all__ = [
    "MatchResult",
    "ProposalMatch",
    "box_iou",
    "combined",
    "limits_of",
    "match_detections",
    "match_proposals",
    "match_within_tolerance",
]

_Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, repr=False)
class MatchResult(OneLine):
    """How far two sets of detections agree.

    Attributes:
        matched: detections that found a partner.
        only_in_reference: those without one, borderline ones left out.
        only_in_candidate: likewise.
        borderline: those without one that either side may drop, see :func:`match_detections`.
        max_box_error: largest difference of a coordinate among partners, in pixels.
        max_score_error: largest difference of scores among partners.
        min_iou: smallest IoU of boxes among partners; None where there are none.
        min_mask_iou: likewise of masks; None where they were not compared.
        pairs: (row in the reference, row in the candidate) of partners, best score first.
    """

    matched: int = 0
    only_in_reference: int = 0
    only_in_candidate: int = 0
    borderline: int = 0
    max_box_error: float = 0.0
    max_score_error: float = 0.0
    min_iou: float | None = None
    min_mask_iou: float | None = None
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def total(self) -> int:
        """Distinct detections that should have been matched."""
        return self.matched + self.only_in_reference + self.only_in_candidate

    @property
    def fraction(self) -> float:
        """Of the distinct detections, how many were matched; 1 where there are none."""
        return self.matched / self.total if self.total else 1.0


def combined(results: Iterable[MatchResult]) -> MatchResult:
    """Counts summed and errors maximised over images; without pairs."""
    results = list(results)
    ious = [r.min_iou for r in results if r.min_iou is not None]
    mask_ious = [r.min_mask_iou for r in results if r.min_mask_iou is not None]
    return MatchResult(
        matched=sum(r.matched for r in results),
        only_in_reference=sum(r.only_in_reference for r in results),
        only_in_candidate=sum(r.only_in_candidate for r in results),
        borderline=sum(r.borderline for r in results),
        max_box_error=max((r.max_box_error for r in results), default=0.0),
        max_score_error=max((r.max_score_error for r in results), default=0.0),
        min_iou=min(ious, default=None),
        min_mask_iou=min(mask_ious, default=None),
    )


class Limits(TypedDict):
    """Of :func:`match_detections`."""

    iou: float
    score: float
    mask_iou: float | None


def limits_of(precision: str, *, masks: bool = True) -> Limits:
    """From the table of tolerances, with or without one of masks."""
    iou, score, mask_iou = (
        tolerance("detections", kind, precision).value for kind in ("iou", "score", "mask_iou")
    )
    return {"iou": iou, "score": score, "mask_iou": mask_iou if masks else None}


def match_within_tolerance(
    infos: tuple[ModelInfo, ModelInfo], reference: Detections, candidate: Detections
) -> MatchResult:
    """Pair what two artefacts found in one image, within the tolerances of the coarser precision.

    ``infos`` are those of reference and candidate.
    """
    info = infos[0]
    precision = coarsest(*(one.precision for one in infos))
    return match_detections(
        reference,
        candidate,
        **limits_of(precision, masks=info.has_masks),
        score_threshold=info.score_threshold,
        max_detections=info.max_detections,
    )


def match_detections(
    reference: Detections,
    candidate: Detections,
    *,
    iou: float,
    score: float,
    mask_iou: float | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
) -> MatchResult:
    """Pair detections of one image greedily, best score of the reference first.

    Each takes the free detection with the largest box IoU among those of its class that satisfy
    all limits. One that finds no partner is *borderline*, not missing, where a difference within
    ``score`` may have cost it: its score is within ``score`` of ``score_threshold``, or the other
    side holds ``max_detections`` and its worst score is no more than ``score`` below.

    Args:
        reference: what is right.
        candidate: what is checked.
        iou: smallest accepted intersection over union of boxes, in 0..1.
        score: largest accepted difference of scores.
        mask_iou: smallest accepted IoU of masks; None leaves masks alone.
        score_threshold: of the artefacts; None for no such border.
        max_detections: likewise.

    Raises:
        ArtefactError: the image sizes differ, or masks are to be compared and one side has none.
        BackendUnavailableError: masks are to be compared and pycocotools is not installed.
    """
    if reference.image_size != candidate.image_size:
        raise ArtefactError(
            f"the reference saw an image of {reference.image_size} and the candidate one of "
            f"{candidate.image_size} (height, width): compare detections of the same image"
        )
    overlaps = box_iou(reference.boxes, candidate.boxes)
    score_errors = np.abs(
        reference.scores[:, None].astype(np.float64) - candidate.scores[None].astype(np.float64)
    )
    accepted = (overlaps >= iou) & (score_errors <= score)
    accepted &= reference.labels[:, None] == candidate.labels[None]
    mask_overlaps = None
    if mask_iou is not None:
        mask_overlaps = _mask_iou(reference, candidate)
        accepted &= mask_overlaps >= mask_iou
    pairs = []
    free = np.ones(len(candidate), np.bool_)
    for row in np.argsort(-reference.scores, kind="stable").tolist():
        options = np.flatnonzero(accepted[row] & free)
        if options.size:
            best = int(options[overlaps[row, options].argmax()])
            free[best] = False
            pairs.append((row, best))
    rows, columns = np.array(pairs, np.intp).reshape(-1, 2).T
    borders = (score, score_threshold, max_detections)
    excused = [
        _borderline(np.delete(reference.scores, rows), candidate.scores, *borders),
        _borderline(candidate.scores[free], reference.scores, *borders),
    ]
    box_errors = np.abs(reference.boxes[rows] - candidate.boxes[columns])
    smallest = [
        None if values is None or not pairs else float(values[rows, columns].min())
        for values in (overlaps, mask_overlaps)
    ]
    return MatchResult(
        matched=len(pairs),
        only_in_reference=len(reference) - len(pairs) - excused[0],
        only_in_candidate=len(candidate) - len(pairs) - excused[1],
        borderline=sum(excused),
        max_box_error=float(box_errors.max(initial=0.0)),
        max_score_error=float(score_errors[rows, columns].max(initial=0.0)),
        min_iou=smallest[0],
        min_mask_iou=smallest[1],
        pairs=tuple(pairs),
    )


def _borderline(
    unmatched: _Floats,
    others: _Floats,
    tolerance: float,
    threshold: float | None,
    max_rows: int | None,
) -> int:
    """How many unmatched scores lie within the tolerance of where the other side ends."""
    excused = np.zeros(len(unmatched), np.bool_)
    if threshold is not None:
        excused |= unmatched <= threshold + tolerance
    if max_rows is not None and len(others) >= max_rows:
        excused |= unmatched <= others.min() + tolerance
    return int(excused.sum())


def box_iou(boxes: _Floats, others: _Floats) -> npt.NDArray[np.float64]:
    """[N, M] intersections over unions of x1, y1, x2, y2 boxes [N, 4] and [M, 4].

    Areas are without +1; two boxes without area overlap by 1 where they are equal, else by 0.
    """
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(min=0.0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).clip(min=0.0).prod(axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - intersection
    equal = (a == b).all(axis=-1).astype(np.float64)
    return np.divide(intersection, union, out=equal, where=union > 0)


def _mask_iou(reference: Detections, candidate: Detections) -> npt.NDArray[np.float64]:
    """[N, M]; two empty masks agree."""
    for name, side in (("reference", reference), ("candidate", candidate)):
        if side.masks is None:
            raise ArtefactError(f"the {name} has no masks to compare: compare boxes only")
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise BackendUnavailableError(
            f"comparing masks needs pycocotools ({error}): pip install pycocotools"
        ) from error
    ours, theirs = list(reference.masks or ()), list(candidate.masks or ())
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    overlaps: npt.NDArray[np.float64] = coco_mask.iou(ours, theirs, [0] * len(theirs))
    empty = [np.asarray(coco_mask.area(masks)) == 0 for masks in (ours, theirs)]
    overlaps[empty[0][:, None] & empty[1][None]] = 1.0
    return overlaps


@dataclass(frozen=True, repr=False)
class ProposalMatch(OneLine):
    """Paired proposals of one image.

    Attributes:
        rows: [K] rows of the reference.
        columns: [K] their partners in the candidate.
        counts: valid rows of the reference and of the candidate.
        borderline: rows without a partner that either side may drop.
        max_box_error: largest difference of a coordinate, in pixels.
        shifts: [K] largest difference of a coordinate over the box's longer side.
        max_score_error: largest difference of objectness.
    """

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    counts: tuple[int, int]
    borderline: int
    max_box_error: float
    shifts: npt.NDArray[np.float64]
    max_score_error: float

    @property
    def total(self) -> int:
        """Distinct proposals that should have been matched."""
        return sum(self.counts) - len(self.rows) - self.borderline


#: Boxes shorter than half the finest anchor of these detectors are slivers cut by the border.
_SHORTEST_SIDE = 16.0
#: Absolute error of a sigmoid however small its value; ONNX Runtime's on CPU is off by 1.6e-7.
_SCORE_FLOOR = 1e-6


def match_proposals(
    reference: tuple[_Floats, _Floats],
    candidate: tuple[_Floats, _Floats],
    *,
    shift: float,
    logit: float,
) -> ProposalMatch:
    """Pair proposals of one image, nearest boxes first.

    Two may be partners when no coordinate differs by more than ``shift`` times the longer side of
    the reference's box (16 px at least), and their scores by no more than ``logit`` before the
    sigmoid: by ``logit * s * (1 - s)``, since most of a thousand proposals score below 0.001, and
    1e-6 for the sigmoid itself. Padding rows take no part. One without a partner is borderline
    when the other side has no padding and its worst score is no more than that below.

    Args:
        reference: boxes [P, 4] in pixels and scores [P]; padding rows are all zero.
        candidate: likewise.
        shift: largest accepted relative difference of coordinates.
        logit: largest accepted difference of objectness before the sigmoid.
    """
    valid, boxes, scores = _valid(*reference)
    other_valid, other_boxes, other_scores = _valid(*candidate)
    # One coordinate at a time: [1000, 1000, 4] need not exist.
    distance = np.zeros((len(valid), len(other_valid)))
    for ours, theirs in zip(boxes.T, other_boxes.T, strict=True):
        np.maximum(distance, np.abs(ours[:, None] - theirs), out=distance)
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=_SHORTEST_SIDE)
    relative = distance / longer[:, None]
    score_errors = np.abs(scores[:, None] - other_scores[None])
    eligible = np.nonzero(
        (relative <= shift) & (score_errors <= _score_tolerance(scores, logit)[:, None])
    )
    partner = np.full(len(valid), -1, np.intp)
    free = np.ones(len(other_valid), np.bool_)
    for index in np.argsort(relative[eligible], kind="stable"):
        row, column = eligible[0][index], eligible[1][index]
        if partner[row] < 0 and free[column]:
            partner[row], free[column] = column, False
    rows = np.flatnonzero(partner >= 0)
    columns = partner[rows]
    return ProposalMatch(
        rows=valid[rows],
        columns=other_valid[columns],
        counts=(len(valid), len(other_valid)),
        borderline=(
            _cut(scores[partner < 0], other_scores, logit, len(candidate[1]))
            + _cut(other_scores[free], scores, logit, len(reference[1]))
        ),
        max_box_error=float(distance[rows, columns].max(initial=0.0)),
        shifts=relative[rows, columns],
        max_score_error=float(score_errors[rows, columns].max(initial=0.0)),
    )


def _valid(
    boxes: _Floats, scores: _Floats
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rows that are no padding, their boxes and scores."""
    rows = np.flatnonzero(boxes.any(axis=1) | (scores != 0))
    return rows, boxes[rows].astype(np.float64), scores[rows].astype(np.float64)


def _score_tolerance(scores: npt.NDArray[np.float64], logit: float) -> npt.NDArray[np.float64]:
    return logit * scores * (1 - scores) + _SCORE_FLOOR


def _cut(unmatched: _Floats, others: npt.NDArray[np.float64], logit: float, rows: int) -> int:
    """Borderline ones among unmatched scores."""
    if not len(others):
        return 0
    return _borderline(unmatched, others, float(_score_tolerance(others.min(), logit)), None, rows)
