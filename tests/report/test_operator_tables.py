"""Tables and roofline of single operators."""

from __future__ import annotations

import dataclasses

import pytest
from matplotlib.collections import PathCollection

from carafe_deploy.bench.record import OperatorRow, OperatorsResult
from carafe_deploy.report.html import page
from carafe_deploy.report.operator_tables import pivot_table
from carafe_deploy.report.plots import roofline
from carafe_deploy.report.sections import to_markdown
from tests.report.pages import Page


def row(implementation: str = "CPU kernel", **changes: object) -> OperatorRow:
    """One megabyte read and written, and eight operations a byte, in one millisecond."""
    plain = OperatorRow(
        operator="carafe",
        workload="neck P3",
        implementation=implementation,
        entry="carafe",
        dtype="float32",
        layout="nchw",
        samples_us=(1000.0, 900.0, 1100.0),
        num_bytes=1_000_000,
        flops=8_000_000,
        copy_us=500.0,
        max_error=2e-7,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def result(*rows: OperatorRow, **changes: object) -> OperatorsResult:
    """Of a machine that copies 2 GB/s and computes 100 GFLOP/s."""
    plain = OperatorsResult({}, {"rounds": "3"}, "cpu", "warm", 2e9, 100e9, rows)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


SLOW = row("PyTorch", samples_us=(4000.0,))
NMS = row(operator="nms", entry="batched_nms", layout="", flops=0, max_error=None)
MISSING = row("mmcv", samples_us=(), reason="mmcv is not installed")


def points(measured: OperatorsResult) -> int:
    """Markers in the roofline."""
    figure = roofline(measured)
    collections = figure.axes[0].collections
    return sum(len(c.get_offsets()) for c in collections if isinstance(c, PathCollection))


def test_table() -> None:
    lines = to_markdown([result(row(), SLOW)]).splitlines()
    assert "| float32 nchw | implementation | ms, median | CV | GB/s | GFLOP/s | over floor " in (
        "\n".join(lines)
    )
    # 1 MB in 1 ms is 1 GB/s; the floor is the copy's half millisecond.
    assert "| neck P3 | **CPU kernel** | 1.00 | 10.0% | 1.00 | 8.00 | 2.0 | 2.0e-07 |" in lines
    assert "|  | PyTorch | 4.00 | 0.0% | 0.250 | 2.00 | 8.0 | 2.0e-07 |" in lines


def test_arithmetic_can_be_the_floor() -> None:
    text = to_markdown([result(row(flops=80_000_000))])
    assert "| neck P3 | CPU kernel | 1.00 | 10.0% | 1.00 | 80.0 | 1.2 | 2.0e-07 |" in text


def test_verdict() -> None:
    text = to_markdown([result(row(), SLOW, NMS)])
    assert (
        "CARAFE: CPU kernel is fastest in 1 of 1 cases, 2.0 times the floor, 4.0 times as fast as "
        "PyTorch."
    ) in text
    assert "NMS: CPU kernel is fastest in 1 of 1 cases, 2.0 times the floor." in text


def test_only_like_is_compared() -> None:
    text = to_markdown([result(row(), dataclasses.replace(SLOW, dtype="float16"))])
    assert "as fast as PyTorch" not in text
    html = Page(page([result(row(), dataclasses.replace(SLOW, dtype="float16"))])).text
    assert "Other types and layouts" in html
    assert "neck P3, float16 nchw" in html


def test_rows_without_operations_are_not_in_the_roofline() -> None:
    assert points(result(row(), SLOW, NMS, MISSING)) == 2
    text = page([result(NMS)])
    assert "<svg" not in text
    assert "Roofline" not in text


def test_limits_of_the_machine() -> None:
    text = Page(page([result(row())])).text
    assert "copy 2.00 GB/s" in text
    assert "float32 100 GFLOP/s" in text
    assert "copying 2.00 GB/s, read and written" in text
    fast = result(row(), copy_bytes_per_second=2.9e12, flops_per_second=51.2e12)
    assert "float32 51,200 GFLOP/s" in Page(page([fast])).text


@pytest.mark.parametrize("unknown", ["copy_bytes_per_second", "flops_per_second"])
def test_a_limit_that_was_not_measured(unknown: str) -> None:
    assert points(result(row(), SLOW, **{unknown: 0.0})) == 2
    assert "neck P3" in to_markdown([result(row(), **{unknown: 0.0})])


def test_what_was_not_measured_says_why() -> None:
    failed = row("PyTorch", samples_us=(), workload="neck P2", reason="RuntimeError: no")
    lines = to_markdown([result(row(), SLOW, MISSING, failed)]).splitlines()
    assert "- mmcv: mmcv is not installed" in lines
    assert "- PyTorch, neck P2, carafe, float32 nchw: RuntimeError: no" in lines


def test_nothing_measured() -> None:
    assert "✗ No operator was measured." in to_markdown([result(MISSING)])
    assert "✗ No operator was measured." in to_markdown([result()])
    assert pivot_table(result(MISSING)).rows == ()


def test_short_table() -> None:
    encoded = row(entry="carafe_encoded", samples_us=(2000.0,))
    half = row(dtype="float16")
    table = pivot_table(result(row(), SLOW, encoded, half, NMS), "ms")
    assert table.header == ("ms", "CPU kernel", "PyTorch", "CPU kernel over floor")
    assert table.rows == (
        ("CARAFE, neck P3, carafe", "1.00", "4.00", "2.0"),
        ("CARAFE, neck P3, carafe_encoded", "2.00", "–", "4.0"),
        ("NMS, neck P3", "1.00", "–", "2.0"),
    )
