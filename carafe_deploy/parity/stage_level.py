"""Level two: the named intermediate tensors of two artefacts on the same images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import UnsupportedLevelError
from carafe_deploy.images import Image
from carafe_deploy.parity.array_error import ArrayError, array_error, histogram, largest
from carafe_deploy.parity.compatible import common_stages, describe
from carafe_deploy.parity.matching import (
    MatchResult,
    ProposalMatch,
    limits_of,
    match_detections,
    match_proposals,
)
from carafe_deploy.parity.report import ParityRow
from carafe_deploy.pipeline import Progress
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners.base import Array, Runner
from carafe_deploy.stages import DETECTIONS, Stage
from carafe_deploy.tolerances import Tolerance, coarsest, tolerance
from carafe_deploy.types import Detections, ModelInfo

__all__ = ["Batches", "StageError", "stage_errors", "stage_rows"]

_Tensors = Mapping[str, Array]
_Indices = npt.NDArray[np.intp]

#: Neither is compared element by element.
_CHOICES = ("proposals", "proposal_scores", DETECTIONS)


class Batches(TypedDict, total=False):
    """Images a run (1), and whether those of different padded sizes share one (no)."""

    batch_size: int
    mixed_sizes: bool


@dataclass(frozen=True, repr=False)
class StageError(OneLine):
    """What the comparison of one tensor came to over all images.

    Attributes:
        stage: the tensor.
        error: of its elements; ``within`` and ``total`` count elements, or rows that stand for
            something. Of proposals and detections: ``max_abs`` in pixels, all else about shifts of
            paired boxes over their longer side; ``within`` and ``total`` count boxes that found a
            partner and all distinct ones.
        limit: from the table of tolerances.
        passed: the verdict; None where there was nothing to compare.
        share: smallest accepted fraction of rows within the limit; None where all must be, or
            where that is what the limit says.
        note: what a reader should know besides.
        details: more numbers by name.
    """

    stage: Stage
    error: ArrayError
    limit: Tolerance
    passed: bool | None
    share: float | None = None
    note: str = ""
    details: Mapping[str, float | None] = field(default_factory=dict)


def stage_rows(errors: Iterable[StageError]) -> tuple[ParityRow, ...]:
    """One row for each stage but the detections, which are a level of their own."""
    return tuple(
        ParityRow(
            level="stages",
            name=result.stage.name,
            max_abs_error=result.error.max_abs if result.error.total else None,
            max_rel_error=result.error.max_rel if result.error.total else None,
            matched=result.error.within,
            total=result.error.total,
            tolerance=result.limit.value,
            measure=result.limit.measure,
            passed=result.passed,
            note=result.note,
            details=result.details,
        )
        for result in errors
        if result.stage.name != DETECTIONS
    )


def stage_errors(
    reference: Runner,
    candidate: Runner,
    images: Sequence[Image],
    *,
    batch_size: int = 1,
    mixed_sizes: bool = False,
    progress: Progress | None = None,
) -> tuple[StageError, ...]:
    """Compare all tensors that both artefacts name, in the order of computation.

    Up to the RPN's outputs tensors are compared element by element. Proposals are the first
    choice that depends on data: near-equal scores swap ranks and a suppression may flip. So they
    are paired (:func:`~carafe_deploy.parity.matching.match_proposals`; one result for
    ``proposals`` and ``proposal_scores``), and what follows is compared on paired rows; what the
    mask head computes, on paired detections. A few paired rows may still differ by more than
    rounding, where a box shifted across the border of a pyramid level or of a sampling grid: the
    verdict there is by the fraction of rows within the tolerance. Padding takes no part.

    Args:
        reference: accepts the same sizes as ``candidate``, see
            :func:`carafe_deploy.parity.compatible.bounded_alike`.
        candidate: what is checked.
        images: [H, W, 3] uint8 BGR each.
        batch_size: images a run.
        mixed_sizes: of different padded sizes too.
        progress: called with images done and their total.

    Raises:
        ArtefactError: a tensor differs in shape, or a stage has an unknown name.
        UnsupportedLevelError: the artefacts name no tensor that both have, or one is quantized.
    """
    for runner in (reference, candidate):
        if runner.info.quantization is not None:
            raise UnsupportedLevelError(
                f"{describe(runner)} rounds every layer's input to 8 bits, and no limit of a "
                "tensor's error says whether it detects well: compare detections and AP "
                "(--annotations); `carafe-deploy quantize --sensitivity` names the layers that hurt"
            )
    stages = common_stages(reference.info, candidate.info)
    smallest = reference.info.input.batch[0]
    size = max(batch_size, smallest)
    precision = coarsest(reference.info.precision, candidate.info.precision)
    comparison = _Comparison(reference.info, stages, precision)
    preprocessors = Preprocessor(reference.info), Preprocessor(candidate.info)
    done = 0
    for chunk in _batches(images, preprocessors[0], size, mixed_sizes):
        done += len(chunk)
        chunk += chunk[-1:] * (smallest - len(chunk))  # a fixed batch is filled up
        ours, theirs = preprocessors[0](chunk), preprocessors[1](chunk)
        comparison.add(
            ours.image_sizes,
            reference.run_stages(ours.inputs),
            candidate.run_stages(theirs.inputs),
        )
        if progress is not None:
            progress(done, len(images))
    return comparison.results()


def _batches(
    images: Sequence[Image], preprocess: Preprocessor, size: int, mixed_sizes: bool
) -> Iterator[list[Image]]:
    """All images, those of one padded size together unless sizes are to be mixed."""
    groups: dict[tuple[int, int] | None, list[Image]] = {}
    for image in images:
        key = None if mixed_sizes else preprocess.padded_size(image)
        groups.setdefault(key, []).append(image)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


class _Comparison:
    """Collects errors batch by batch."""

    def __init__(self, info: ModelInfo, stages: Sequence[Stage], precision: str) -> None:
        self._info = info
        self._stages = stages
        self._limits = {stage.name: tolerance("stages", stage.kind, precision) for stage in stages}
        self._shift = tolerance("stages", "proposal_boxes", precision).value
        self._logit = tolerance("stages", "proposal_logits", precision).value
        self._row_limit = tolerance("stages", "rows", precision)
        limits = limits_of(precision)
        self._score, self._iou = limits["score"], limits["iou"]
        self._errors: dict[str, list[ArrayError]] = defaultdict(list)
        self._score_errors: dict[str, list[float]] = defaultdict(list)
        self._borderline: dict[str, int] = defaultdict(int)

    def add(self, image_sizes: Array, ours: _Tensors, theirs: _Tensors) -> None:
        for stage in self._stages:
            if not stage.rows:
                self._compare(stage.name, ours[stage.name], theirs[stage.name])
        for image, size in enumerate(image_sizes):
            pairs = {DETECTIONS: self._pair_detections(image, size, ours, theirs)}
            if "proposals" in self._limits:
                pairs["proposals"] = self._pair_proposals(image, ours, theirs)
            for stage in self._stages:
                if stage.rows and stage.name not in _CHOICES:
                    rows, columns = pairs[stage.rows]
                    self._compare(
                        stage.name,
                        self._of_image(ours[stage.name], image, stage)[rows],
                        self._of_image(theirs[stage.name], image, stage)[columns],
                        rows=True,
                    )

    def _compare(self, name: str, ours: Array, theirs: Array, *, rows: bool = False) -> None:
        limit = self._limits[name].value
        self._errors[name].append(array_error(name, ours, theirs, limit, rows=rows))

    def _of_image(self, tensor: Array, image: int, stage: Stage) -> Array:
        """Rows of one image: proposals have an axis for it, detections follow each other."""
        if stage.rows == "proposals":
            return tensor[image]
        count = self._info.max_detections
        return tensor[image * count : (image + 1) * count]

    def _pair_proposals(
        self, image: int, ours: _Tensors, theirs: _Tensors
    ) -> tuple[_Indices, _Indices]:
        match = match_proposals(
            (ours["proposals"][image], ours["proposal_scores"][image]),
            (theirs["proposals"][image], theirs["proposal_scores"][image]),
            shift=self._shift,
            logit=self._logit,
        )
        self._add_choice("proposals", match, match.shifts)
        return match.rows, match.columns

    def _pair_detections(
        self, image: int, size: Array, ours: _Tensors, theirs: _Tensors
    ) -> tuple[_Indices, _Indices]:
        height, width = (int(edge) for edge in size)

        def found(tensors: _Tensors) -> Detections:
            count = int(tensors["num_dets"][image].item())
            return Detections(
                boxes=tensors["det_boxes"][image, :count],
                scores=tensors["det_scores"][image, :count],
                labels=tensors["det_classes"][image, :count].astype(np.int64),
                image_size=(height, width),
            )

        reference, candidate = found(ours), found(theirs)
        match = match_detections(
            reference,
            candidate,
            iou=self._iou,
            score=self._score,
            score_threshold=self._info.score_threshold,
            max_detections=self._info.max_detections,
        )
        rows, columns = np.array(match.pairs, np.intp).reshape(-1, 2).T
        boxes = reference.boxes[rows]
        shifts = np.abs(boxes - candidate.boxes[columns]).max(axis=1, initial=0.0)
        shifts = shifts / (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=1.0)
        self._add_choice(DETECTIONS, match, shifts)
        return rows, columns

    def _add_choice(
        self, name: str, match: MatchResult | ProposalMatch, shifts: npt.NDArray[np.floating]
    ) -> None:
        """Paired boxes by their shifts over their longer side."""
        self._errors[name].append(
            ArrayError(
                max_abs=match.max_box_error,
                max_rel=float(shifts.max(initial=0.0)),
                within=len(shifts),
                total=match.total,
                sum_abs=float(shifts.sum()),
                sum_reference=float(len(shifts)),
                histogram=histogram(shifts),
            )
        )
        self._score_errors[name].append(match.max_score_error)
        self._borderline[name] += match.borderline

    def results(self) -> tuple[StageError, ...]:
        return tuple(
            self._choice(stage) if stage.name in _CHOICES else self._tensor(stage)
            for stage in self._stages
            if stage.name != "proposal_scores"
        )

    def _tensor(self, stage: Stage) -> StageError:
        error, limit = largest(self._errors[stage.name]), self._limits[stage.name]
        if not stage.rows:
            passed = limit.accepts(error.max_rel) if error.total else None
            return StageError(stage, error, limit, passed)
        share = self._row_limit
        note = (
            f"rows of paired {stage.rows}, {share.value:.1%} must be within the tolerance"
            if error.total
            else f"there are no paired {stage.rows}"
        )
        passed = share.accepts(error.fraction) if error.total else None
        return StageError(stage, error, limit, passed, share.value, note)

    def _choice(self, stage: Stage) -> StageError:
        error, limit = largest(self._errors[stage.name]), self._limits[stage.name]
        note = (
            f"paired where boxes shift by at most {self._shift:g} of their side and objectness "
            f"differs by at most {self._logit:g} before the sigmoid"
            if stage.name == "proposals"
            else f"paired where classes are equal, IoU >= {self._iou:g} and scores differ by at "
            f"most {self._score:g}"
        )
        if not error.total:
            note = "neither artefact has any in these images"
        details = {
            "max_score_error": max(self._score_errors[stage.name], default=0.0),
            "borderline": self._borderline[stage.name],
        }
        passed = limit.accepts(error.fraction) if error.total else None
        return StageError(stage, error, limit, passed, note=note, details=details)
