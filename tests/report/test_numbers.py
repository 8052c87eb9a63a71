"""Numbers for people."""

from __future__ import annotations

import pytest

from carafe_deploy.bench.statistics import Ratio
from carafe_deploy.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00412, "0.00412"),
        (0.31, "0.310"),
        (9.876, "9.88"),
        (12.34, "12.3"),
        (4123.4, "4123"),
    ],
)
def test_significant_digits(value: float, text: str) -> None:
    assert numbers.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (999.4, "999"), (51_234.0, "51,200"), (1000.0, "1,000")]
)
def test_large_numbers(value: float, text: str) -> None:
    assert numbers.large(value) == text


def test_a_column_has_the_decimals_of_its_smallest_number() -> None:
    assert numbers.column([123.456, None, 4.5678]) == ["123.46", "–", "4.57"]
    assert numbers.column([None]) == ["–"]
    assert numbers.column([0.0, 250.0]) == ["0", "250"]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(0.5, 0.49, 0.51), "0.500 [0.490–0.510]"),
        (Ratio(1.004, 0.998, 1.01), "1.004 [0.998–1.010] ≈"),
        (Ratio(12.34, 12.0, 12.6), "12.3 [12.0–12.6]"),
        (Ratio(0.00412, 0.004, 0.0043), "0.00412 [0.00400–0.00430]"),
    ],
)
def test_intervals(ratio: Ratio, text: str) -> None:
    assert numbers.interval(ratio) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (1.26e-5, "1.3e-05"), (float("inf"), "inf")]
)
def test_errors(value: float | None, text: str) -> None:
    assert numbers.scientific(value) == text
