"""Lists of tensors in a TorchScript trace: each call of an operator gets one of its own.

Operators in C++ that are registered through torch's stable interface take the tensors out of the
list that they are given, so a second call with the same list would find none. Two lists of the same
tensors become one, by the tracer and again when the file runs, so they have to differ: their first
tensors are aliases.
"""

from __future__ import annotations

from typing import Any

import torch

from carafe_deploy.operators import OPERATORS
from carafe_deploy.types import DOMAIN

__all__ = ["own_lists"]

_CALLS = tuple(
    f"{DOMAIN}::{name}"
    for name, operator in OPERATORS.items()
    if any(each.many for each in operator.inputs)
)


def own_lists(traced: torch.jit.ScriptModule) -> None:
    """Give every call of our operators lists that no other call has, in place."""
    count = 0
    for module in traced.modules():
        methods: Any = module._c
        for name in methods._method_names():
            graph = methods._get_method(name).graph
            for kind in _CALLS:
                for node in graph.findAllNodes(kind):
                    _own(graph, node, count)
                    count += 1
            graph.lint()


def _own(graph: Any, node: Any, aliases: int) -> None:
    """Lists that are made for a call have so many aliases of their first tensor."""
    for index, given in enumerate(list(node.inputs())):
        made = given.node()
        if made.kind() != "prim::ListConstruct" or not _holds_tensors(given):
            continue
        graph.setInsertPoint(node)
        first, *others = made.inputs()
        for _ in range(aliases):
            alias = graph.insertNode(graph.create("aten::alias", [first], 1)).output()
            alias.setType(first.type())
            first = alias
        own = graph.insertNode(graph.create("prim::ListConstruct", [first, *others], 1)).output()
        own.setType(given.type())
        node.replaceInput(index, own)
        if not given.uses():
            made.destroy()


def _holds_tensors(value: Any) -> bool:
    return bool(value.type().isSubtypeOf(torch._C.ListType.ofTensors()))
