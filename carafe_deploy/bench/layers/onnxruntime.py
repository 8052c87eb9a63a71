"""ONNX Runtime's profile by node.

A ``carafe`` node that a kernel computes has a row like any other. In the place of one without,
ONNX Runtime has the nodes of its function body. Their names begin with
``_inlfunc_<operator>``, from the second call of an operator on followed by ``_token_<number>``;
numbers grow in the order of the file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnxruntime

from carafe_deploy.bench.record import Layer
from carafe_deploy.errors import UnsupportedLevelError
from carafe_deploy.operators import BY_ONNX_NAME
from carafe_deploy.runners.base import Array
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner

__all__ = ["node_rows"]

_SUFFIX = "_kernel_time"
_BODY = re.compile(rf"_inlfunc_({'|'.join(BY_ONNX_NAME)})(?:_token_(\d+))?_")
#: Operator, and number of its call; -1 for the first.
_Call = tuple[str, int]


def node_rows(runner: OnnxRuntimeRunner, inputs: Mapping[str, Array], runs: int) -> list[Layer]:
    """One row a node, and one for all nodes of a ``carafe`` node's body, under its name.

    Raises:
        UnsupportedLevelError: the runner does not profile, or names nodes in another way.
        BackendUnavailableError: the onnx package is missing.
    """
    return aggregate(runner.profile(inputs, runs), runner.custom_nodes(), runs)


def aggregate(
    events: Iterable[Mapping[str, Any]], custom_nodes: Sequence[tuple[str, str]], runs: int
) -> list[Layer]:
    """Rows from the profiler's events.

    Args:
        events: of so many runs.
        custom_nodes: name and operator of the ``carafe`` nodes, in the order of the file.
        runs: to take the mean of.
    """
    microseconds: dict[str | _Call, int] = defaultdict(int)
    kinds: dict[str | _Call, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_SUFFIX):
            continue
        name = event["name"].removesuffix(_SUFFIX)
        body = _BODY.search(name)
        key = name if body is None else (body[1], int(body[2] or -1))
        microseconds[key] += event["dur"]
        kinds[key] = event["args"]["op_name"] if body is None else body[1]
    by_body = [node for node in custom_nodes if node[0] not in kinds]
    names = _names([key for key in kinds if isinstance(key, tuple)], by_body)
    rows = []
    for key, spent in microseconds.items():
        operator = kinds[key] if isinstance(key, tuple) or kinds[key] in BY_ONNX_NAME else ""
        name = names[key] if isinstance(key, tuple) else key
        rows.append(Layer(name, kinds[key], spent / runs / 1e3, operator))
    return rows


def _names(calls: Sequence[_Call], custom_nodes: Sequence[tuple[str, str]]) -> Mapping[_Call, str]:
    """The node that each call's body stands for."""
    names: dict[_Call, str] = {}
    for operator in {operator for _, operator in custom_nodes}:
        found = sorted(call for call in calls if call[0] == operator)
        nodes = [name for name, kind in custom_nodes if kind == operator]
        if len(found) != len(nodes):
            raise UnsupportedLevelError(
                f"of {len(nodes)} {operator} nodes in the file the profile of ONNX Runtime "
                f"{onnxruntime.__version__} tells {len(found)} apart: profile the checkpoint"
            )
        names.update(zip(found, nodes, strict=True))
    return names
