"""RpnCandidates and BoxCandidates: what a head predicts becomes boxes and scores for NMS.

Computed by :mod:`carafe_deploy.ops.rpn_candidates` and :mod:`carafe_deploy.ops.box_candidates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from carafe_deploy.operators.specification import (
    MAPS,
    STRIDES,
    Argument,
    Array,
    Attributes,
    Operator,
    Shape,
    normal,
)
from carafe_deploy.types import OperatorCall

__all__ = ["BOX_CANDIDATES", "MAX_LOG_RATIO", "MOST_CANDIDATES", "RPN_CANDIDATES"]

#: Most candidates that a level can give: what the CUDA kernel has memory for.
MOST_CANDIDATES = 4096
#: Largest |dw| and |dh|: a box grows or shrinks by 62.5 at most.
MAX_LOG_RATIO = abs(math.log(16 / 1000))

#: Of the deltas, as Faster R-CNN's box head has them: means and standard deviations.
_NORMALIZATION = np.array([[0, 0, 0, 0], [0.1, 0.1, 0.2, 0.2]], np.float32)


# --- RpnCandidates -------------------------------------------------------------------------------


def _rpn_shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    shape = [inputs[0][0], len(attributes["strides"]), attributes["num_candidates"]]
    return [*shape, 4], shape


def _rpn_label(call: OperatorCall) -> str:
    levels = len(call.attributes["strides"])
    height, width = call.shapes[3][2:]
    return f"{call.attributes['num_candidates']} of each of {levels} levels from {height}x{width}"


def _image_sizes(batch: int, height: float, width: float) -> Array:
    """The last rows and columns are padding."""
    return np.full((batch, 2), (0.95 * height, 0.98 * width), np.float32)


def _rpn_inputs(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    """Squares of eight strides and logits of which many are equal in half types."""
    (batch, _), (levels, anchors, _), _, *maps = call.shapes
    strides = np.array(call.attributes["strides"], np.float32)
    half = 4 * strides[:, None] * np.exp2(np.linspace(-0.5, 0.5, anchors)).astype(np.float32)
    boxes = np.stack((-half, -half[:, ::-1], half, half[:, ::-1]), axis=-1)
    extent = maps[0][2] * strides[0], maps[0][3] * strides[0]
    tensors = [normal(generator, shape) for shape in maps]
    tensors[:levels] = [3 * logits - 4 for logits in tensors[:levels]]
    normalization = np.array([[0] * 4, [1] * 4], np.float32)
    return _image_sizes(batch, *extent), boxes, normalization, *tensors


def _rpn_call() -> OperatorCall:
    """Of an R-50 detector at 832x1344."""
    maps = [(1, channels, *size) for channels in (3, 12) for size in MAPS]
    return OperatorCall(
        "rpn_candidates",
        ((1, 2), (len(MAPS), 3, 4), (2, 4), *maps),
        {"num_candidates": 1000, "min_size": 0.0, "strides": list(STRIDES)},
    )


RPN_CANDIDATES = Operator(
    name="rpn_candidates",
    inputs=(
        Argument("image_sizes", "B2", "float32"),
        Argument("anchors", "LA4", "float32"),
        Argument("normalization", "24", "float32"),
        Argument("maps", "BCHW", many=True),
    ),
    outputs=(Argument("boxes", "BLK4", "float32"), Argument("scores", "BLK", "float32")),
    attributes={"num_candidates": "INT", "min_size": "FLOAT", "strides": "INTS"},
    shapes=_rpn_shapes,
    module="carafe_deploy.ops.rpn_candidates",
    tolerance="candidates",
    family="rpn_candidates",
    title="RPN candidates",
    random_inputs=_rpn_inputs,
    label=_rpn_label,
    workloads=(("P2 to P6 of 832x1344, 1000 each", (_rpn_call(),), True),),
    structure=("strides",),
)


# --- BoxCandidates -------------------------------------------------------------------------------


def _box_shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    batch, proposals, logits = inputs[0]
    classes = None if logits is None else logits - 1
    return [batch, classes, proposals, 4], [batch, classes, proposals]


def _box_label(call: OperatorCall) -> str:
    _, proposals, logits = call.shapes[0]
    return f"{proposals} proposals of {logits - 1} classes"


def _box_inputs(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    """Proposals inside an image of 800x1216; one in sixteen is padding."""
    (batch, count, classes), *_ = call.shapes
    centre = generator.uniform(0, 1, (batch, count, 2)) * (1216, 800)
    half = 8 * 50 ** generator.uniform(0, 1, (batch, count, 2))
    proposals = np.concatenate((centre - half, centre + half), axis=-1).astype(np.float32)
    held = count - count // 16
    proposals[:, held:] = 0.0
    return (
        3 * normal(generator, (batch, count, classes)),
        normal(generator, (batch, count, 4 * (classes - 1))),
        proposals,
        np.full((batch, 1), held, np.int32),
        _image_sizes(batch, 800, 1216),
        _NORMALIZATION,
    )


BOX_CANDIDATES = Operator(
    name="box_candidates",
    inputs=(
        Argument("logits", "BPC"),
        Argument("deltas", "BPD"),
        Argument("proposals", "BP4", "float32"),
        Argument("num_proposals", "B1", "int32"),
        Argument("image_sizes", "B2", "float32"),
        Argument("normalization", "24", "float32"),
    ),
    outputs=(Argument("boxes", "BCP4", "float32"), Argument("scores", "BCP", "float32")),
    attributes={},
    shapes=_box_shapes,
    module="carafe_deploy.ops.box_candidates",
    tolerance="candidates",
    family="box_candidates",
    title="Box candidates",
    random_inputs=_box_inputs,
    label=_box_label,
    workloads=(
        (
            "1000 proposals, 80 classes",
            (
                OperatorCall(
                    "box_candidates",
                    ((1, 1000, 81), (1, 1000, 320), (1, 1000, 4), (1, 1), (1, 2), (2, 4)),
                    {},
                ),
            ),
            True,
        ),
    ),
)
