"""The table of tolerances: complete, ordered, explained, and tight enough to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carafe_deploy.tolerances import TOLERANCES, Tolerance, coarsest, tolerance
from carafe_deploy.types import DTYPES

ROWS = [
    pytest.param(kind, precision, id=f"{kind[0]}-{kind[1]}-{precision}")
    for kind in TOLERANCES
    for precision in TOLERANCES[kind]
]


def _slack(limit: Tolerance, value: float) -> float:
    """How far a value is from perfect."""
    return 1 - value if limit.measure in ("matched", "iou") else value


@pytest.mark.parametrize(("kind", "precision"), ROWS)
def test_a_tolerance_is_above_what_was_seen_and_within_reach_of_it(
    kind: tuple[str, str], precision: str
) -> None:
    limit = TOLERANCES[kind][precision]
    seen = max(_slack(limit, limit.seen), limit.quantum)
    assert limit.accepts(limit.seen)
    assert _slack(limit, limit.value) <= 50 * seen


@pytest.mark.parametrize("kind", TOLERANCES, ids=lambda kind: "-".join(kind))
def test_coarser_precisions_are_allowed_no_less(kind: tuple[str, str]) -> None:
    limits = list(TOLERANCES[kind].values())
    slacks = [_slack(limit, limit.value) for limit in limits]
    assert slacks == sorted(slacks)
    assert len({limit.measure for limit in limits}) == 1
    assert limits[0].reason


@pytest.mark.parametrize(
    ("measure", "found", "accepted"),
    [
        ("relative", 0.1, True),
        ("relative", 0.11, False),
        ("absolute", float("nan"), False),
        ("absolute", float("inf"), False),
        ("matched", 0.1, True),
        ("matched", 0.09, False),
        ("iou", 1.0, True),
        ("iou", float("nan"), False),
    ],
)
def test_what_a_limit_accepts(measure: str, found: float, accepted: bool) -> None:
    assert Tolerance(0.1, measure, 0.0, "").accepts(found) is accepted


def test_the_coarser_precision_of_a_pair_decides() -> None:
    assert coarsest("fp32", "fp16") == coarsest("fp16", "fp16") == "fp16"
    assert coarsest("bf16", "fp32", "fp16") == "bf16"
    assert tolerance("stages", "rpn", "fp16").value > tolerance("stages", "rpn").value


def test_tf32_is_coarser_than_float32_and_finer_than_half() -> None:
    assert coarsest("fp32", "tf32") == "tf32"
    assert coarsest("tf32", "fp16") == "fp16"
    assert tolerance("detections", "iou", "tf32").value < tolerance("detections", "iou").value


def test_what_is_quantized_is_held_to_detections_and_ap() -> None:
    assert coarsest("bf16", "int8") == "int8"
    assert {kind[0] for kind, row in TOLERANCES.items() if "int8" in row} == {"detections", "ap"}
    assert all(set(DTYPES) <= set(row) for row in TOLERANCES.values())


def test_an_unknown_row_is_an_error() -> None:
    with pytest.raises(KeyError):
        tolerance("stages", "gradients")


def test_what_was_measured_is_no_worse_than_what_the_table_calls_seen() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "tolerances.json"
    measured = json.loads(path.read_text(encoding="utf-8"))
    assert measured["images"] == 100
    rows = {(row["level"], row["kind"], row["precision"]): row["seen"] for row in measured["rows"]}
    assert {level for level, _, _ in rows} == {"operators", "stages", "detections", "ap"}
    assert {precision for _, _, precision in rows} == {"fp32", "fp16", "bf16"}
    for (level, kind, precision), value in rows.items():
        limit = tolerance(level, kind, precision)
        # The table has two digits.
        assert _slack(limit, value) <= 1.05 * _slack(limit, limit.seen) + 1e-9, (level, kind)
