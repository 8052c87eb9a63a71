"""Run the levels of a comparison one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

from carafe_deploy.errors import (
    AnnotationError,
    CarafeDeployError,
    EngineError,
    ImageError,
    UnsupportedLevelError,
)
from carafe_deploy.evaluate import evaluate_runner
from carafe_deploy.failures import Failure, failure_of
from carafe_deploy.images import Image
from carafe_deploy.parity.compatible import bounded_alike, check_same_model, describe
from carafe_deploy.parity.matching import combined, limits_of, match_within_tolerance
from carafe_deploy.parity.operator_level import compare_operators
from carafe_deploy.parity.report import ParityReport, ParityRow, named_images
from carafe_deploy.parity.stage_level import Batches, stage_errors, stage_rows
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.pipeline import Progress as Steps
from carafe_deploy.runners.base import Runner
from carafe_deploy.tolerances import coarsest, tolerance

__all__ = ["LEVELS", "Progress", "compare_ap", "compare_detections", "run_parity"]

#: From the smallest part to the whole.
LEVELS = ("operators", "stages", "detections", "ap")

#: Called with the level, the number of its steps done and their total.
Progress = Callable[[str, int, int], None]


def run_parity(
    reference: Runner,
    candidate: Runner,
    *,
    images: Sequence[Image] | Mapping[str, Image] = (),
    levels: Sequence[str] | None = None,
    batch_size: int = 1,
    mixed_sizes: bool = False,
    annotations: str | os.PathLike[str] | None = None,
    image_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare two artefacts of one model.

    Limits come from :mod:`carafe_deploy.tolerances`, for the coarser precision of the two. Where
    one artefact accepts fewer sizes than the other, both are run at sizes that both accept. What
    an artefact raises when it runs ends its level only; the report has it in ``failed``.

    Args:
        reference: what is right; stays open.
        candidate: what is checked; stays open.
        images: [H, W, 3] uint8 BGR each, for ``stages`` and ``detections``; also by name.
        levels: some of :data:`LEVELS`. None for every level whose data is given: ``operators``,
            with images ``stages`` and ``detections``, with annotations ``ap``; one that an artefact
            cannot be looked into for is left out then, and the report says why.
        batch_size: images a run.
        mixed_sizes: of different padded sizes too, which changes what both find; see
            :class:`carafe_deploy.pipeline.Pipeline`.
        annotations: COCO file for the level ``ap``.
        image_dir: to which its file names are relative; None for the file's own folder.
        limit: use the first images of the annotations only.
        seed: of the operators' random inputs.
        progress: told of every step.

    Raises:
        ArtefactError: the artefacts are of different models or settings, or accept no common size.
        CarafeDeployError: ``levels`` holds an unknown level or none.
        ImageError: a level needs images and there are none.
        UnsupportedLevelError: an artefact has no separate operators or intermediate tensors for
            a level asked for, or no level is left.
        AnnotationError: ``ap`` needs annotations and there are none, or see
            :func:`carafe_deploy.evaluate.evaluate_runner`.
    """
    image_names, pictures = named_images(images)
    chosen = _levels(levels, pictures, annotations)
    check_same_model(reference.info, candidate.info)
    pair = bounded_alike(reference, candidate)
    batches = Batches(batch_size=batch_size, mixed_sizes=mixed_sizes)

    def compare(level: str) -> Sequence[ParityRow]:
        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(level, done, total)

        if level == "operators":
            return compare_operators(*pair, seed=seed, progress=told)
        if level == "stages":
            return stage_rows(stage_errors(*pair, pictures, progress=told, **batches))
        if level == "detections":
            return [compare_detections(*pair, pictures, progress=told, **batches)]
        assert annotations is not None
        folder = Path(annotations).parent if image_dir is None else image_dir
        return compare_ap(*pair, annotations, folder, limit=limit, progress=told, **batches)

    rows: list[ParityRow] = []
    skipped: dict[str, str] = {}
    failed: dict[str, Failure] = {}
    for level in chosen:
        try:
            rows += compare(level)
        except UnsupportedLevelError as error:
            if levels is not None:
                raise
            skipped[level] = str(error)
        except Exception as error:
            if isinstance(error, CarafeDeployError) and not isinstance(error, EngineError):
                raise
            failed[level] = failure_of(error)
    if skipped and not rows and not failed:
        raise UnsupportedLevelError(
            f"nothing can be compared without images or annotations: {'; '.join(skipped.values())}"
        )
    return ParityReport(
        rows=tuple(rows),
        reference=describe(reference),
        candidate=describe(candidate),
        images=len(pictures),
        image_names=image_names,
        seed=seed,
        skipped=skipped,
        failed=failed,
    )


def _levels(
    levels: Sequence[str] | None,
    images: Sequence[Image],
    annotations: str | os.PathLike[str] | None,
) -> tuple[str, ...]:
    given = {"operators": True, "stages": bool(images), "detections": bool(images)}
    given["ap"] = annotations is not None
    if levels is None:
        return tuple(level for level in LEVELS if given[level])
    if not levels:
        raise CarafeDeployError(f"no level of parity is chosen: give some of {', '.join(LEVELS)}")
    for level in levels:
        if level not in LEVELS:
            raise CarafeDeployError(
                f"there is no level {level!r} of parity: choose from {', '.join(LEVELS)}"
            )
        if given[level]:
            continue
        if level == "ap":
            raise AnnotationError("parity of AP needs annotations: give a COCO annotation file")
        raise ImageError(f"parity of {level} needs images: give at least one")
    return tuple(level for level in LEVELS if level in levels)


def compare_detections(
    reference: Runner,
    candidate: Runner,
    images: Sequence[Image],
    *,
    progress: Steps | None = None,
    **batches: Unpack[Batches],
) -> ParityRow:
    """Detect with both artefacts, which accept the same sizes, and pair what they find.

    See :func:`carafe_deploy.parity.matching.match_within_tolerance`.
    """
    info = reference.info
    precision = coarsest(info.precision, candidate.info.precision)
    limits, limit = limits_of(precision), tolerance("detections", "matched", precision)
    found = (Pipeline(runner, **batches).each(images) for runner in (reference, candidate))
    results = []
    for pair in zip(*found, strict=True):
        results.append(match_within_tolerance((info, candidate.info), *pair))
        if progress is not None:
            progress(len(results), len(images))
    match = combined(results)
    masks = f", mask IoU >= {limits['mask_iou']:g}" if info.has_masks else ""
    return ParityRow(
        level="detections",
        name="boxes and masks" if info.has_masks else "boxes",
        max_abs_error=match.max_box_error if match.matched else None,
        max_rel_error=None,
        matched=match.matched,
        total=match.total,
        tolerance=limit.value,
        measure=limit.measure,
        passed=limit.accepts(match.fraction) if match.total else None,
        note=(
            f"same class, IoU >= {limits['iou']:g}, score within {limits['score']:g}{masks}; "
            f"{match.only_in_reference} only in the reference, {match.only_in_candidate} only in "
            f"the candidate, {match.borderline} at a threshold"
            if match.total
            else "neither artefact finds anything that counts in these images: choose others, "
            f"which show {_some(info.classes)}, or export with a lower --score-threshold"
        ),
        details={name: getattr(match, name) for name in _DETAILS},
    )


_DETAILS = (
    *("only_in_reference", "only_in_candidate", "borderline"),
    *("max_score_error", "min_iou", "min_mask_iou"),
)


def compare_ap(
    reference: Runner,
    candidate: Runner,
    annotations: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    limit: int | None = None,
    progress: Steps | None = None,
    **batches: Unpack[Batches],
) -> tuple[ParityRow, ...]:
    """Difference of average precision, of boxes and, for Mask R-CNN, of masks.

    Args:
        reference: accepts the same sizes as ``candidate``.
        candidate: likewise.
        annotations: COCO file.
        image_dir: to which its file names are relative.
        limit: use the first images only.
        progress: called with images done and their total, both artefacts together.
        batches: see :class:`carafe_deploy.parity.stage_level.Batches`.

    Raises:
        AnnotationError: there is no annotated object to average over, or see
            :func:`carafe_deploy.evaluate.evaluate_runner`.
    """
    results = []
    for turn, runner in enumerate((reference, candidate)):

        def step(done: int, total: int, turn: int = turn) -> None:
            if progress is not None:
                progress(turn * total + done, 2 * total)

        result, _ = evaluate_runner(
            runner, annotations, image_dir, limit=limit, progress=step, **batches
        )
        results.append(result)
    allowed = tolerance("ap", "ap", coarsest(reference.info.precision, candidate.info.precision))
    found = any(result.detections for result in results)
    rows = []
    for kind, name in (("bbox", "box AP"), ("segm", "mask AP")):
        if kind not in results[0].numbers:
            continue
        ours, theirs = (result.numbers[kind]["AP"] for result in results)
        if ours is None or theirs is None:
            raise AnnotationError(
                f"{annotations} annotates no object in these images: choose others to compare AP"
            )
        # Two zeros say that neither finds any object, whatever else they find.
        compared = found and bool(ours or theirs)
        blind = ", in which neither artefact finds anything that is annotated"
        rows.append(
            ParityRow(
                level="ap",
                name=name,
                max_abs_error=abs(ours - theirs),
                max_rel_error=None,
                matched=None,
                total=None,
                tolerance=allowed.value,
                measure=allowed.measure,
                passed=allowed.accepts(abs(ours - theirs)) if compared else None,
                note=f"{ours:.4f} and {theirs:.4f} on {results[0].images} images"
                + ("" if compared else blind),
                details={"reference": ours, "candidate": theirs},
            )
        )
    return tuple(rows)


def _some(classes: Sequence[str]) -> str:
    """A few class names."""
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
