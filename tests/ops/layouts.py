"""Ways to lay out an operator's inputs, and the layout that its result must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tests.ops.cases import Case

Layout = Callable[[Case, Sequence[Tensor]], tuple[Tensor, ...]]


def _as_listed(case: Case, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(case.layout(tensor) if tensor.dim() == 4 else tensor for tensor in tensors)


def _channels_last(case: Case, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for tensor in tensors
    )


def _first_channels_last(case: Case, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first feature map only; what follows is contiguous."""
    changed = list(tensors)
    for at in [i for i, tensor in enumerate(tensors) if tensor.dim() == 4][:1]:
        changed[at] = tensors[at].contiguous(memory_format=torch.channels_last)
    return tuple(changed)


LAYOUTS: Mapping[str, Layout] = {
    "as listed": _as_listed,
    "channels last": _channels_last,
    "mixed": _first_channels_last,
}


def is_channels_last(tensor: Tensor) -> bool:
    """Dense in channels-last order, and in no other."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def has_layout_of(result: Tensor, features: Tensor) -> bool:
    """``result`` [N, C, H, W] is channels-last if ``features`` is, else contiguous."""
    if is_channels_last(features) and result.numel():
        return result.is_contiguous(memory_format=torch.channels_last)
    return result.is_contiguous()
