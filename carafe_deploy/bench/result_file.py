"""Results of benchmarks as JSON files.

A file says which kind of result it holds (``kind``) and in which version of the layout of
:mod:`carafe_deploy.bench.record` (``schema``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carafe_deploy.bench.record import BenchResult, OperatorsResult
from carafe_deploy.brief import brief
from carafe_deploy.errors import ArtefactError
from carafe_deploy.files import atomic_write_text
from carafe_deploy.schema import SchemaError, parse, structure

__all__ = ["SCHEMA", "Result", "from_dict", "read_json", "read_result", "to_json", "write_result"]

#: Raised whenever the meaning of a field of a result changes.
SCHEMA = 1

Result = BenchResult | OperatorsResult

_KINDS: Mapping[str, type[Any]] = {"bench": BenchResult, "operators": OperatorsResult}


def write_result(path: str | os.PathLike[str], result: Result) -> None:
    """Write a result as JSON, atomically.

    Raises:
        OSError: the path is not writable.
    """
    atomic_write_text(path, to_json(result))


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read what :func:`write_result` wrote.

    Raises:
        ArtefactError: the file is missing, no result, or of another schema version.
    """
    return from_dict(read_json(path), str(path))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parsed, whatever it holds.

    Raises:
        ArtefactError: the file is missing or no JSON.
    """
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from error
    except SchemaError as error:
        raise ArtefactError(f"{path} is damaged ({error}): measure again") from error


def to_json(result: Result) -> str:
    """Indented, lists of numbers on one line."""
    [kind] = [name for name, layout in _KINDS.items() if isinstance(result, layout)]
    data = {"schema": SCHEMA, "kind": kind, **dataclasses.asdict(result)}
    text = json.dumps(_rounded(data), indent=1, allow_nan=False)
    numbers = re.compile(r"\[\s+(-?[\d.]+(?:e-?\d+)?(?:,\s+-?[\d.]+(?:e-?\d+)?)*)\s+\]")
    return numbers.sub(lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text) + "\n"


def from_dict(data: Any, name: str) -> Result:
    """Inverse of :func:`to_json` after parsing; ``name`` is for the error message.

    Raises:
        ArtefactError: see :func:`read_result`.
    """
    kind = data.get("kind") if isinstance(data, dict) else ""
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ArtefactError(
            f"{name} is no benchmark result: write one with `carafe-deploy bench ... -o FILE.json`"
        )
    if data.get("schema") != SCHEMA:
        raise ArtefactError(
            f"{name} has schema {brief(data.get('schema'))}, this version reads {SCHEMA}: "
            "measure again"
        )
    content = {key: value for key, value in data.items() if key not in ("schema", "kind")}
    try:
        result: Result = structure(_KINDS[kind], content)
    except SchemaError as error:
        raise ArtefactError(f"{name} is damaged ({error}): measure again") from error
    return result


def _rounded(value: Any) -> Any:
    """Six significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
