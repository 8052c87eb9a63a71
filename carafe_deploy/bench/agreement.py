"""Do two subjects detect the same? The detections of both on the same images, paired."""

from __future__ import annotations

from collections.abc import Sequence

from carafe_deploy.bench.record import Agreement, SampleDetections
from carafe_deploy.parity.matching import combined, match_within_tolerance
from carafe_deploy.tolerances import coarsest, tolerance
from carafe_deploy.types import Detections, ModelInfo

__all__ = ["agreement", "as_record"]


def agreement(
    infos: tuple[ModelInfo, ModelInfo],
    reference: Sequence[Detections],
    candidate: Sequence[Detections],
) -> Agreement:
    """Pair what two artefacts found, image by image, within the coarser one's tolerances."""
    match = combined(
        match_within_tolerance(infos, ours, theirs)
        for ours, theirs in zip(reference, candidate, strict=True)
    )
    limit = tolerance("detections", "matched", coarsest(*(info.precision for info in infos)))
    return Agreement(
        matched=match.matched,
        total=match.total,
        max_score_error=match.max_score_error,
        min_iou=match.min_iou,
        min_mask_iou=match.min_mask_iou,
        passed=limit.accepts(match.fraction) if match.total else None,
    )


def as_record(found: Detections) -> SampleDetections:
    """Detections of one image in plain values."""
    return SampleDetections(
        boxes=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in found.boxes),
        scores=tuple(map(float, found.scores)),
        labels=tuple(map(int, found.labels)),
        masks=tuple(mask["counts"].decode("ascii") for mask in found.masks or ()),
    )
