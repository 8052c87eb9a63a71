"""Level two: the named intermediate tensors of two artefacts on the same images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import ArtefactError
from carafe_deploy.images import Image
from carafe_deploy.parity.arrays import ArrayError, array_error, largest
from carafe_deploy.parity.matching import ProposalMatch, match_detections, match_proposals
from carafe_deploy.parity.report import ParityRow
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners.base import Array, Runner
from carafe_deploy.tolerances import coarsest, tolerance
from carafe_deploy.types import Detections, ModelInfo

__all__ = ["compare_stages", "stage_kind"]

_KINDS = (
    (r"C\d", "backbone"),
    (r"carafe\d|P\d", "pyramid"),
    (r"rpn_(cls|reg)\d", "rpn"),
    (r"proposals|proposal_scores", "proposals"),
    (r"cls_score|bbox_pred", "box_head"),
    (r"mask_logits", "mask_head"),
)

#: Stages compared by rows, and what their rows stand for.
_PAIRED = {"box_head": "proposals", "mask_head": "detections"}

_Tensors = Mapping[str, Array]


def stage_kind(name: str) -> str:
    """Which row of the tolerance table a stage belongs to.

    Raises:
        ArtefactError: no stage has this name.
    """
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, name):
            return kind
    raise ArtefactError(
        f"stage {name!r} is unknown: the artefact was made by another version, export it again"
    )


def compare_stages(
    reference: Runner,
    candidate: Runner,
    images: Sequence[Image],
    *,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ParityRow, ...]:
    """One row for each stage, worst over all images.

    Up to the RPN's outputs tensors are compared element by element. Proposals are the first
    choice that depends on data: near-equal scores swap ranks and a suppression may flip, so
    proposals are paired by box and objectness
    (:func:`~carafe_deploy.parity.matching.match_proposals`; one row for ``proposals`` and
    ``proposal_scores``) and the box head's outputs are compared on paired rows. The mask head's
    are compared on paired detections. A few paired rows may still differ by more than rounding,
    where a box shifted across the border of a pyramid level or of a sampling grid; so the verdict
    on those tensors is by the fraction of rows within the tolerance. Padding takes no part.

    Args:
        reference: accepts the same sizes as ``candidate``, see
            :func:`carafe_deploy.parity.compatible.bounded_alike`.
        candidate: likewise.
        images: [H, W, 3] uint8 BGR each.
        batch_size: images a run.
        progress: called with images done and their total.

    Raises:
        ArtefactError: a tensor differs in shape, or a stage has an unknown name.
    """
    smallest = reference.info.input.batch[0]
    size = max(batch_size, smallest)
    precision = coarsest(reference.info.precision, candidate.info.precision)
    comparison = _Comparison(reference.info, precision)
    preprocessors = Preprocessor(reference.info), Preprocessor(candidate.info)
    for start in range(0, len(images), size):
        chunk = list(images[start : start + size])
        chunk += chunk[-1:] * (smallest - len(chunk))  # a fixed batch is filled up
        batches = preprocessors[0](chunk), preprocessors[1](chunk)
        comparison.add(
            batches[0].image_sizes,
            reference.run_stages(batches[0].inputs),
            candidate.run_stages(batches[1].inputs),
        )
        if progress is not None:
            progress(min(start + size, len(images)), len(images))
    return comparison.rows()


class _Comparison:
    """Collects errors batch by batch."""

    def __init__(self, info: ModelInfo, precision: str) -> None:
        self._info = info
        self._limits = {
            name: tolerance("stages", stage_kind(name), precision) for name in info.stages
        }
        self._shift = tolerance("stages", "proposal_boxes", precision).value
        self._logit = tolerance("stages", "proposal_logits", precision).value
        self._row_limit = tolerance("stages", "rows", precision)
        self._score = tolerance("detections", "score", precision).value
        self._iou = tolerance("detections", "iou", precision).value
        self._errors: dict[str, list[ArrayError]] = defaultdict(list)
        self._proposals: list[ProposalMatch] = []

    def add(self, image_sizes: Array, ours: _Tensors, theirs: _Tensors) -> None:
        for name in self._info.stages:
            if stage_kind(name) in ("backbone", "pyramid", "rpn"):
                self._compare(name, ours[name], theirs[name])
        for image, size in enumerate(image_sizes):
            proposals = match_proposals(
                (ours["proposals"][image], ours["proposal_scores"][image]),
                (theirs["proposals"][image], theirs["proposal_scores"][image]),
                shift=self._shift,
                logit=self._logit,
            )
            self._proposals.append(proposals)
            for name in ("cls_score", "bbox_pred"):
                self._compare(
                    name,
                    ours[name][image][proposals.rows],
                    theirs[name][image][proposals.columns],
                    rows=True,
                )
            if self._info.has_masks:
                rows, columns = self._paired_detections(image, size, ours, theirs)
                first = image * self._info.max_detections  # mask_logits is [B*D, 28, 28]
                self._compare(
                    "mask_logits",
                    ours["mask_logits"][first + rows],
                    theirs["mask_logits"][first + columns],
                    rows=True,
                )

    def _compare(self, name: str, ours: Array, theirs: Array, *, rows: bool = False) -> None:
        limit = self._limits[name].value
        self._errors[name].append(array_error(name, ours, theirs, limit, rows=rows))

    def _paired_detections(
        self, image: int, size: Array, ours: _Tensors, theirs: _Tensors
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        height, width = (int(edge) for edge in size)
        sides = []
        for tensors in (ours, theirs):
            count = int(tensors["num_dets"][image].item())
            sides.append(
                Detections(
                    boxes=tensors["det_boxes"][image, :count],
                    scores=tensors["det_scores"][image, :count],
                    labels=tensors["det_classes"][image, :count].astype(np.int64),
                    image_size=(height, width),
                )
            )
        match = match_detections(sides[0], sides[1], iou=self._iou, score=self._score)
        rows, columns = np.array(match.pairs, np.intp).reshape(-1, 2).T
        return rows, columns

    def rows(self) -> tuple[ParityRow, ...]:
        return tuple(
            self._proposal_row() if name == "proposals" else self._tensor_row(name)
            for name in self._info.stages
            if name != "proposal_scores"
        )

    def _tensor_row(self, name: str) -> ParityRow:
        error, limit = largest(self._errors[name]), self._limits[name]
        passed, note = limit.accepts(error.max_rel), ""
        paired = _PAIRED.get(stage_kind(name))
        if paired is not None:
            passed = self._row_limit.accepts(error.fraction)
            note = (
                f"rows of paired {paired}, {self._row_limit.value:.1%} must be within the tolerance"
                if error.total
                else f"there are no paired {paired}"
            )
        return ParityRow(
            level="stages",
            name=name,
            max_abs_error=error.max_abs,
            max_rel_error=error.max_rel,
            matched=error.within,
            total=error.total,
            tolerance=limit.value,
            measure=limit.measure,
            passed=passed,
            note=note,
        )

    def _proposal_row(self) -> ParityRow:
        limit, found = self._limits["proposals"], self._proposals
        matched, total = sum(len(match.rows) for match in found), sum(m.total for m in found)
        return ParityRow(
            level="stages",
            name="proposals",
            max_abs_error=max(match.max_box_error for match in found),
            max_rel_error=max(match.max_rel_box_error for match in found),
            matched=matched,
            total=total,
            tolerance=limit.value,
            measure=limit.measure,
            passed=limit.accepts(matched / total if total else 1.0),
            note=(
                f"paired where boxes shift by at most {self._shift:g} of their side and objectness "
                f"differs by at most {self._logit:g} before the sigmoid"
            ),
            details={
                "max_score_error": max(match.max_score_error for match in found),
                "borderline": sum(match.borderline for match in found),
            },
        )
