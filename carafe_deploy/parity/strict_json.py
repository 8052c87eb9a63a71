"""Numbers that JSON has no way to write."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from carafe_deploy.schema import INFINITE

__all__ = ["Error", "to_json", "without_derived"]

#: A number that may be infinite.
Error = Annotated[float, INFINITE]


def to_json(found: Any, parts: str, **derived: Any) -> str:
    """A comparison as strict JSON; an infinite error becomes the string ``"inf"``.

    Args:
        found: a dataclass with a verdict.
        parts: name of its field whose entries have verdicts of their own.
        derived: more that follows from it.
    """
    data = {"passed": found.passed, "state": found.state, **derived, **dataclasses.asdict(found)}
    for entry, part in zip(data[parts], getattr(found, parts), strict=True):
        entry["state"] = part.state
    return json.dumps(_encoded(data), indent=2, allow_nan=False)


def _encoded(value: Any) -> Any:
    """The same with lists for tuples and ``"inf"`` for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf"
    return value


def without_derived(data: Any, parts: str, derived: Collection[str]) -> Any:
    """Parsed JSON without what follows from the rest, and is not read.

    Verdicts in a word are not in files of earlier versions.
    """
    if not isinstance(data, dict):
        return data
    data = {name: value for name, value in data.items() if name not in (*derived, "state")}
    if isinstance(data.get(parts), list):
        data[parts] = [
            {name: value for name, value in part.items() if name != "state"}
            if isinstance(part, dict)
            else part
            for part in data[parts]
        ]
    return data
