"""Register operators with torch, or add to those that ``libcarafe_torch.so`` has registered.

Defining an operator twice aborts, so everything here asks first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.operators.specification import Operator
from carafe_deploy.ops._kernels import remembering_errors
from carafe_deploy.ops._torch_library import is_registered, torch_library
from carafe_deploy.types import DOMAIN

__all__ = ["register"]


def register(operator: Operator) -> None:
    """See that torch has ``carafe::<name>`` with all devices, its fake and its gradients.

    Raises:
        RuntimeError: something else has registered the operator already.
    """
    implementation, qualified = operator.implementation, f"{DOMAIN}::{operator.name}"
    in_cpp = torch_library().has(operator.name)
    if in_cpp:
        _complete(operator, implementation.forward)
    else:
        _define(operator.name, implementation.forward, operator.schema)
    torch.library.register_fake(qualified, implementation.fake)
    if implementation.gradients is not None:
        _differentiate(operator, implementation.gradients)
    elif in_cpp:  # torch refuses by itself for operators that are defined in Python
        torch.library.register_autograd(qualified, functools.partial(_refuse, qualified))


# --- in C++ --------------------------------------------------------------------------------------


@functools.cache
def _additions() -> torch.library.Library:
    """Holds what is added here for as long as the process lives."""
    return torch.library.Library(DOMAIN, "FRAGMENT")


def _complete(operator: Operator, forward: Callable[..., Any]) -> None:
    """What the library's kernels do not serve is computed as without the library."""
    name = operator.name
    overload = getattr(torch.ops.carafe, name).default
    if overload._schema != torch._C.parse_schema(f"{DOMAIN}::{name}{operator.schema}"):
        raise RuntimeError(
            f"torch operator {overload._schema} comes from a libcarafe_torch.so of another version "
            "of carafe-deploy: build it again with `make plugins`, or install package and library "
            "from the same wheel"
        )
    library, in_pytorch = _additions(), f"{name}_in_pytorch"
    library.define(f"{in_pytorch}{operator.schema}")
    library.impl(in_pytorch, remembering_errors(forward), "CompositeExplicitAutograd")
    torch_library().offer_pytorch()
    if any(each.many for each in operator.inputs):
        # Torch's stable interface moves tensors out of the list that it is given, which may be one
        # that a TorchScript program gives to another call, too. On the way through Python there is
        # a new list.
        of_own_list = getattr(torch.ops.carafe, f"{name}_of_own_list").default._op
        for device in ("CPU", "CUDA"):
            library.impl(name, of_own_list, device)


# --- in Python -----------------------------------------------------------------------------------


def _define(name: str, function: Callable[..., Any], schema: str) -> None:
    qualified = f"{DOMAIN}::{name}"
    if is_registered(name):
        raise RuntimeError(
            f"torch operator {qualified} is registered already, most likely by another "
            "libcarafe_torch.so: load that of this carafe_deploy, or none"
        )
    torch.library.custom_op(qualified, function, mutates_args=(), schema=schema)


# --- gradients -----------------------------------------------------------------------------------


def _differentiate(operator: Operator, gradients: Callable[..., Any]) -> None:
    """Gradients are an operator of their own, so that graphs hold them whole."""
    count, name = len(operator.inputs), f"{operator.name}_backward"
    arguments = operator.schema.removeprefix("(").partition(" -> ")[0]
    results = ", ".join(["Tensor"] * count)
    _define(name, gradients, f"(Tensor grad, {arguments} -> ({results})")
    backward = getattr(torch.ops.carafe, name)

    def fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[:count])

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.attributes = inputs[count:]

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = backward(grad, *ctx.saved_tensors, *ctx.attributes)
        return (*found, *[None] * len(ctx.attributes))

    torch.library.register_fake(f"{DOMAIN}::{name}", fake)
    torch.library.register_autograd(
        f"{DOMAIN}::{operator.name}", differentiate, setup_context=remember
    )


def _refuse(qualified: str, ctx: Any, *gradients: Tensor) -> None:
    """In torch's words."""
    raise RuntimeError(
        f"Trying to backward through {qualified.replace('::', '.')}.default but no autograd "
        "formula was registered. Please use register_autograd to add one."
    )
