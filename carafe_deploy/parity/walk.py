"""A walk through the intermediate tensors of two artefacts: where does the difference come from?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError, ImageError
from carafe_deploy.images import Image
from carafe_deploy.parity.array_error import HISTOGRAM_EDGES
from carafe_deploy.parity.compatible import bounded_alike, check_same_model, describe
from carafe_deploy.parity.report import named_images
from carafe_deploy.parity.stage_level import Batches, StageError, stage_errors
from carafe_deploy.parity.strict_json import Error, to_json, without_derived
from carafe_deploy.pipeline import Progress
from carafe_deploy.runners.base import Runner
from carafe_deploy.schema import SchemaError, parse, structure
from carafe_deploy.stages import Stage
from carafe_deploy.tolerances import ROUNDING, coarsest
from carafe_deploy.verdict import state_of

__all__ = ["GROWTH", "StageWalk", "WalkStep", "walk_stages"]

#: From one tensor to the next the mean error of artefacts that are right grew by up to 5.5 times
#: (RoI features of ResNet-50 with seeded weights). More than this and something else was added.
GROWTH = 10.0

#: More tensors than this are counted, not listed.
_MANY = 5


@dataclass(frozen=True, repr=False, kw_only=True)
class WalkStep(Stage):
    """One tensor of the walk: ``detections`` for the outputs, ``proposals`` with their scores.

    Attributes:
        max_abs_error: largest difference; of proposals and detections in pixels.
        max_rel_error: largest difference over the reference's largest magnitude; of proposals and
            detections the shift of a paired box over its longer side.
        mean_rel_error: mean difference over mean magnitude; of boxes the mean shift.
        growth: ``mean_rel_error`` over the largest one of the sources, or over what rounding to
            the pair's precision makes if that is larger.
        matched: elements or rows within the tolerance; boxes that found a partner.
        total: how many there are.
        tolerance: the limit.
        measure: what it applies to, see :class:`carafe_deploy.tolerances.Tolerance`.
        share: as of :class:`carafe_deploy.parity.stage_level.StageError`.
        passed: the verdict; None where there was nothing to compare.
        histogram: elements of compared rows by relative error, paired boxes by shift, see
            :data:`carafe_deploy.parity.array_error.HISTOGRAM_EDGES`.
        note: what a reader should know besides.
    """

    max_abs_error: Error
    max_rel_error: Error
    mean_rel_error: Error
    growth: Error
    matched: int
    total: int
    tolerance: float
    measure: str
    share: float | None
    passed: bool | None
    histogram: tuple[int, ...]
    note: str = ""

    @property
    def state(self) -> str:
        """``"passed"``, ``"failed"`` or ``"nothing compared"``."""
        return state_of(self.passed)

    @property
    def fraction(self) -> float:
        """Of elements, rows or boxes, how many agree; 1 where there are none."""
        return self.matched / self.total if self.total else 1.0

    @property
    def used(self) -> float:
        """How much of its tolerance the error uses up; beyond 1 it is outside."""
        if self.share is None and self.measure == "relative":
            return self.max_rel_error / self.tolerance
        required = self.tolerance if self.share is None else self.share
        missing, allowed = 1 - self.fraction, 1 - required
        return missing / allowed if allowed else (math.inf if missing else 0.0)

    @property
    def outcome(self) -> str:
        """Error and tolerance in words."""
        if self.passed is None:
            return "nothing compared"
        sign = "<=" if self.passed else ">"
        if self.measure != "relative":
            return (
                f"{self.matched} of {self.total} {self.rows} paired, "
                f"{100 * self.tolerance:g}% must be"
            )
        if self.share is not None:
            return (
                f"{self.matched} of {self.total} {self.rows} have a relative error <= "
                f"{self.tolerance:g}, {100 * self.share:g}% must; the largest is "
                f"{self.max_rel_error:.1e}"
            )
        return f"relative error {self.max_rel_error:.1e} {sign} {self.tolerance:g}"


@dataclass(frozen=True, repr=False)
class StageWalk(OneLine):
    """All compared tensors in the order of computation.

    Attributes:
        steps: the tensors.
        reference: backend, precision and model, for people.
        candidate: likewise.
        precision: the coarser one of the two, which chose the tolerances.
        images: how many went through; their names, where they have any, in ``image_names``.
        left_out: tensors that only one artefact names, being exported by another version.
        edges: between the bins of every histogram.
    """

    steps: tuple[WalkStep, ...]
    reference: str
    candidate: str
    precision: str
    images: int
    left_out: tuple[str, ...] = ()
    edges: tuple[float, ...] = HISTOGRAM_EDGES
    image_names: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Every tensor was compared and is within its tolerance."""
        return all(step.passed for step in self.steps)

    @property
    def state(self) -> str:
        """As :attr:`carafe_deploy.parity.ParityReport.state`."""
        if self.first_outside is not None:
            return state_of(False)
        return state_of(True if self.passed else None)

    @property
    def uncompared(self) -> tuple[WalkStep, ...]:
        """The tensors that had nothing to compare."""
        return tuple(step for step in self.steps if step.passed is None)

    @property
    def first_outside(self) -> WalkStep | None:
        """The first tensor outside its tolerance."""
        return next((step for step in self.steps if step.passed is False), None)

    @property
    def first_growth(self) -> WalkStep | None:
        """The first tensor whose mean error is more than :data:`GROWTH` times its sources'."""
        return next((step for step in self.steps if step.growth > GROWTH), None)

    def verdict(self) -> str:
        """The first tensor outside its tolerance and what lies before it, in one line."""
        step = self.first_outside
        if step is None:
            compared = [other for other in self.steps if other.passed is not None]
            nearest = max(compared, key=lambda step: step.used)
            count = len(self.steps)
            text = f"all {count} tensors are within tolerance"
            if len(compared) < count:
                text = (
                    f"nothing to compare in {count - len(compared)} of {count} tensors, "
                    f"{self.uncompared[0].name} first ({self.uncompared[0].note}): choose other "
                    "images; the others are within tolerance"
                )
            text += f"; nearest to it is {nearest.name}: {nearest.outcome}"
        else:
            text = (
                f"{step.name} is the first of {len(self.steps)} tensors outside tolerance: "
                f"{step.outcome}; before it {self._before(step)}; {_between(step)}"
            )
        growth = self.first_growth
        if growth is None or (
            step is not None and self.steps.index(growth) >= self.steps.index(step)
        ):
            return text
        return f"{text}; but {self.growth_verdict()}"

    def growth_verdict(self) -> str:
        """Where the difference first grows by more than rounding explains, in one line."""
        step = self.first_growth
        if step is None:
            steepest = max(self.steps, key=lambda step: step.growth)
            return (
                f"the difference grows nowhere by more than {steepest.growth:.1f} times "
                f"({steepest.name}), which rounding does"
            )
        return (
            f"the difference first grows at {step.name}: on average {step.mean_rel_error:.1e}, "
            f"{step.growth:,.0f} times what its sources or rounding to {self.precision} explain; "
            f"{_between(step)}"
        )

    def _before(self, step: WalkStep) -> str:
        """The sources and their errors; of many the worst."""
        steps = {other.name: other for other in self.steps}
        found = [steps[source] for source in step.sources if source in steps]
        if not found:
            return "are the images alone"
        if len(found) > _MANY:
            worst = max(found, key=lambda other: other.used)
            return (
                f"are {len(found)} tensors, the worst {worst.name} with {worst.max_rel_error:.1e}"
            )
        errors = [f"{other.name} with {other.max_rel_error:.1e}" for other in found]
        return f"{'is' if len(found) == 1 else 'are'} {_listed(errors)}"

    def to_json(self) -> str:
        """Strict JSON; an infinite error becomes the string ``"inf"``."""
        outside, growth = self.first_outside, self.first_growth
        return to_json(
            self,
            "steps",
            first_outside=None if outside is None else outside.name,
            first_growth=None if growth is None else growth.name,
            verdict=self.verdict(),
        )

    @classmethod
    def from_json(cls, text: str) -> StageWalk:
        """Inverse of :meth:`to_json`.

        Raises:
            ArtefactError: the text is no walk.
        """
        derived = ("passed", "first_outside", "first_growth", "verdict")
        try:
            return structure(cls, without_derived(parse(text), "steps", derived))
        except SchemaError as error:
            raise ArtefactError(
                f"this is no walk ({error}): write one with `carafe-deploy parity --stages --json`"
            ) from error


def _between(step: WalkStep) -> str:
    """What lies between a tensor and its sources."""
    parts = _listed([*step.parameters, *(f"the operator {name}" for name in step.operators)])
    if len(step.sources) > _MANY:
        return f"between them and {step.name}: {parts}"
    return f"between {_listed([*step.sources, step.name])}: {parts}"


def _listed(texts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def walk_stages(
    reference: Runner,
    candidate: Runner,
    images: Sequence[Image] | Mapping[str, Image],
    *,
    progress: Progress | None = None,
    **batches: Unpack[Batches],
) -> StageWalk:
    """Compare all intermediate tensors that both artefacts name, and the detections.

    See :func:`carafe_deploy.parity.stage_level.stage_errors` for how. Where one artefact accepts
    fewer sizes than the other, both are run at sizes that both accept.

    Args:
        reference: what is right; both stay open.
        candidate: what is checked.
        images: [H, W, 3] uint8 BGR each, also by name.
        progress: called with images done and their total.
        batches: see :class:`carafe_deploy.parity.stage_level.Batches`.

    Raises:
        ArtefactError: the artefacts are of different models or settings, or accept no common size.
        ImageError: there are no images.
        UnsupportedLevelError: an artefact cannot be asked for its intermediate tensors.
    """
    if not images:
        raise ImageError("a walk through the stages needs images: give at least one")
    check_same_model(reference.info, candidate.info)
    pair = bounded_alike(reference, candidate)
    image_names, pictures = named_images(images)
    precision = coarsest(reference.info.precision, candidate.info.precision)
    means: dict[str, float] = {}
    steps = []
    for result in stage_errors(*pair, pictures, progress=progress, **batches):
        means[result.stage.name] = result.error.mean_rel
        before = max((means.get(source, 0.0) for source in result.stage.sources), default=0.0)
        steps.append(_step(result, max(before, ROUNDING[precision])))
    names = [set(runner.info.stages) for runner in (reference, candidate)]
    return StageWalk(
        steps=tuple(steps),
        reference=describe(reference),
        candidate=describe(candidate),
        precision=precision,
        images=len(images),
        left_out=tuple(sorted(names[0] ^ names[1])),
        image_names=image_names,
    )


def _step(result: StageError, explained: float) -> WalkStep:
    error, limit = result.error, result.limit
    return WalkStep(
        **vars(result.stage),
        max_abs_error=error.max_abs,
        max_rel_error=error.max_rel,
        mean_rel_error=error.mean_rel,
        growth=error.mean_rel / explained if math.isfinite(explained) else 1.0,
        matched=error.within,
        total=error.total,
        tolerance=limit.value,
        measure=limit.measure,
        share=result.share,
        passed=result.passed,
        histogram=error.histogram,
        note=result.note,
    )
