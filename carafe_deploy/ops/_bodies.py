"""ONNX function bodies of all operators, made of standard operators (opset 18 and later).

A model that carries them runs wherever ONNX runs; a runtime that knows the operator ignores them.
"""

from __future__ import annotations

from carafe_deploy.ops._body_carafe import carafe_body, choose_carafe_variant
from carafe_deploy.ops._body_nms import batched_nms_body
from carafe_deploy.ops._body_roi_align import multilevel_roi_align_body

__all__ = [
    "batched_nms_body",
    "carafe_body",
    "choose_carafe_variant",
    "multilevel_roi_align_body",
]
