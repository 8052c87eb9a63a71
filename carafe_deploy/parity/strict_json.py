"""Numbers that JSON has no way to write."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["decoded", "to_json"]

#: Keys whose values are texts, whatever they say.
_TEXTS = ("name", "note")


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


def decoded(value: Any) -> Any:
    """Parsed JSON with its infinities."""
    if isinstance(value, dict):
        return {key: item if key in _TEXTS else decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return math.inf if value == "inf" else value
