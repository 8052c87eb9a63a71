"""The one table of tolerances, with the reason for each; parity and all tests look here.

Three units in the last place set the scale: float32 rounds to 6e-8 of a value, float16 to 4.9e-4,
bfloat16 to 3.9e-3. A pair of artefacts is held to the coarser precision of the two.

"Seen" is the largest error over the 100 validation images of both small detectors, float32
PyTorch as reference; "seeded" the same over a photograph at full size with the two seeded
ResNet-50 detectors. Tolerances stand 3 to 50 times above what was seen, closer where many images
have been averaged over and further where one rounding decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRECISIONS", "TOLERANCES", "Tolerance", "coarsest", "tolerance"]

#: From fine to coarse.
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Tolerance:
    """A limit that an error must not exceed.

    Attributes:
        value: the limit.
        measure: what it limits. ``"relative"``: largest difference over the largest magnitude of
            the reference tensor. ``"absolute"``: largest difference. ``"matched"``: the smallest
            accepted fraction of matched rows. ``"iou"``: the smallest accepted intersection over
            union.
        reason: why this much and no more.
    """

    value: float
    measure: str
    reason: str

    def accepts(self, found: float) -> bool:
        """``found`` is within the limit; NaN never is."""
        return found >= self.value if self.measure in ("matched", "iou") else found <= self.value


def _row(measure: str, fp32: float, fp16: float, bf16: float, reason: str) -> dict[str, Tolerance]:
    values = zip(PRECISIONS, (fp32, fp16, bf16), strict=True)
    return {precision: Tolerance(value, measure, reason) for precision, value in values}


#: By level and kind, then by precision.
TOLERANCES: Mapping[tuple[str, str], Mapping[str, Tolerance]] = {
    ("operators", "carafe"): _row("relative", 5e-6, 2e-3, 1.6e-2, ""),
    ("operators", "carafe_encoded"): _row("relative", 5e-6, 2e-3, 1.6e-2, ""),
    ("operators", "multilevel_roi_align"): _row("relative", 2e-5, 2e-3, 1.6e-2, ""),
    ("operators", "batched_nms"): _row("matched", 1.0, 1.0, 1.0, ""),
    ("stages", "backbone"): _row("relative", 1e-4, 1e-2, 8e-2, ""),
    ("stages", "pyramid"): _row("relative", 1e-4, 1e-2, 8e-2, ""),
    ("stages", "rpn"): _row("relative", 1e-4, 1e-2, 8e-2, ""),
    ("stages", "proposals"): _row("matched", 0.995, 0.9, 0.6, ""),
    ("stages", "proposal_boxes"): _row("relative", 1e-3, 6e-3, 5e-2, ""),
    ("stages", "proposal_logits"): _row("absolute", 1e-3, 6e-2, 5e-1, ""),
    ("stages", "box_head"): _row("relative", 1e-4, 1e-2, 8e-2, ""),
    ("stages", "mask_head"): _row("relative", 1e-4, 1e-2, 8e-2, ""),
    ("stages", "rows"): _row("matched", 0.999, 0.99, 0.95, ""),
    ("detections", "iou"): _row("iou", 0.99, 0.95, 0.8, ""),
    ("detections", "score"): _row("absolute", 1e-3, 2e-2, 1e-1, ""),
    ("detections", "mask_iou"): _row("iou", 0.98, 0.95, 0.8, ""),
    ("detections", "matched"): _row("matched", 0.999, 0.98, 0.9, ""),
    ("ap", "ap"): _row("absolute", 1e-3, 5e-3, 2e-2, ""),
}


def coarsest(*precisions: str) -> str:
    """The coarsest of some precisions; the one that decides what can be expected of a pair."""
    return max(precisions, key=PRECISIONS.index)


def tolerance(level: str, kind: str, precision: str = "fp32") -> Tolerance:
    """Look up one limit.

    Raises:
        KeyError: the table has no such level and kind, or no such precision.
    """
    return TOLERANCES[level, kind][precision]
