"""Level one: every custom operator as each artefact implements it, on the same random inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import ArtefactError
from carafe_deploy.parity.array_error import array_error, rounded
from carafe_deploy.parity.compatible import is_feature_map
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
    """One row for each distinct operator call of the two artefacts.

    Inputs have the recorded shapes (the smaller recording where the two differ) and values that
    the coarser precision represents exactly, so that only the operators' own errors show.

    Args:
        reference: checked against ``candidate`` by
            :func:`carafe_deploy.parity.compatible.check_same_model`.
        candidate: likewise.
        seed: of the inputs.
        progress: called with calls done and their total.
    """
    precision = coarsest(reference.info.precision, candidate.info.precision)
    pairs = zip(reference.info.operators, candidate.info.operators, strict=True)
    distinct = {_key(_smaller(*pair)): pair for pair in pairs}
    rows = []
    for index, pair in enumerate(distinct.values()):
        call = _smaller(*pair)
        inputs = random_inputs(call, np.random.default_rng((seed, index)), precision)
        ours = reference.run_operator(pair[0], inputs)
        theirs = candidate.run_operator(pair[1], inputs)
        compare = _compare_kept if call.name == "batched_nms" else _compare_elements
        rows.append(compare(call, precision, inputs, ours, theirs))
        if progress is not None:
            progress(index + 1, len(distinct))
    return tuple(rows)


def _smaller(call: OperatorCall, other: OperatorCall) -> OperatorCall:
    def elements(call: OperatorCall) -> int:
        return sum(int(np.prod(shape)) for shape in call.shapes)

    return min(call, other, key=elements)


def _key(call: OperatorCall) -> str:
    return json.dumps([call.name, call.shapes, dict(call.attributes)], sort_keys=True)


def _row_name(call: OperatorCall) -> str:
    """The operator and the shape that tells its calls apart."""
    shape = call.shapes[0]
    if call.name == "multilevel_roi_align":
        size = call.attributes["output_size"]
        return f"{call.name} {shape[1]} to {size}x{size}"
    if call.name == "batched_nms":
        return f"{call.name} {shape[1]}x{shape[2]}"
    return f"{call.name} {'x'.join(map(str, shape))}"


def _compare_elements(
    call: OperatorCall,
    precision: str,
    inputs: Sequence[Array],
    reference: tuple[Array, ...],
    candidate: tuple[Array, ...],
) -> ParityRow:
    limit = tolerance("operators", call.name, precision)
    error = array_error(_row_name(call), reference[0], candidate[0], limit.value)
    return ParityRow(
        level="operators",
        name=_row_name(call),
        max_abs_error=error.max_abs,
        max_rel_error=error.max_rel,
        matched=error.within,
        total=error.total,
        tolerance=limit.value,
        measure=limit.measure,
        passed=limit.accepts(error.max_rel) if error.total else None,
    )


def _compare_kept(
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
    limit = tolerance("operators", call.name, precision)
    return ParityRow(
        level="operators",
        name=_row_name(call),
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


# --- inputs ---------------------------------------------------------------------------------------


def random_inputs(
    call: OperatorCall, generator: np.random.Generator, precision: str = "fp32"
) -> tuple[Array, ...]:
    """Inputs as a detector would make them, with the shapes of ``call``.

    Feature maps are normal, encoder outputs normal with deviation 2, masks normalised over the
    taps. RoIs spread over all levels that the image has room for, one in sixteen is padding.
    Candidates of NMS lie in clusters; coordinates are multiples of half a pixel and scores of
    2**-12, so that no rounding decides an overlap and ties occur; the end is padded with -inf.

    Args:
        call: of one of the four operators.
        generator: source of all randomness.
        precision: feature values are representable in it.

    Raises:
        ArtefactError: the operator is none of the four.
    """
    makers: Mapping[str, Callable[..., Sequence[Array]]] = {
        "carafe": _masks_and_features,
        "carafe_encoded": _encoded_and_features,
        "multilevel_roi_align": _rois_and_features,
        "batched_nms": _candidates,
    }
    if call.name not in makers:
        raise ArtefactError(
            f"operator {call.name!r} is none of {', '.join(makers)}: export the model again"
        )
    arrays = makers[call.name](call, generator)
    return tuple(
        rounded(array, precision) if is_feature_map(call, index) else array
        for index, array in enumerate(arrays)
    )


def _normal(generator: np.random.Generator, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    return generator.standard_normal(tuple(shape), np.float32)


def _encoded_and_features(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    features, encoded = call.shapes
    return _normal(generator, features), _normal(generator, encoded) * 2


def _masks_and_features(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    features, masks = call.shapes
    taps = int(call.attributes["kernel_size"]) ** 2
    weights = np.exp(_normal(generator, masks) * 2).reshape(masks[0], -1, taps, *masks[2:])
    weights /= weights.sum(axis=2, keepdims=True)
    return _normal(generator, features), weights.reshape(masks)


def _rois_and_features(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    (batch, count, _), *maps = call.shapes
    stride = int(call.attributes["strides"][0])
    extent = np.array([maps[0][3] * stride, maps[0][2] * stride], np.float64)
    finest = float(call.attributes["finest_scale"])
    # sqrt(area) in the middle of each level's octave, as far as the image has room.
    scale = (
        finest * 2.0 ** (np.arange(count) % len(maps)) * generator.uniform(1.1, 1.9, (batch, count))
    )
    scale = np.minimum(scale, extent.min() * generator.uniform(0.5, 0.9, (batch, count)))
    aspect = np.exp2(generator.uniform(-0.5, 0.5, (batch, count)))
    size = np.stack((scale * aspect, scale / aspect), axis=-1)
    size = np.minimum(size, extent)
    low = generator.uniform(0, 1, (batch, count, 2)) * (extent - size)
    rois = np.concatenate((low, low + size), axis=-1).astype(np.float32)
    rois[:, count - count // 16 :] = 0.0
    return rois, *(_normal(generator, shape) for shape in maps)


def _candidates(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
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
