"""Every public class is printed in one line."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import carafe_deploy
from carafe_deploy.brief import brief


def public_dataclasses() -> Iterator[type]:
    """Of all modules that can be imported here."""
    for module in pkgutil.walk_packages(carafe_deploy.__path__, "carafe_deploy."):
        if module.name.endswith("__main__"):
            continue
        imported = pytest.importorskip(module.name)
        for name, value in vars(imported).items():
            own = inspect.isclass(value) and value.__module__ == module.name
            if own and not name.startswith("_") and dataclasses.is_dataclass(value):
                yield value


class Large:
    """Whatever has no name below."""

    def __repr__(self) -> str:
        return "Large(\n" + "1234,\n" * 1000 + ")"


_PLAIN = {"int": 1234567, "float": 0.12345678901234567, "bool": False, "str": "a name of some"}


def _large(annotation: str) -> Any:
    """As large a value of an annotated type as there is in use."""
    annotation = annotation.removesuffix(" | None")
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    fixed = re.fullmatch(r"tuple\[((?:int|float|str)(?:, (?:int|float|str))*)\]", annotation)
    if fixed:
        return tuple(_PLAIN[name] for name in fixed[1].split(", "))
    if "NDArray" in annotation or "Tensor" in annotation[:6]:
        return np.zeros((500, 4), np.float32)
    if annotation.startswith(("Mapping", "dict")):
        return {f"layer{index}.weight": np.zeros((9, 9)) for index in range(300)}
    if annotation.startswith(("tuple", "list", "Sequence")):
        return tuple(Large() for _ in range(300))
    return Large()


def _hints(kind: type) -> dict[str, str]:
    """Annotations without what limits their values; none where torch or onnx would be needed."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:
        return {}
    return {name: _without_none(hint) for name, hint in hints.items()}


def _without_none(hint: Any) -> str:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if type(None) in typing.get_args(hint) and len(kinds) == 1:
        hint = kinds[0]
    return hint.__name__ if hint in (int, float, bool, str) else str(hint).replace("typing.", "")


def test_no_public_dataclass_prints_its_content() -> None:
    found = {value.__module__ + "." + value.__qualname__: value for value in public_dataclasses()}
    assert len(found) > 60
    long = {}
    for name, kind in found.items():
        value = object.__new__(kind)
        hints = _hints(kind)
        for field in dataclasses.fields(kind):
            object.__setattr__(value, field.name, _large(hints.get(field.name, str(field.type))))
        text = repr(value)
        if "\n" in text or "array(" in text or len(text) >= 200:
            long[name] = len(text)
        assert text.startswith(f"{kind.__qualname__}(")
    assert long == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (None, "None"),
        ("photo.jpg", "'photo.jpg'"),
        ("two\nlines", r"'two\nlines'"),
        ("x" * 99, "'" + "x" * 44 + "..."),
        (Path("a/b.onnx"), "'a/b.onnx'"),
        (b"12345", "<5 bytes>"),
        (np.zeros((2, 3), np.float32), "float32[2, 3]"),
        ((1, 2.5), "(1, 2.5)"),
        ((1, 2, 3, 4, 5), "<5 items>"),
        ((), "()"),
        (("cat", "dog"), "('cat', 'dog')"),
        ((np.zeros(3),), "<1 items>"),
        ({"a": 1}, "<1 entries>"),
        ({}, "{}"),
        (Large(), "<Large>"),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert brief(value) == text
