"""Reading JSON into dataclasses: what fits, and what each refusal names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from carafe_deploy.schema import INFINITE, OneOf, SchemaError, Within, parse, structure


@dataclass(frozen=True)
class Part:
    name: str
    size: Annotated[int, Within(1, 9)] = 1

    def check_fields(self) -> None:
        if self.name == "none":
            raise ValueError("name says there is none")


@dataclass(frozen=True)
class Whole:
    parts: Annotated[tuple[Part, ...], Within(1, 3)]
    pair: tuple[float, bool] = (0.5, True)
    error: Annotated[float, INFINITE] | None = None
    kind: Annotated[str, OneOf(("a", "b"))] = "a"
    counts: Mapping[str, int | None] = field(default_factory=dict)
    rest: Any = None


FULL = {
    "parts": [{"name": "x", "size": 9}, {"name": "y"}],
    "pair": [1, False],
    "error": "inf",
    "kind": "b",
    "counts": {"p": 1, "q": None},
    "rest": [1, {"z": [None, "t", 0.5]}],
}


def test_what_fits() -> None:
    found = structure(Whole, parse(json.dumps(FULL)))
    expected = Whole(
        (Part("x", 9), Part("y")), (1.0, False), math.inf, "b", {"p": 1, "q": None}, FULL["rest"]
    )
    assert found == expected
    assert isinstance(found.pair[0], float)
    assert structure(Whole, {"parts": [{"name": "x"}]}) == Whole((Part("x"),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": []}, r"parts is \[\], expected 1 to 3 entries"),
        ({"parts": {}}, r"parts is \{\}, expected a list"),
        ({"parts": [1]}, r"parts\[0\] is 1, expected an object"),
        ({"parts": [{}]}, r"parts\[0\]\.name is missing"),
        ({"parts": [{"name": "none"}]}, r"parts\[0\]: name says there is none"),
        ({"parts": [{"name": ["x"]}]}, r"parts\[0\]\.name is \['x'\], expected a text"),
        ({"parts": [{"name": "\ud800"}]}, r"name is '\\ud800', expected a text without lone"),
        ({"parts": [{"name": "x", "size": 0}]}, r"parts\[0\]\.size is 0, expected 1 to 9"),
        ({"parts": [{"name": "x", "size": True}]}, r"size is True, expected a whole number"),
        ({"parts": [{"name": "x", "size": 1.0}]}, r"size is 1\.0, expected a whole number"),
        ({"parts": [{"name": "x", "b c": 1}]}, r"parts\[0\]\.'b c' is unknown"),
        ({"pair": [1]}, r"pair is \[1\], expected 2 entries"),
        ({"pair": ["1", True]}, r"pair\[0\] is '1', expected a finite number"),
        ({"pair": [10**400, True]}, r"pair\[0\] is 1000.*, expected a finite number"),
        ({"pair": [math.inf, True]}, r"pair\[0\] is inf, expected a finite number"),
        ({"pair": [1, 1]}, r"pair\[1\] is 1, expected true or false"),
        ({"error": "-inf"}, r"error is '-inf', expected a finite number"),
        ({"kind": "c"}, r"kind is 'c', expected one of a, b"),
        ({"counts": [1]}, r"counts is \[1\], expected an object"),
        ({"counts": {"p": "1"}}, r"counts\.p is '1', expected a whole number"),
        ({"rest": [[math.nan]]}, r"rest is nan, expected a finite number"),
        ({"rest": json.loads("[" * 40 + "]" * 40)}, r"rest is nested deeper than 16 levels"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        structure(Whole, {**FULL, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON: Expecting value"),
        (b"\xff", "no JSON: .*utf-8"),
        ("[NaN]", "NaN is no number of JSON"),
        ("-Infinity", "-Infinity is no number of JSON"),
        ("[" * 200_000, "nested too deep"),
        ("1" * 5000, "no JSON: .*4300 digits"),
    ],
)
def test_what_is_no_json(text: str | bytes, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        parse(text)
