"""The one table of tolerances, with the reason for each; parity and all tests look here.

Three roundings set the scale: float32 rounds to 6e-8 of a value, float16 to 4.9e-4, bfloat16 to
3.9e-3. TF32 rounds the factors of convolutions and matrix products as float16 does, and keeps sums
and results in float32. A pair of artefacts is held to the coarser precision of the two, whatever
they run on.

Each limit stands beside the largest error *seen*, and at most 50 times above it: in float32 that
of ONNX Runtime against PyTorch over all 100 validation images of the small detectors and over a
photograph at full size with seeded ResNet-50 weights; in half types that of PyTorch and ONNX
Runtime in half against float32 PyTorch over 25 to 100 images, and in float16 over the photograph
for all but whole detections. Seeded weights amplify rounding as trained ones do not.
benchmarks/tolerances.py measures most of this again, and sees no worse.

What is quantized is held to float32 by detections and AP alone: no limit of a tensor's error says
whether 8 bits detect well. Seen is with the small Mask R-CNN in int8 for a CPU over all 100 images,
pairs being sought no further than the limits; AP is of fp8, with ranges of several sets of images.

Limits of TF32 are float16's. Seen is with every factor of a convolution, linear layer or operator
rounded to 10 bits of mantissa on the CPU: over 25 images of the small detectors, AP over all 100,
and up to the proposals over the photograph. On an H100 the ResNet-50 Mask R-CNN with seeded weights
found 60 of 64 detections again with TF32 and moved boxes by up to 3.1 pixels, and all 64 within
0.003 pixels without it (benchmarks/results/h100/onnxruntime.json): that is no float32, hence rows
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from carafe_deploy.types import DTYPES, QUANTIZED

__all__ = ["ROUNDING", "TOLERANCES", "Tolerance", "coarsest", "tolerance"]

#: Largest relative error of rounding a value to a precision.
ROUNDING = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class Tolerance:
    """A limit that an error must not exceed.

    Attributes:
        value: the limit.
        measure: what it limits. ``"relative"``: largest difference over the largest magnitude of
            the reference tensor. ``"absolute"``: largest difference. ``"matched"``: the smallest
            accepted fraction of matched rows. ``"iou"``: the smallest accepted intersection over
            union.
        seen: the worst found between artefacts that are right.
        reason: why this much and no more.
        quantum: smallest step that the measure can take, where nothing but perfection was seen.
    """

    value: float
    measure: str
    seen: float
    reason: str
    quantum: float = 0.0

    def accepts(self, found: float) -> bool:
        """``found`` is within the limit; NaN never is."""
        return found >= self.value if self.measure in ("matched", "iou") else found <= self.value


_Row = Mapping[str, Tolerance]


_Four = tuple[float, float, float, float]


def _row(
    measure: str,
    reason: str,
    limits: _Four,
    seen: _Four,
    quantum: float = 0.0,
    quantized: tuple[float, float] | None = None,
) -> _Row:
    """Limits, and what was seen, in fp32, tf32, fp16 and bf16; both of what is quantized."""
    row = {
        precision: Tolerance(limit, measure, found, reason, quantum)
        for precision, limit, found in zip(DTYPES, limits, seen, strict=True)
    }
    if quantized is not None:
        eight = Tolerance(quantized[0], measure, quantized[1], reason, quantum)
        row |= dict.fromkeys(QUANTIZED, eight)
    return row


_OPERATORS: Mapping[str, _Row] = {
    "carafe": _row(
        "relative",
        "A convex sum of 25 products in float32, in any order, rounded once to the output's type.",
        limits=(5e-6, 2e-3, 2e-3, 1.6e-2),
        seen=(2.7e-7, 3.5e-4, 3.2e-4, 2.1e-3),
    ),
    "carafe_encoded": _row(
        "relative",
        "As carafe, with a softmax in float32 before.",
        limits=(5e-6, 2e-3, 2e-3, 1.6e-2),
        seen=(4.2e-7, 3.5e-4, 3.4e-4, 3.0e-3),
    ),
    "candidates": _row(
        "relative",
        "Boxes decoded in float32 from equal inputs, and their scores: the exponential alone is "
        "another one in each runtime.",
        limits=(1e-5, 1e-5, 1e-5, 1e-5),
        seen=(7e-7, 7e-7, 7e-7, 7e-7),
    ),
    "multilevel_roi_align": _row(
        "relative",
        "Sample positions are float32: their error times the step between pixels. Seen in float32 "
        "is against float64; PyTorch and ONNX Runtime agree to the bit.",
        limits=(5e-5, 2e-3, 2e-3, 1.6e-2),
        seen=(1.5e-5, 4.0e-4, 4.6e-4, 2.9e-3),
    ),
    "batched_nms": _row(
        "matched",
        "Inputs are equal, the arithmetic is float32 and the order among equal scores is left "
        "open: nothing may differ.",
        limits=(1.0, 1.0, 1.0, 1.0),
        seen=(1.0, 1.0, 1.0, 1.0),
    ),
}

_STAGES: Mapping[str, _Row] = {
    "backbone": _row(
        "relative",
        "Rounding of every layer adds up; the largest is in C5, the deepest.",
        limits=(5e-5, 2e-2, 2e-2, 1e-1),
        seen=(3.2e-6, 4.6e-3, 4.2e-3, 2.3e-2),
    ),
    "pyramid": _row(
        "relative",
        "On laterals, reassembled maps and P2..P6: the backbone's error and a few layers more.",
        limits=(5e-5, 2e-2, 2e-2, 1e-1),
        seen=(3.5e-6, 3.5e-3, 4.4e-3, 2.2e-2),
    ),
    "encoder": _row(
        "relative",
        "Reassembly kernels before the softmax: two convolutions behind the laterals.",
        limits=(5e-5, 2e-2, 2e-2, 1e-1),
        seen=(2.2e-6, 3.4e-3, 3.2e-3, 1.3e-2),
    ),
    "rpn": _row(
        "relative",
        "Two convolutions behind the pyramid; coarse levels have few elements and small maxima.",
        limits=(5e-5, 2e-2, 2e-2, 1e-1),
        seen=(3.1e-6, 4.7e-3, 4.6e-3, 1.5e-2),
    ),
    "proposals": _row(
        "matched",
        "NMS keeps another box where an overlap or the order of two scores hangs on a rounding.",
        limits=(0.995, 0.95, 0.95, 0.85),
        seen=(0.9999, 0.959, 0.957, 0.942),
        quantum=1e-3,
    ),
    "proposal_boxes": _row(
        "relative",
        "Shift over the box's longer side up to which two proposals count as the same; pairs are "
        "sought no further, so in half types a few were seen right at the limit.",
        limits=(5e-4, 2e-2, 2e-2, 1e-1),
        seen=(1.9e-5, 1.9e-2, 1.8e-2, 1e-1),
    ),
    "proposal_logits": _row(
        "absolute",
        "Likewise for objectness before the sigmoid: low scores have no absolute scale. Seen is "
        "the largest error of the RPN's logits.",
        limits=(1e-3, 1e-1, 1e-1, 5e-1),
        seen=(3.7e-5, 4.5e-2, 3.9e-2, 2.2e-1),
    ),
    "roi_features": _row(
        "relative",
        "The pyramid's error and that of the shifted RoI: its share of the step between pixels. "
        "Seen for the share of rows below.",
        limits=(2e-4, 5e-2, 5e-2, 1e-1),
        seen=(3.7e-5, 2.8e-2, 3.4e-2, 2.5e-2),
    ),
    "shared_fc": _row(
        "relative",
        "As the RoI features, of which every layer takes a mean; seen for the share of rows below.",
        limits=(2e-4, 3e-2, 3e-2, 1e-1),
        seen=(2.4e-5, 2.5e-2, 1.9e-2, 8.0e-2),
    ),
    "box_head": _row(
        "relative",
        "The pyramid's error and that of the shifted RoI; seen for the share of rows below.",
        limits=(2e-4, 2e-2, 2e-2, 1e-1),
        seen=(2.0e-5, 1.3e-2, 1.0e-2, 8.0e-2),
    ),
    "mask_head": _row(
        "relative",
        "As the box head, on detections; seen for the share of rows below.",
        limits=(2e-4, 3e-2, 3e-2, 1e-1),
        seen=(2.0e-5, 9.5e-3, 1.9e-2, 8.0e-2),
    ),
    "detections": _row(
        "matched",
        "Detections that find a partner on the way to the mask head. They are few, and each score "
        "or suppression that flips counts: seen over eight images, and one photograph.",
        limits=(0.999, 0.75, 0.75, 0.7),
        seen=(1.0, 0.982, 0.842, 0.791),
        quantum=1e-3,
    ),
    "rows": _row(
        "matched",
        "Share of a head's rows that must be within its limit: a RoI shifted across the border of "
        "a level or of a sampling grid pools other features.",
        limits=(0.999, 0.98, 0.98, 0.93),
        seen=(1.0, 0.9999, 0.996, 0.944),
        quantum=1e-3,
    ),
}

_DETECTIONS: Mapping[str, _Row] = {
    "iou": _row(
        "iou",
        "Up to here two detections are the same object, with the same mask; pairs are sought no "
        "further. Boxes differ by 2e-3 px in fp32, 2 px in fp16.",
        limits=(0.999, 0.95, 0.95, 0.90),
        seen=(0.99994, 0.9978, 0.975, 0.902),
        quantized=(0.8, 0.801),
    ),
    "score": _row(
        "absolute",
        "Softmax of the box head's logits; seeded weights give the largest.",
        limits=(1e-3, 2e-2, 2e-2, 1e-1),
        seen=(6.9e-5, 3.8e-3, 1.9e-2, 8.8e-2),
        quantized=(0.2, 0.199),
    ),
    "mask_iou": _row(
        "iou",
        "One pixel at the rim of a small mask.",
        limits=(0.98, 0.92, 0.92, 0.90),
        seen=(0.9995, 0.9958, 0.941, 0.942),
        quantized=(0.8, 0.805),
    ),
    "matched": _row(
        "matched",
        "Suppression flips between two boxes of nearly equal score; not in float32, where none of "
        "841 did.",
        limits=(0.999, 0.95, 0.95, 0.90),
        seen=(1.0, 0.982, 0.971, 0.935),
        quantum=1e-3,
        quantized=(0.8, 0.914),
    ),
}

_AP = _row(
    "absolute",
    "Detections that differ have low scores, and AP hardly sees them; one true positive lost in a "
    "hundred small images moves it by 1e-3.",
    limits=(5e-4, 5e-3, 5e-3, 2e-2),
    seen=(1e-5, 7e-4, 1.0e-3, 5.0e-3),
    quantized=(2e-2, 1.44e-2),
)

#: By level and kind, then by precision.
TOLERANCES: Mapping[tuple[str, str], _Row] = {
    **{("operators", kind): row for kind, row in _OPERATORS.items()},
    **{("stages", kind): row for kind, row in _STAGES.items()},
    **{("detections", kind): row for kind, row in _DETECTIONS.items()},
    ("ap", "ap"): _AP,
}


def coarsest(*precisions: str) -> str:
    """The coarsest of some precisions; the one that decides what can be expected of a pair."""
    return max(precisions, key=[*DTYPES, *QUANTIZED].index)


def tolerance(level: str, kind: str, precision: str = "fp32") -> Tolerance:
    """Look up one limit.

    Raises:
        KeyError: the table has no such level and kind, or no such precision.
    """
    return TOLERANCES[level, kind][precision]
