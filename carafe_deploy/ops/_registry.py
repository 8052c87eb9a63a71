"""Register torch operators and their ONNX counterparts in the namespace and domain `carafe`.

A torch operator may exist already, because ``libcarafe_torch.so`` defined the same schema in this
process; defining it twice aborts, so everything here goes through :func:`define`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from carafe_deploy.types import DOMAIN, DOMAIN_VERSION

__all__ = ["PLUGIN_ATTRIBUTES", "define", "onnx_operator"]

#: TensorRT's parser takes the plugin, and not the function body, for a node that names them.
PLUGIN_ATTRIBUTES: Mapping[str, str] = {"plugin_version": "1", "plugin_namespace": DOMAIN}


def define(name: str, function: Callable[..., Any]) -> Any:
    """Define ``carafe::name`` with ``function`` as its kernel on all devices.

    Args:
        name: torch name without namespace.
        function: typed as :func:`torch.library.custom_op` needs it; allocates its results and
            aliases nothing.
    Returns:
        The :class:`torch.library.CustomOpDef`, to add a fake kernel and autograd to.
    Raises:
        RuntimeError: the operator exists already; without this check torch would abort.
    """
    qualified = f"{DOMAIN}::{name}"
    if torch._C._dispatch_has_kernel(qualified):
        raise RuntimeError(
            f"torch operator {qualified} is registered already, most likely by "
            "libcarafe_torch.so: load either that library or carafe_deploy.ops, not both"
        )
    return torch.library.custom_op(qualified, function, mutates_args=())


def onnx_operator(
    name: str,
    *,
    inputs: tuple[tuple[str, str], ...],
    outputs: tuple[tuple[str, str], ...],
    attributes: tuple[tuple[str, str], ...],
) -> Any:
    """Describe ``carafe.name`` to the dynamo exporter.

    Args:
        name: ONNX operator type, e.g. ``"Carafe"``.
        inputs: (name, type) each; type ``"T"`` stands for float16, bfloat16 or float.
        outputs: likewise.
        attributes: (name, ``"INT"`` | ``"INTS"`` | ``"FLOAT"``) each.
    Returns:
        An ``onnxscript.values.Op`` to call inside a translation function.
    """
    from onnx import defs
    from onnxscript import values

    schema = defs.OpSchema
    kinds = {
        "INT": schema.AttrType.INT,
        "INTS": schema.AttrType.INTS,
        "FLOAT": schema.AttrType.FLOAT,
        "STRING": schema.AttrType.STRING,
    }
    return values.Op(
        values.Opset(DOMAIN, DOMAIN_VERSION),
        name,
        schema(
            name,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=[schema.FormalParameter(label, kind) for label, kind in inputs],
            outputs=[schema.FormalParameter(label, kind) for label, kind in outputs],
            type_constraints=[
                ("T", ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"], "features")
            ],
            attributes=[
                schema.Attribute(label, kinds[kind], required=True)
                for label, kind in (
                    *attributes,
                    *((label, "STRING") for label in PLUGIN_ATTRIBUTES),
                )
            ],
        ),
    )
