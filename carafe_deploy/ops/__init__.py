"""The three non-standard operators of CARAFE detectors; importing this registers them with torch.

Each has its own file: reference, torch operator, ONNX symbolic for both exporters. The matching
ONNX function bodies are in `_bodies`.
"""

from __future__ import annotations

from typing import Any

from carafe_deploy.ops import carafe as _carafe
from carafe_deploy.ops import nms as _nms
from carafe_deploy.ops import roi_align as _roi_align
from carafe_deploy.ops._kernels import plain_operators
from carafe_deploy.ops.carafe import carafe, carafe_encoded
from carafe_deploy.ops.modules import CARAFE, CARAFEPack
from carafe_deploy.ops.nms import batched_nms
from carafe_deploy.ops.replace import replace_carafe
from carafe_deploy.ops.roi_align import multilevel_roi_align

__all__ = [
    "CARAFE",
    "CARAFEPack",
    "batched_nms",
    "carafe",
    "carafe_encoded",
    "dynamo_translations",
    "multilevel_roi_align",
    "plain_operators",
    "replace_carafe",
    "torchscript_symbolics",
]

_FILES = (_carafe, _roi_align, _nms)


def dynamo_translations() -> dict[Any, Any]:
    """All entries for ``torch.onnx.export(dynamo=True, custom_translation_table=...)``."""
    return {key: value for file in _FILES for key, value in file.dynamo_translations().items()}


def torchscript_symbolics() -> dict[str, Any]:
    """All symbolic functions for the TorchScript exporter, by qualified torch name."""
    return {key: value for file in _FILES for key, value in file.torchscript_symbolics().items()}
