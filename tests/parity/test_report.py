"""The report: verdict and JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from carafe_deploy.errors import ArtefactError
from carafe_deploy.parity.report import ParityReport, ParityRow

ROW = ParityRow(
    level="stages",
    name="P2",
    max_abs_error=1e-6,
    max_rel_error=2.5e-7,
    matched=7,
    total=8,
    tolerance=1e-5,
    measure="relative",
    passed=True,
    note="inf",
    details={"borderline": 1, "min_mask_iou": None},
)
REPORT = ParityReport((ROW,), "pytorch fp32 a", "onnxruntime fp16 a", images=2, seed=3)


def test_one_failed_row_fails_the_report() -> None:
    failed = dataclasses.replace(ROW, passed=False)
    report = dataclasses.replace(REPORT, rows=(ROW, failed))
    assert REPORT.passed
    assert not report.passed
    assert report.failures == (failed,)


def test_a_report_without_rows_proves_nothing() -> None:
    assert not dataclasses.replace(REPORT, rows=()).passed


def test_json_comes_back_as_it_was() -> None:
    assert ParityReport.from_json(REPORT.to_json()) == REPORT
    data = json.loads(REPORT.to_json())
    assert data["passed"] is True
    assert data["rows"][0]["max_rel_error"] == 2.5e-7
    assert data["rows"][0]["details"] == {"borderline": 1, "min_mask_iou": None}


def test_infinite_errors_survive_strict_json() -> None:
    row = dataclasses.replace(ROW, max_abs_error=math.inf, max_rel_error=None, passed=False)
    report = dataclasses.replace(REPORT, rows=(row,))

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    data = json.loads(report.to_json(), parse_constant=refuse)
    assert data["rows"][0]["max_abs_error"] == "inf"
    assert ParityReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"passed": true, "rows": [{"level": "x"}]}'])
def test_other_text_is_an_error(text: str) -> None:
    with pytest.raises(ArtefactError, match="this is no parity report"):
        ParityReport.from_json(text)
