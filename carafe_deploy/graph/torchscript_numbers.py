"""Numbers in a TorchScript trace, which the tracer writes as tensors on the CPU.

To the tracer a tensor's size, and the 0.5 in ``x * 0.5``, are tensors without dimensions. Most
operators take those on the CPU beside others on a GPU, some refuse (``clamp`` is one), and each
makes a copy of its own. Numbers are on no device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from carafe_deploy.errors import ExportError

__all__ = ["check_portable", "numbers_for_tensors"]

#: What the tracer makes of the numbers of Python. Other types are a program's own tensors, which
#: compute by rules of their own.
_TRACED = (torch.int64, torch.float64)
#: Of two numbers, also where they stand for tensors.
_ARITHMETIC = ("aten::add", "aten::sub", "aten::mul")
#: A tensor without dimensions becomes a number, which it is already.
_CONVERSIONS = ("aten::Int", "aten::Float", "aten::ScalarImplicit")


def numbers_for_tensors(traced: torch.jit.ScriptModule) -> None:
    """Replace tensors that stand for numbers, in place; results stay the same to the bit.

    A tensor that is handed from one module to another, or to what takes tensors only, stays, as
    does one that was none of the tracer's making; :func:`check_portable` finds it.
    """
    for module in traced.modules():
        methods: Any = module._c
        for name in methods._method_names():
            _replace(methods._get_method(name).graph)


def _replace(graph: Any) -> None:
    numbers: dict[str, Any] = {}  # by the name of the tensor
    replaced = []
    for node in list(graph.nodes()):
        graph.setInsertPoint(node)
        given = [numbers.get(value.debugName()) for value in node.inputs()]
        kind, number = node.kind(), None
        if kind == "prim::Constant" and _is_tensor(node):
            number = _constant(graph, node)
        elif kind == "prim::NumToTensor":
            number = node.inputsAt(0)
        elif kind in _ARITHMETIC and None not in given[:2] and _has_no_factor(node):
            number = _compute(graph, kind, given[:2])
        elif kind in _CONVERSIONS and given[0] is not None:
            node.output().replaceAllUsesWith(given[0])
            replaced.append(node)
        elif any(given):
            _hand_over(node, given)
        if number is not None:
            numbers[node.output().debugName()] = number
            replaced.append(node)
    for node in reversed(replaced):
        if not node.output().uses():
            node.destroy()
    graph.lint()


def _is_tensor(node: Any) -> bool:
    kind: str = node.output().type().kind()
    return kind == "TensorType"


def _constant(graph: Any, node: Any) -> Any:
    value = node.output().toIValue()  # not a tensor where the tracer made it of a number
    if not isinstance(value, torch.Tensor):
        return graph.insertConstant(value)
    if value.dim() or value.dtype not in _TRACED:
        return None
    return graph.insertConstant(value.item())


def _has_no_factor(node: Any) -> bool:
    """There is no ``alpha``, the third argument of sums, or it is 1."""
    inputs = list(node.inputs())
    return len(inputs) < 3 or inputs[2].toIValue() == 1


def _compute(graph: Any, kind: str, operands: list[Any]) -> Any:
    number = graph.insertNode(graph.create(kind, operands, 1)).output()
    whole = all(operand.type().kind() == "IntType" for operand in operands)
    number.setType(torch._C.IntType.get() if whole else torch._C.FloatType.get())
    return number


def _hand_over(node: Any, numbers: list[Any]) -> None:
    """Give a node numbers for its tensors, if there is such an operator."""
    before = list(node.inputs())
    for position, number in enumerate(numbers):
        if number is not None:
            node.replaceInput(position, number)
    if node.schema() == "(no schema)":
        for position, value in enumerate(before):
            node.replaceInput(position, value)


def check_portable(traced: torch.jit.ScriptModule, methods: tuple[str, ...]) -> None:
    """Nothing that a method computes is on a device of the trace's choice.

    Raises:
        ExportError: something is, so that the file would run there only.
    """
    for method in methods:
        for node, what in _bound(getattr(traced, method).inlined_graph):
            used = ", ".join(str(use.user).strip() for use in node.output().uses())
            raise ExportError(
                f"the trace {what}, so the file would run there only: {str(node).strip()}, taken "
                f"by {used}"
            )


def _bound(graph: Any) -> Iterator[tuple[Any, str]]:
    for node in graph.nodes():
        if node.kind() == "prim::NumToTensor":
            yield node, "makes a number a tensor on the CPU"
        elif node.kind() == "prim::Constant":
            if _is_tensor(node):
                yield node, "holds a tensor on the CPU"
            elif node.output().type().kind() == "DeviceObjType":
                yield node, "names a device"
