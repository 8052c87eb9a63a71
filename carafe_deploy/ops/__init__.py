"""The operators computed by torch; importing this registers them in its namespace ``carafe``.

Each has its own file with reference and torch operator, and beside it the ONNX function body. What
an operator is called and takes stands in :mod:`carafe_deploy.operators`.
"""

from __future__ import annotations

from carafe_deploy.operators import OPERATORS
from carafe_deploy.ops._exporters import dynamo_translations, torchscript_symbolics
from carafe_deploy.ops._kernels import plain_operators
from carafe_deploy.ops._registry import register
from carafe_deploy.ops.box_candidates import box_candidates
from carafe_deploy.ops.carafe import carafe, carafe_encoded
from carafe_deploy.ops.modules import CARAFE, CARAFEPack
from carafe_deploy.ops.nms import batched_nms
from carafe_deploy.ops.replace import replace_carafe
from carafe_deploy.ops.roi_align import multilevel_roi_align
from carafe_deploy.ops.rpn_candidates import rpn_candidates

__all__ = [
    "CARAFE",
    "CARAFEPack",
    "batched_nms",
    "box_candidates",
    "carafe",
    "carafe_encoded",
    "dynamo_translations",
    "multilevel_roi_align",
    "plain_operators",
    "replace_carafe",
    "rpn_candidates",
    "torchscript_symbolics",
]

for _operator in OPERATORS.values():
    register(_operator)
