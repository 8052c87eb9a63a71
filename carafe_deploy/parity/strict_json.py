"""Numbers that JSON has no way to write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["decoded", "encoded"]

#: Keys whose values are texts, whatever they say.
_TEXTS = ("name", "note")


def encoded(value: Any) -> Any:
    """The same with lists for tuples and ``"inf"`` for what is not finite."""
    if isinstance(value, Mapping):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf"
    return value


def decoded(value: Any) -> Any:
    """Inverse of :func:`encoded`, but for the lists."""
    if isinstance(value, dict):
        return {key: item if key in _TEXTS else decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return math.inf if value == "inf" else value
