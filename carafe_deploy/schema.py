"""JSON as dataclasses, checked once: types and ranges stand in the dataclass's annotations.

What was written by an earlier version may lack fields that have a default, unless the class says
``always_whole = True``: then every version has written all of them but ``may_lack``. Nothing is
converted but lists into tuples and whole numbers into floats: whatever else a file holds is
refused, by the name of the field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn, TypeVar, Union

from carafe_deploy.brief import OneLine, brief

__all__ = ["INFINITE", "OneOf", "SchemaError", "Within", "parse", "structure"]

_T = TypeVar("_T")

#: Levels of objects and lists in a field that takes any JSON.
_DEPTH = 16


class SchemaError(ValueError):
    """A value is not what its field takes; the message names field, value and what fits."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included; of a text, list or object those of its length."""

    low: float
    high: float

    def check(self, value: Any, where: str) -> None:
        """Raise SchemaError unless the value lies within."""
        number = isinstance(value, (int, float))
        if not self.low <= (value if number else len(value)) <= self.high:
            unit = "" if number else " characters" if isinstance(value, str) else " entries"
            raise _wrong(where, value, f"{self.low:g} to {self.high:g}{unit}")


@dataclass(frozen=True, repr=False)
class OneOf(OneLine):
    """The values of a text."""

    values: tuple[str, ...]

    def check(self, value: Any, where: str) -> None:
        """Raise SchemaError unless the value is one of them."""
        if value not in self.values:
            raise _wrong(where, value, f"one of {', '.join(self.values)}")


#: In Annotated[float, ...]: the text "inf", which is how strict JSON holds infinity, fits too.
INFINITE: Final = "infinite"


def parse(text: str | bytes) -> Any:
    """JSON in UTF-8, strictly: no NaN, no nesting beyond what Python can walk.

    Raises:
        SchemaError: it is none.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise SchemaError("it is nested too deep") from error
    except SchemaError:
        raise
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise SchemaError(f"it is no JSON: {error}") from error


def structure(kind: type[_T], data: object, name: str = "it") -> _T:
    """A dataclass from parsed JSON.

    A class's method ``check_fields()``, if it has one, raises ValueError where fields do not fit
    each other.

    Args:
        kind: the dataclass.
        data: objects become dataclasses or mappings, lists become tuples.
        name: of the whole, for messages.

    Raises:
        SchemaError: a field is missing, unknown, or holds what it does not take.
    """
    found: _T = _record(kind, data, "", name)
    return found


def _record(kind: Any, data: object, where: str, whole: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(where or whole, data, "an object")
    fields = _fields(kind)
    for key in data:
        if key not in fields:
            raise SchemaError(f"{_inside(where, key)} is unknown")
    values = {}
    for key, (annotation, required) in fields.items():
        if key in data:
            values[key] = _value(annotation, data[key], _inside(where, key))
        elif required:
            raise SchemaError(f"{_inside(where, key)} is missing")
    made = kind(**values)
    if hasattr(made, "check_fields"):
        try:
            made.check_fields()
        except ValueError as error:
            raise SchemaError(f"{where}: {error}" if where else str(error)) from error
    return made


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Annotation of each field by name, and whether it must be given."""
    hints = typing.get_type_hints(kind, include_extras=True)
    nothing, always = dataclasses.MISSING, getattr(kind, "always_whole", False)
    lacking = getattr(kind, "may_lack", ())
    return {
        field.name: (
            hints[field.name],
            (always and field.name not in lacking)
            or (field.default is nothing and field.default_factory is nothing),
        )
        for field in dataclasses.fields(kind)
    }


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        kind, *rules = arguments
        if data == "inf" and INFINITE in rules:
            return math.inf
        value = _value(kind, data, where)
        for rule in rules:
            if isinstance(rule, (OneOf, Within)):
                rule.check(value, where)
        return value
    if kind is Any:
        return _plain(data, where, _DEPTH)
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where, where)
    if origin in (Union, types.UnionType):
        return _union(arguments, data, where)
    if origin is tuple:
        return _tuple(arguments, data, where)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _wrong(where, data, "an object")
        return {
            _text(key, where): _value(arguments[1], item, _inside(where, key))
            for key, item in data.items()
        }
    return _scalar(kind, data, where)


def _union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    for kind in others[:-1]:
        try:
            return _value(kind, data, where)
        except SchemaError:
            continue
    return _value(others[-1], data, where)


def _tuple(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _wrong(where, data, "a list")
    if kinds[1:] == (...,):
        kinds = (kinds[0],) * len(data)
    if len(data) != len(kinds):
        raise _wrong(where, data, f"{len(kinds)} entries")
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_value(kind, item, f"{where}[{index}]") for index, (kind, item) in pairs)


_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
}


def _scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is str:
        return _text(data, where)
    fits = isinstance(data, (int, float) if kind is float else kind)
    if not fits or (isinstance(data, bool) and kind is not bool):
        raise _wrong(where, data, _NAMES[kind])
    if kind is float:
        try:
            data = float(data)
        except OverflowError as error:
            raise _wrong(where, data, _NAMES[kind]) from error
        if not math.isfinite(data):
            raise _wrong(where, data, _NAMES[kind])
    return data


def _text(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise _wrong(where, data, _NAMES[str])
    try:
        data.encode()
    except UnicodeEncodeError as error:
        raise _wrong(where, data, "a text without lone surrogates") from error
    return data


def _plain(data: Any, where: str, depth: int) -> Any:
    """Any JSON, as it is."""
    if depth == 0:
        raise SchemaError(f"{where} is nested deeper than {_DEPTH} levels")
    if isinstance(data, dict):
        return {_text(key, where): _plain(item, where, depth - 1) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(item, where, depth - 1) for item in data]
    if isinstance(data, str):
        return _text(data, where)
    return _scalar(float, data, where) if isinstance(data, float) else data


def _inside(where: str, key: object) -> str:
    # As messages show it: a key may be anything.
    name = key if isinstance(key, str) and key.isidentifier() else brief(key)
    return f"{where}.{name}" if where else str(name)


def _wrong(where: str, value: Any, expected: str) -> SchemaError:
    shown = brief(list(value) if isinstance(value, tuple) else value)
    return SchemaError(f"{where} is {shown}, expected {expected}")


def _refuse_constant(text: str) -> NoReturn:
    raise SchemaError(f"{text} is no number of JSON")
