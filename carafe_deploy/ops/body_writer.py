"""Write ONNX function bodies as one would write NumPy: a call a node, names as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from carafe_deploy.operators.specification import PLUGIN_ATTRIBUTES, Operator
from carafe_deploy.types import DOMAIN

__all__ = ["FLOAT", "INT32", "INT64", "BodyWriter", "Given", "Value"]

FLOAT, INT32, INT64 = int(TensorProto.FLOAT), int(TensorProto.INT32), int(TensorProto.INT64)

#: Name of a value, or what becomes a constant: an int or list of ints a 1-D int64 tensor (shapes
#: are 1-D), a float a float32 scalar, an array one of its own shape and dtype.
Value = str | int | float | Sequence[int] | npt.NDArray[Any]


@dataclass(frozen=True)
class Given:
    """An attribute of the node that calls the function, as attribute of a node inside.

    Attributes:
        name: of the function's attribute.
        kind: its type, of :class:`onnx.AttributeProto`.
    """

    name: str
    kind: int = onnx.AttributeProto.INT


class BodyWriter:
    """Collects the nodes of one function; ``y = body.Add(x, 1)`` appends a node and names it.

    Every operator of the standard domain is a method. Keyword arguments are its attributes, values
    or :class:`Given`, except ``out``: the name of the result, or the number of results if there are
    several.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def append(*inputs: Value, out: str | int = 1, **attributes: Any) -> str | list[str]:
            names = [self._name(value) for value in inputs]
            stem = f"{op_type.lower()}_{len(self._nodes)}"
            if isinstance(out, str):
                outputs = [out]
            else:
                outputs = [stem] if out == 1 else [f"{stem}_{i}" for i in range(out)]
            given = {k: v for k, v in attributes.items() if isinstance(v, Given)}
            values = {k: v for k, v in attributes.items() if k not in given}
            node = helper.make_node(op_type, names, outputs, name=stem, **values)
            for name, value in given.items():
                node.attribute.add(name=name, type=value.kind, ref_attr_name=value.name)
            self._nodes.append(node)
            return outputs[0] if len(outputs) == 1 else outputs

        return append

    def _name(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, float):
            array: npt.NDArray[Any] = np.array(value, np.float32)
        elif isinstance(value, np.ndarray):
            array = value
        else:
            array = np.atleast_1d(np.array(value, np.int64))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            tensor = numpy_helper.from_array(array, name)
            self._nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return self._constants[key]

    def given(self, name: str) -> str:
        """An integer attribute of the calling node as a 1-D tensor of one element."""
        value: str = self.Unsqueeze(self.Constant(value_int=Given(name), out=name), 0)
        return value

    def given_float(self, name: str) -> str:
        """A float attribute of the calling node as a float32 scalar."""
        kind = onnx.AttributeProto.FLOAT
        value: str = self.Constant(value_float=Given(name, kind), out=name)
        return value

    def called_with(self, **attributes: int | Sequence[int]) -> str:
        """[1] int64: 1 where the calling node has these attributes, else 0.

        An ONNX Runtime before 1.27 takes one body for all nodes of an operator; multiplied into a
        shape, this stops it where that is the wrong one.
        """
        given, expected = [], []
        for name, value in attributes.items():
            if isinstance(value, int):
                given.append(self.given(name))
                expected.append(value)
            else:
                kind = onnx.AttributeProto.INTS
                given.append(self.Constant(value_ints=Given(name, kind), out=name))
                expected += value
        same = self.Equal(self.Concat(*given, axis=0), expected)
        result: str = self.ReduceMin(self.Cast(same, to=INT64), 0)
        return result

    def dims(self, value: str, count: int) -> list[str]:
        """The first ``count`` dimensions of a value, each a 1-D tensor of one element."""
        return [self.Shape(value, start=axis, end=axis + 1) for axis in range(count)]

    def reshape(self, value: str, *shape: str | int, out: str | int = 1) -> str:
        """Reshape to explicit dimensions, which may be zero; ints and 1-D tensors mix."""
        target = shape[0] if len(shape) == 1 else self.Concat(*shape, axis=0)
        name: str = self.Reshape(value, target, out=out, allowzero=1)
        return name

    def arange(self, count: str) -> str:
        """[count] int64: 0, 1, ..., count - 1; ``count`` is a 1-D tensor of one element."""
        name: str = self.Range(np.array(0), self.Squeeze(count), np.array(1))
        return name

    def function(
        self, operator: Operator, *, opset: int, overload: str = "", tensors: int = 0
    ) -> onnx.FunctionProto:
        """Close the body of an operator with so many inputs, where that is not always the same."""
        function = helper.make_function(
            DOMAIN,
            operator.onnx_name,
            [each.name for each in operator.flat_inputs(tensors)],
            [each.name for each in operator.outputs],
            self._nodes,
            [helper.make_opsetid("", opset)],
            [*operator.attributes, *PLUGIN_ATTRIBUTES],
        )
        function.overload = overload
        return function
