"""Can two artefacts be compared, and at which input sizes?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from carafe_deploy.errors import ArtefactError, UnsupportedLevelError
from carafe_deploy.operators import OPERATORS, channels_of, is_feature_map
from carafe_deploy.runners.base import Array, Runner, Wrapper
from carafe_deploy.stages import Stage, describe_stages
from carafe_deploy.types import InputFormat, ModelInfo, OperatorCall

__all__ = [
    "BoundedRunner",
    "bounded_alike",
    "check_same_model",
    "common_calls",
    "common_stages",
    "describe",
]

#: Whatever of ModelInfo decides what is detected; precision, layout and sizes may differ.
_DECISIVE = (
    "architecture",
    "classes",
    "preprocessing",
    "score_threshold",
    "nms_iou_threshold",
    "max_detections",
    "mask_threshold",
    "mask_size",
)


def describe(runner: Runner) -> str:
    """Backend, what computes the operators, precision and model in a few words."""
    by = runner.implementations[0]
    backend = f"{runner.backend} ({by})" if by else runner.backend
    info = runner.info
    precision = info.precision
    if info.quantization is not None:
        precision += f" for {info.quantization.target}"
    return f"{backend} {precision} {info.name}"


def check_same_model(reference: ModelInfo, candidate: ModelInfo) -> None:
    """Refuse to compare what cannot agree.

    Raises:
        ArtefactError: architecture, classes, preprocessing, thresholds or operators differ, or an
            operator is unknown; the message says which.
    """
    for call in (*reference.operators, *candidate.operators):
        if call.name not in OPERATORS:
            raise ArtefactError(
                f"operator {call.name!r} is none of {', '.join(OPERATORS)}: export the model again"
            )
    differences = [
        _difference(name, getattr(reference, name), getattr(candidate, name))
        for name in _DECISIVE
        if getattr(reference, name) != getattr(candidate, name)
    ]
    if not differences:
        ours, theirs = (
            list(map(_signature, calls)) for calls in common_calls(reference, candidate)
        )
        if ours != theirs:
            differences.append(_difference("operators", ours, theirs))
    if differences:
        raise ArtefactError(
            f"these are different models or settings: {'; '.join(differences)}. "
            "Export both from one checkpoint with the same thresholds"
        )


def _difference(name: str, reference: Any, candidate: Any) -> str:
    if isinstance(reference, (list, tuple)):
        if len(reference) != len(candidate):
            return f"{len(reference)} and {len(candidate)} {name}"
        index = next(i for i, value in enumerate(reference) if value != candidate[i])
        return f"{name}[{index}] is {reference[index]!r} and {candidate[index]!r}"
    if dataclasses.is_dataclass(reference):
        for field in dataclasses.fields(reference):
            values = getattr(reference, field.name), getattr(candidate, field.name)
            if values[0] != values[1]:
                return _difference(f"{name}.{field.name}", *map(str, values))
    return f"{name} is {reference} and {candidate}"


def _signature(call: OperatorCall) -> tuple[Any, ...]:
    """What is equal in two exports of one model, whatever their batch and input size."""
    return (
        call.name,
        dict(call.attributes),
        tuple(
            channels_of(call, index) if is_feature_map(call, index) else shape[1:]
            for index, shape in enumerate(call.shapes)
        ),
    )


def common_calls(
    reference: ModelInfo, candidate: ModelInfo
) -> tuple[list[OperatorCall], list[OperatorCall]]:
    """Calls of the operators that both have, side by side for two artefacts of one model.

    Artefacts of older versions hold some operators in single steps.
    """
    names = {call.name for call in reference.operators}
    names &= {call.name for call in candidate.operators}
    ours, theirs = (
        [call for call in info.operators if call.name in names] for info in (reference, candidate)
    )
    return ours, theirs


def common_stages(reference: ModelInfo, candidate: ModelInfo) -> tuple[Stage, ...]:
    """The intermediate tensors that both can be asked for, in the order of computation.

    Artefacts of older versions name fewer.

    Raises:
        ArtefactError: one has a name that this version does not know.
        UnsupportedLevelError: there are none.
    """
    names = [name for name in reference.stages if name in candidate.stages]
    if not names:
        lacking = [
            side
            for side, info in (("reference", reference), ("candidate", candidate))
            if not info.stages
        ]
        problem = (
            f"the {' and the '.join(lacking)} cannot be asked for intermediate tensors"
            if lacking
            else "no intermediate tensor has a name in both artefacts"
        )
        raise UnsupportedLevelError(f"{problem}: export both with this version")
    return describe_stages(names)


def bounded_alike(reference: Runner, candidate: Runner) -> tuple[Runner, Runner]:
    """The two runners with the sizes that both accept, so that both pad alike.

    Padding shows in the result: behind the first convolution it is no longer zero.

    Raises:
        ArtefactError: no size or batch is accepted by both.
    """
    ours, theirs = reference.info.input, candidate.info.input
    common = {}
    for name in ("batch", "height", "width"):
        (low, high), (other_low, other_high) = getattr(ours, name), getattr(theirs, name)
        common[name] = max(low, other_low), min(high, other_high)
        if common[name][0] > common[name][1]:
            raise ArtefactError(
                f"the reference accepts {name} {_range(low, high)}, the candidate "
                f"{_range(other_low, other_high)}: export one of them with bounds that overlap"
            )
    return BoundedRunner(reference, **common), BoundedRunner(candidate, **common)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


class BoundedRunner(Wrapper):
    """Another runner that says it accepts fewer sizes.

    Args:
        runner: does the work.
        batch: (smallest, largest) accepted batch size.
        height: likewise, in pixels.
        width: likewise.
    """

    def __init__(
        self,
        runner: Runner,
        batch: tuple[int, int],
        height: tuple[int, int],
        width: tuple[int, int],
    ) -> None:
        super().__init__(runner)
        self.info = dataclasses.replace(
            runner.info, input=InputFormat(runner.info.input.layout, batch, height, width)
        )
        self.inputs = self.info.input_specs
        self.outputs = self.info.output_specs

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        return self._runner.start(inputs)

    def __repr__(self) -> str:
        accepted = self.info.input
        sizes = f"batch {accepted.batch}, height {accepted.height}, width {accepted.width}"
        return f"<BoundedRunner {sizes} of {self._runner!r}>"
