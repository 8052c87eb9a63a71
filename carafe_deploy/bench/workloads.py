"""What the operators are given in an R-50 detector at 832x1344, and what that costs at least.

Feature maps have 256 channels. Values are seeded: feature maps normal, encoder outputs normal with
deviation 2, RoIs and NMS candidates as :data:`DATA` says. Bytes and operations are counted from
shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carafe_deploy.brief import OneLine
from carafe_deploy.operators import FAMILIES, OPERATORS
from carafe_deploy.operators.specification import Attributes, BenchCall
from carafe_deploy.types import OperatorCall

__all__ = ["DATA", "SEED", "WORKLOADS", "ShapedCall", "Variant", "Workload"]

#: Of the values of every call.
SEED = 0


@dataclass(frozen=True)
class Variant:
    """Element type and memory layout.

    Attributes:
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        layout: ``"nchw"`` or ``"channels-last"``; empty where it has no meaning.
    """

    dtype: str
    layout: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch names it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def arranged(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A feature map or weights [N, C, H, W] in this type and layout."""
        last = self.layout == "channels-last" and tensor.dim() == 4
        return tensor.to(
            device,
            self.torch_dtype,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )


_TYPES = tuple(Variant(dtype, "") for dtype in ("float32", "float16", "bfloat16"))
_VARIANTS = tuple(
    Variant(each.dtype, layout) for each in _TYPES for layout in ("nchw", "channels-last")
)


@dataclass(frozen=True, repr=False)
class ShapedCall(OneLine):
    """A call known by the shapes of its tensors; values are the operator's random inputs."""

    call: OperatorCall

    @property
    def entry(self) -> str:
        """Torch name of the operator."""
        return self.call.name

    @property
    def attributes(self) -> Attributes:
        """Keyword arguments of the operator."""
        return self.call.attributes

    @property
    def flops(self) -> int:
        """Nobody has counted them."""
        return 0

    def num_bytes(self, item_size: int) -> int:
        """Inputs and results once each."""
        operator, shapes = OPERATORS[self.entry], self.call.shapes
        tensors = [
            *zip(operator.flat_inputs(len(shapes)), shapes, strict=True),
            *zip(operator.outputs, operator.shapes(shapes, self.attributes), strict=True),
        ]
        return sum(
            math.prod(size or 0 for size in shape)
            * (item_size if each.is_feature_map else np.dtype(each.type).itemsize)
            for each, shape in tensors
        )

    def inputs(self, generator: torch.Generator) -> tuple[Any, ...]:
        """Float32 tensors, as the torch operator takes them."""
        operator, numbers = OPERATORS[self.entry], np.random.default_rng(generator.initial_seed())
        arrays = operator.inputs_for(self.call, numbers)
        return tuple(operator.grouped(map(torch.from_numpy, arrays)))


@dataclass(frozen=True, repr=False)
class Workload(OneLine):
    """Calls of one operator that are measured as one.

    Attributes:
        operator: a family of :data:`~carafe_deploy.operators.FAMILIES`.
        name: where it occurs and its shapes.
        calls: made one after the other.
        in_all_variants: measured in every type and layout, not only when all is asked for.
    """

    operator: str
    name: str
    calls: tuple[BenchCall, ...]
    in_all_variants: bool = False

    def variants(self, *, full: bool = False) -> tuple[Variant, ...]:
        """Types and layouts to measure, as far as the operator has them; the plainest comes first.

        All, if ``full`` or so marked.
        """
        operator = OPERATORS[self.calls[0].entry]
        found = _VARIANTS if operator.has_layouts else _TYPES
        everything = operator.has_feature_maps and (full or self.in_all_variants)
        return found if everything else found[:1]

    def num_bytes(self, variant: Variant) -> int:
        """Inputs read and results written once each."""
        size = variant.torch_dtype.itemsize
        return sum(call.num_bytes(size) for call in self.calls)

    @property
    def flops(self) -> int:
        """Multiplications and additions; 0 where they depend on the data."""
        return sum(call.flops for call in self.calls)

    def inputs(self) -> list[tuple[Any, ...]]:
        """Of each call, float32; the same at every time of asking."""
        generator = torch.Generator().manual_seed(SEED)
        return [call.inputs(generator) for call in self.calls]


def _workloads(family: str) -> tuple[Workload, ...]:
    return tuple(
        Workload(
            family,
            name,
            tuple(ShapedCall(call) if isinstance(call, OperatorCall) else call for call in calls),
            in_all_variants,
        )
        for operator in FAMILIES[family]
        for name, calls, in_all_variants in operator.workloads
    )


#: Workloads by family.
WORKLOADS: Mapping[str, tuple[Workload, ...]] = {family: _workloads(family) for family in FAMILIES}
#: Where data decides how long a call takes: by family, how it is distributed.
DATA: Mapping[str, str] = {
    family: text
    for family, operators in FAMILIES.items()
    if (text := " ".join(filter(None, (operator.data for operator in operators))))
}
