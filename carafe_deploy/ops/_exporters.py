"""What torch's two ONNX exporters make of the operators: one node each, with the plugin's names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from carafe_deploy.operators import OPERATORS
from carafe_deploy.operators.specification import PLUGIN_ATTRIBUTES, Argument, Operator
from carafe_deploy.types import DOMAIN, DOMAIN_VERSION

__all__ = ["dynamo_translations", "torchscript_symbolics"]


def dynamo_translations() -> dict[Any, Any]:
    """All entries for ``torch.onnx.export(dynamo=True, custom_translation_table=...)``."""
    return {
        getattr(torch.ops.carafe, name).default: _translation(operator)
        for name, operator in OPERATORS.items()
    }


def torchscript_symbolics() -> dict[str, Any]:
    """All symbolic functions for the TorchScript exporter, by qualified torch name."""
    return {f"{DOMAIN}::{name}": _symbolic(operator) for name, operator in OPERATORS.items()}


# --- dynamo --------------------------------------------------------------------------------------


def _translation(operator: Operator) -> Callable[..., Any]:
    names = [*(each.name for each in operator.inputs), *operator.attributes]

    def translate(*arguments: Any, **named: Any) -> Any:
        rest = (named[name] for name in names[len(arguments) :])
        tensors, attributes = _divided(operator, (*arguments, *rest))
        return _onnx_operator(operator, len(tensors))(*tensors, **attributes, **PLUGIN_ATTRIBUTES)

    kinds = {"INT": int, "FLOAT": float, "INTS": Any}
    attributes = {name: kinds[kind] for name, kind in operator.attributes.items()}
    return _with_parameters(translate, {each.name: Any for each in operator.inputs} | attributes)


def _onnx_operator(operator: Operator, inputs: int) -> Any:
    """An ``onnxscript.values.Op`` with so many inputs, to call inside a translation."""
    from onnx import defs
    from onnxscript import values

    schema = defs.OpSchema
    attributes = {**operator.attributes, **dict.fromkeys(PLUGIN_ATTRIBUTES, "STRING")}
    features = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"]

    def described(arguments: Sequence[Argument]) -> list[Any]:
        return [schema.FormalParameter(each.name, each.onnx_type) for each in arguments]

    return values.Op(
        values.Opset(DOMAIN, DOMAIN_VERSION),
        operator.onnx_name,
        schema(
            operator.onnx_name,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=described(operator.flat_inputs(inputs)),
            outputs=described(operator.outputs),
            type_constraints=[("T", features, "features")],
            attributes=[
                schema.Attribute(name, getattr(schema.AttrType, kind), required=True)
                for name, kind in attributes.items()
            ],
        ),
    )


# --- TorchScript ---------------------------------------------------------------------------------


def _symbolic(operator: Operator) -> Callable[..., Any]:
    from torch.onnx import symbolic_helper

    def build(g: Any, *arguments: Any) -> Any:
        given, attributes = _divided(operator, arguments)
        tensors = [*given[:-1], *_unpacked(given[-1])] if operator.inputs[-1].many else given
        named = {
            f"{name}_{_SUFFIXES[operator.attributes[name]]}": value
            for name, value in attributes.items()
        }
        plugin = {f"{name}_s": value for name, value in PLUGIN_ATTRIBUTES.items()}
        count = len(operator.outputs)
        results = g.op(
            f"{DOMAIN}::{operator.onnx_name}", *tensors, outputs=count, **named, **plugin
        )
        _set_types(operator, tensors, attributes, [results] if count == 1 else results)
        return results

    kinds: list[Any] = ["v"] * len(operator.inputs)
    kinds += [_PARSED[kind] for kind in operator.attributes.values()]
    names = ("g", *(each.name for each in operator.inputs), *operator.attributes)
    return symbolic_helper.parse_args(*kinds)(_with_parameters(build, dict.fromkeys(names, Any)))


_SUFFIXES = {"INT": "i", "INTS": "i", "FLOAT": "f"}
#: As ``symbolic_helper.parse_args`` calls the types.
_PARSED = {"INT": "i", "INTS": "is", "FLOAT": "f"}


def _unpacked(tensors: Any) -> Sequence[Any]:
    from torch.onnx import symbolic_helper

    unpacked: Sequence[Any] = symbolic_helper._unpack_list(tensors)
    return unpacked


def _set_types(
    operator: Operator, tensors: Sequence[Any], attributes: Any, results: Sequence[Any]
) -> None:
    """Types of the results; feature maps of unknown origin stay without sizes."""
    from torch.onnx import symbolic_helper

    sizes = [symbolic_helper._get_tensor_sizes(tensor) for tensor in tensors]
    arguments = operator.flat_inputs(len(tensors))
    known = [
        [None] * len(each.axes) if size is None else size
        for each, size in zip(arguments, sizes, strict=True)
    ]
    maps = (t for t, each in zip(tensors, arguments, strict=True) if each.is_feature_map)
    features = next(maps, tensors[0])
    shapes = operator.shapes(known, attributes)
    for result, each, shape in zip(results, operator.outputs, shapes, strict=True):
        if not each.is_feature_map:
            kind = tensors[0].type().with_dtype(getattr(torch, each.type))
            result.setType(kind.with_sizes(list(shape)))
        elif None not in sizes:
            result.setType(features.type().with_sizes(list(shape)))


# --- both ----------------------------------------------------------------------------------------


def _divided(operator: Operator, arguments: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Tensors, and attributes by name."""
    count = len(operator.inputs)
    tensors, values = list(arguments[:count]), arguments[count:]
    if operator.inputs[-1].many and isinstance(tensors[-1], (list, tuple)):
        tensors[-1:] = tensors[-1]
    attributes = {
        name: list(value) if operator.attributes[name] == "INTS" else value
        for name, value in zip(operator.attributes, values, strict=True)
    }
    return tensors, attributes


def _with_parameters(function: Any, types: dict[str, Any]) -> Any:
    """The exporters read a function's parameters to tell what they may hand over."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=value) for name, value in types.items()]
    )
    function.__annotations__ = dict(types)
    return function
