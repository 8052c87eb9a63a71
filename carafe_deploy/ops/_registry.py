"""Register operators with torch.

A torch operator may exist already, because ``libcarafe_torch.so`` defined the same schema in this
process; defining it twice aborts, so everything here goes through :func:`_define`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.operators.specification import Operator
from carafe_deploy.types import DOMAIN

__all__ = ["register"]


def register(operator: Operator) -> None:
    """Define ``carafe::<name>`` on all devices, its fake and, where it trains, its gradients.

    Raises:
        RuntimeError: the operator exists already; without this check torch would abort.
    """
    implementation = operator.implementation
    definition = _define(operator.name, implementation.forward, operator.schema)
    definition.register_fake(implementation.fake)
    if implementation.gradients is not None:
        _differentiate(operator, definition, implementation.gradients)


def _define(name: str, function: Callable[..., Any], schema: str) -> Any:
    qualified = f"{DOMAIN}::{name}"
    if torch._C._dispatch_has_kernel(qualified):
        raise RuntimeError(
            f"torch operator {qualified} is registered already, most likely by "
            "libcarafe_torch.so: load either that library or carafe_deploy.ops, not both"
        )
    return torch.library.custom_op(qualified, function, mutates_args=(), schema=schema)


def _differentiate(operator: Operator, definition: Any, gradients: Callable[..., Any]) -> None:
    """Gradients are an operator of their own, so that graphs hold them whole."""
    count = len(operator.inputs)
    arguments = operator.schema.removeprefix("(").partition(" -> ")[0]
    results = ", ".join(["Tensor"] * count)
    backward = _define(
        f"{operator.name}_backward", gradients, f"(Tensor grad, {arguments} -> ({results})"
    )

    def fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[:count])

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.attributes = inputs[count:]

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = backward(grad, *ctx.saved_tensors, *ctx.attributes)
        return (*found, *[None] * len(ctx.attributes))

    backward.register_fake(fake)
    definition.register_autograd(differentiate, setup_context=remember)
