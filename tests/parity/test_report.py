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


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"passed": true, "rows": [{"level": "x"}]}', "[" * 200_000, "NaN"]
)
def test_other_text_is_an_error(text: str) -> None:
    with pytest.raises(ArtefactError, match="this is no parity report"):
        ParityReport.from_json(text)


@pytest.mark.parametrize(
    ("verdicts", "state"),
    [
        ([True, True], "passed"),
        ([True, None], "nothing compared"),
        ([None], "nothing compared"),
        ([], "nothing compared"),
        ([True, False], "failed"),
        ([None, False], "failed"),
    ],
)
def test_states(verdicts: list[bool | None], state: str) -> None:
    rows = tuple(dataclasses.replace(ROW, passed=passed) for passed in verdicts)
    report = dataclasses.replace(REPORT, rows=rows)
    assert report.state == json.loads(report.to_json())["state"] == state
    assert report.passed is (state == "passed")
    assert len(report.failures) == verdicts.count(False)
    assert len(report.uncompared) == verdicts.count(None)
    assert ParityReport.from_json(report.to_json()) == report


def test_a_report_of_an_earlier_version_is_read() -> None:
    data = json.loads(REPORT.to_json())
    for entry in (data, *data["rows"]):
        del entry["state"]
    del data["image_names"]
    assert ParityReport.from_json(json.dumps(data)) == REPORT


def test_a_report_prints_its_table() -> None:
    nothing = dataclasses.replace(
        ROW, level="detections", name="boxes", measure="matched", passed=None, max_abs_error=None
    )
    report = dataclasses.replace(
        REPORT, rows=(ROW, nothing), image_names=("a.png", "b.png"), skipped={"ap": "no data"}
    )
    assert str(report).splitlines() == [
        "          error relative matched   limit",
        "stages",
        "  P2    1.0e-06  2.5e-07         ≤ 1e-05 ✓",
        "detections",
        "  boxes          2.5e-07 nothing ≥ 1e-05 –",
        "",
        "boxes: inf",
        "ap not compared: no data",
        "onnxruntime fp16 a against pytorch fp32 a, 2 images: a.png, b.png",
        "NOTHING COMPARED in 1 row of 2",
    ]
    assert str(REPORT).endswith(
        "\nonnxruntime fp16 a against pytorch fp32 a, 2 images\nPASS all 1 rows"
    )


def test_many_images_are_named_by_the_first() -> None:
    names = tuple(f"photos/{number:040}.png" for number in range(5))
    text = str(dataclasses.replace(REPORT, images=5, image_names=names))
    assert f", 5 images: {names[0]} and 4 more\n" in text
