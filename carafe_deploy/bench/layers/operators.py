"""Names of the ``carafe`` operators."""

from __future__ import annotations

__all__ = ["OPERATORS"]

#: ONNX operator, which is the plugin's name too -> torch operator.
OPERATORS = {
    "Carafe": "carafe",
    "CarafeEncoded": "carafe_encoded",
    "MultilevelRoiAlign": "multilevel_roi_align",
    "BatchedNms": "batched_nms",
}
