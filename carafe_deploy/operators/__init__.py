"""The operators of the domain ``carafe``: what each is, in its own file, and the list of all.

NumPy only; :mod:`carafe_deploy.ops` computes them by torch. docs/add_an_operator.md tells how one
more is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from carafe_deploy.operators.candidates import BOX_CANDIDATES, RPN_CANDIDATES
from carafe_deploy.operators.carafe import CARAFE, CARAFE_ENCODED
from carafe_deploy.operators.nms import BATCHED_NMS
from carafe_deploy.operators.roi_align import MULTILEVEL_ROI_ALIGN
from carafe_deploy.operators.specification import Operator
from carafe_deploy.types import OperatorCall

__all__ = [
    "BY_ONNX_NAME",
    "FAMILIES",
    "OPERATORS",
    "TITLES",
    "channels_of",
    "is_feature_map",
    "several_structures",
]

_ALL = (
    CARAFE,
    CARAFE_ENCODED,
    RPN_CANDIDATES,
    MULTILEVEL_ROI_ALIGN,
    BOX_CANDIDATES,
    BATCHED_NMS,
)

#: By torch name.
OPERATORS: Mapping[str, Operator] = {operator.name: operator for operator in _ALL}
#: By the name in ONNX and TensorRT.
BY_ONNX_NAME: Mapping[str, Operator] = {operator.onnx_name: operator for operator in _ALL}
#: Operators of one purpose, by the name they are measured under.
FAMILIES: Mapping[str, tuple[Operator, ...]] = {
    family: tuple(operator for operator in _ALL if operator.family == family)
    for family in dict.fromkeys(operator.family for operator in _ALL)
}
#: Family -> for people.
TITLES: Mapping[str, str] = {name: operators[0].title for name, operators in FAMILIES.items()}


def is_feature_map(call: OperatorCall, index: int) -> bool:
    """Tensor argument ``index`` is a feature map or weights, and not boxes or scores."""
    return call.name in OPERATORS and OPERATORS[call.name].input_at(index).is_feature_map


def channels_of(call: OperatorCall, index: int) -> tuple[int, ...]:
    """What is left of a feature map's shape when batch and size may vary."""
    shape, axes = call.shapes[index], OPERATORS[call.name].input_at(index).axes
    return tuple(size for size, axis in zip(shape, axes, strict=False) if axis == "C")


def several_structures(calls: Iterable[OperatorCall]) -> list[str]:
    """ONNX names of the operators that need function bodies of several structures."""
    found: dict[str, set[str]] = {}
    for call in calls:
        if operator := OPERATORS.get(call.name):
            settings = [call.attributes.get(name) for name in operator.structure]
            found.setdefault(operator.onnx_name, set()).add(repr(settings))
    return [name for name, settings in found.items() if len(settings) > 1]
