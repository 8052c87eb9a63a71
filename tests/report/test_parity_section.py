"""Comparisons in a report."""

from __future__ import annotations

import dataclasses
import math

from carafe_deploy.parity import ParityReport
from carafe_deploy.report.html import page
from carafe_deploy.report.sections import to_markdown
from tests.report.pages import Page
from tests.report.synthetic import parity


def test_all_within_tolerance() -> None:
    text = to_markdown([parity(), parity(candidate="torchscript fp32 shapes")])
    assert "✓ 2 comparisons: all 22 rows are within their tolerance." in text
    assert (
        "| torchscript fp32 shapes | pytorch fp32 shapes | 1e-06 | 1e-06, 997/1000 | 91/91 | 1e-05 "
        "| ✓ |"
    ) in text
    assert "| onnxruntime fp32 shapes | box AP | 0.7379 | 0.7379 | 1.0e-05 | ≤ 0.0005 | ✓ |" in text


def test_failures_are_named() -> None:
    text = to_markdown([parity(passed=False)])
    assert "✗ One comparison: 1 of 11 rows exceed their tolerance." in text
    assert (
        "- ✗ onnxruntime fp32 shapes, stages P6: error 4.2e+00, relative 3.1e-01, limit ≤ 5e-05"
    ) in text
    assert "- onnxruntime fp32 shapes, ap: there are no annotations" in text


def test_every_row_is_on_the_page() -> None:
    report = parity()
    text = Page(page([report])).text
    for row in report.rows:
        assert f"{row.level} {row.name}" in text


def test_not_a_number_is_infinitely_wrong() -> None:
    report = parity()
    row = dataclasses.replace(
        report.rows[0], max_abs_error=math.inf, max_rel_error=math.inf, passed=False
    )
    text = to_markdown([dataclasses.replace(report, rows=(row,))])
    assert "error inf, relative inf" in text


def test_nothing_compared_is_no_success() -> None:
    empty = ParityReport((), "a", "b", 0, 0, {"stages": "an engine has none"})
    assert "✗ One comparison: one compared nothing." in to_markdown([empty])


def test_rows_that_compared_nothing_are_listed() -> None:
    report = parity()
    rows = tuple(
        dataclasses.replace(row, passed=None, note="neither finds anything")
        if row.level == "detections"
        else row
        for row in report.rows
    )
    text = to_markdown([dataclasses.replace(report, rows=rows)])
    assert "✗ One comparison: 1 of 11 rows had nothing to compare." in text
    assert "Nothing to compare" in text
    assert "- ✗ onnxruntime fp32 shapes, detections boxes" in text
    assert "| nothing compared |" in text
