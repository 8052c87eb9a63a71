"""What a value is, in one line that a person reads: no weights, no thousand rows."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

#: Characters that a value takes at most.
LENGTH = 180
#: Of a single field.
_FIELD = 48
#: Items of a sequence that are shown, if they are short.
_ITEMS = 4


class OneLine:
    """For dataclasses with ``repr=False``: their fields in one line, large ones by their size."""

    __slots__ = ()

    def __repr__(self) -> str:
        name, shown = type(self).__qualname__, ""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if not field.repr:
                continue
            text = f"{field.name}={brief(getattr(self, field.name))}"
            if len(name) + len(shown) + len(text) + len("(, , ...)") > LENGTH:
                return f"{name}({shown}, ...)"
            shown += f", {text}" if shown else text
        return f"{name}({shown})"


def brief(value: Any) -> str:
    """A value in at most 48 characters: numbers and short texts as they are, the rest by size."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return _cut(f"{str(dtype).removeprefix('torch.')}{list(shape)}")
    if value is None or isinstance(value, (bool, int, float, complex, enum.Enum)):
        return _cut(repr(value))
    if isinstance(value, (str, os.PathLike)):
        return _cut(repr(os.fspath(value)))
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return f"<{len(value)} entries>" if value else "{}"
    if isinstance(value, (Sequence, Set)):
        return _items(value)
    return f"<{type(value).__name__}>"


def _items(values: Sequence[Any] | Set[Any]) -> str:
    if len(values) <= _ITEMS and all(
        value is None or isinstance(value, (bool, int, float, str)) for value in values
    ):
        text = repr(values)
        if len(text) <= _FIELD and "\n" not in text:
            return text
    return f"<{len(values)} items>"


def _cut(text: str) -> str:
    return text if len(text) <= _FIELD else f"{text[: _FIELD - 3]}..."
