"""Level one: every custom operator as each artefact implements it, on the same random inputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from carafe_deploy.errors import ArtefactError
from carafe_deploy.operators import OPERATORS, is_feature_map
from carafe_deploy.operators.specification import Operator
from carafe_deploy.parity.array_error import array_error, largest, rounded
from carafe_deploy.parity.compatible import common_calls
from carafe_deploy.parity.report import ParityRow
from carafe_deploy.runners.base import Array, Runner
from carafe_deploy.tolerances import coarsest, tolerance
from carafe_deploy.types import OperatorCall

__all__ = ["compare_operators", "random_inputs"]


def compare_operators(
    reference: Runner,
    candidate: Runner,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ParityRow, ...]:
    """One row for each distinct operator call of the two artefacts, and one for each further
    implementation of the candidate.

    Inputs have the recorded shapes (the smaller recording where the two differ) and values that
    the coarser precision represents exactly, so that only the operators' own errors show. They are
    never quantized.

    Args:
        reference: checked against ``candidate`` by
            :func:`carafe_deploy.parity.compatible.check_same_model`.
        candidate: likewise.
        seed: of the inputs.
        progress: called with calls done and their total.
    """
    precision = coarsest(reference.info.float_precision, candidate.info.float_precision)
    pairs = zip(*common_calls(reference.info, candidate.info), strict=True)
    distinct = {_key(_smaller(*pair)): pair for pair in pairs}
    rows = []
    for index, pair in enumerate(distinct.values()):
        call = _smaller(*pair)
        inputs = random_inputs(call, np.random.default_rng((seed, index)), precision)
        ours = reference.run_operator(pair[0], inputs)
        compare = _COMPARISONS[OPERATORS[call.name].compared]
        theirs = candidate.run_operator(pair[1], inputs)
        rows.append(compare(OPERATORS[call.name], call, precision, inputs, ours, theirs))
        for other in candidate.implementations[1:]:
            theirs = candidate.run_operator(pair[1], inputs, other)
            row = compare(OPERATORS[call.name], call, precision, inputs, ours, theirs)
            rows.append(dataclasses.replace(row, name=f"{row.name}, {other}"))
        if progress is not None:
            progress(index + 1, len(distinct))
    return tuple(rows)


def _smaller(call: OperatorCall, other: OperatorCall) -> OperatorCall:
    def elements(call: OperatorCall) -> int:
        return sum(int(np.prod(shape)) for shape in call.shapes)

    return min(call, other, key=elements)


def _key(call: OperatorCall) -> str:
    return json.dumps([call.name, call.shapes, dict(call.attributes)], sort_keys=True)


def _compare_elements(
    operator: Operator,
    call: OperatorCall,
    precision: str,
    inputs: Sequence[Array],
    reference: tuple[Array, ...],
    candidate: tuple[Array, ...],
) -> ParityRow:
    limit = tolerance("operators", operator.tolerance, precision)
    error = largest(
        array_error(operator.label_of(call), ours, theirs, limit.value)
        for ours, theirs in zip(reference, candidate, strict=True)
    )
    return ParityRow(
        level="operators",
        name=operator.label_of(call),
        max_abs_error=error.max_abs,
        max_rel_error=error.max_rel,
        matched=error.within,
        total=error.total,
        tolerance=limit.value,
        measure=limit.measure,
        passed=limit.accepts(error.max_rel) if error.total else None,
    )


def _compare_kept(
    operator: Operator,
    call: OperatorCall,
    precision: str,
    inputs: Sequence[Array],
    reference: tuple[Array, ...],
    candidate: tuple[Array, ...],
) -> ParityRow:
    """Equal boxes kept in equal order, but for the order among equal scores."""
    scores = inputs[1].reshape(len(inputs[1]), -1)
    matched = total = 0
    for image, image_scores in enumerate(scores):
        ours, theirs = (
            _kept(side[1][image].tolist(), int(side[0][image].item()), image_scores)
            for side in (reference, candidate)
        )
        total += max(ours.claimed, theirs.claimed)
        matched += _common(ours, theirs, int(call.attributes["max_output"]))
    limit = tolerance("operators", operator.tolerance, precision)
    return ParityRow(
        level="operators",
        name=operator.label_of(call),
        max_abs_error=None,
        max_rel_error=None,
        matched=matched,
        total=total,
        tolerance=limit.value,
        measure=limit.measure,
        passed=limit.accepts(matched / total) if total else None,
        note="boxes kept; equal scores in any order",
    )


class _Kept(NamedTuple):
    """Score by index of the boxes kept, and the number of rows that claim to be one."""

    scores: dict[int, float]
    claimed: int


def _kept(indices: Sequence[int], count: int, scores: Array) -> _Kept:
    """Rows that are no index, name a box twice, rank above a better one or follow the last box
    without being padding are claimed and not kept."""
    kept: dict[int, float] = {}
    worst = np.inf
    for index in indices[:count]:
        score = float(scores[index]) if 0 <= index < len(scores) else np.nan
        if score <= worst and index not in kept:
            kept[index] = worst = score
    trailing = sum(index != -1 for index in indices[count:])
    return _Kept(kept, count + trailing)


def _common(ours: _Kept, theirs: _Kept, max_output: int) -> int:
    """Boxes kept by both; where the last rank cuts through equal scores, any of them will do."""
    common = ours.scores.keys() & theirs.scores.keys()
    if not len(ours.scores) == len(theirs.scores) == max_output:
        return len(common)
    lasts = [min(side.scores.values()) for side in (ours, theirs)]
    if lasts[0] != lasts[1]:
        return len(common)
    tied = [
        sum(score == lasts[0] for index, score in side.scores.items() if index not in common)
        for side in (ours, theirs)
    ]
    return len(common) + min(tied)


_COMPARISONS = {"elements": _compare_elements, "kept": _compare_kept}


# --- inputs ---------------------------------------------------------------------------------------


def random_inputs(
    call: OperatorCall, generator: np.random.Generator, precision: str = "fp32"
) -> tuple[Array, ...]:
    """Inputs as a detector would make them, with the shapes of ``call``.

    Args:
        call: of a known operator.
        generator: source of all randomness.
        precision: feature values are representable in it.

    Raises:
        ArtefactError: the operator is unknown.
    """
    if call.name not in OPERATORS:
        raise ArtefactError(
            f"operator {call.name!r} is none of {', '.join(OPERATORS)}: export the model again"
        )
    arrays = OPERATORS[call.name].inputs_for(call, generator)
    return tuple(
        rounded(array, precision) if is_feature_map(call, index) else array
        for index, array in enumerate(arrays)
    )
