"""The demo's Markdown, from results made up here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from carafe_deploy.demo import BackendResult, DemoResult, DetectorResult, EngineResult
from carafe_deploy.failures import Failure
from carafe_deploy.parity import ParityReport, ParityRow
from carafe_deploy.report.demo import demo_report, engine_summary, write_demo_report
from carafe_deploy.report.markdown import markdown_table
from carafe_deploy.report.parity import level_summary

NUMBERS = {"AP": 0.7433, "AP50": 0.9491, "AP75": 0.8999}


def row(level: str = "stages", name: str = "P2", **changes: object) -> ParityRow:
    """A row that passed."""
    plain = ParityRow(
        level=level,
        name=name,
        max_abs_error=2e-6,
        max_rel_error=1e-6,
        matched=10,
        total=10,
        tolerance=1e-4,
        measure="relative",
        passed=True,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def counted(matched: int, total: int, **changes: object) -> ParityRow:
    """A row of matches."""
    return row(
        measure="matched",
        tolerance=0.9,
        matched=matched,
        total=total,
        max_rel_error=None,
        **changes,
    )


def parity(*rows: ParityRow) -> ParityReport:
    """A report."""
    return ParityReport(rows=rows or (row(),), reference="r", candidate="c", images=8, seed=0)


@pytest.fixture
def result(tmp_path: Path) -> DemoResult:
    """A Faster R-CNN that agrees everywhere."""
    files = [tmp_path / name for name in ("a.pth", "a b.ts", "a.onnx")]
    for file in (*files, tmp_path / "a.engine"):
        file.write_bytes(b"x" * 2_000_000)
    backends = [
        BackendResult(
            *(name, file, {"bbox": NUMBERS}),
            matched=841,
            recorded=841,
            seconds=0.05,
            parity=None if name == "pytorch" else parity(),
        )
        for name, file in zip(("pytorch", "torchscript", "onnxruntime"), files, strict=True)
    ]
    detector = DetectorResult(
        title="Faster R-CNN",
        checkpoint=files[0],
        recorded={"bbox": NUMBERS},
        backends=tuple(backends),
        engine=EngineResult("tensorrt_rtx", tmp_path / "a.engine", 5.63, 7, 7, "there is no GPU"),
        pictures=(tmp_path / "faster_rcnn" / "000001.png",),
    )
    return DemoResult((detector,), 100, tmp_path / "detections.jpg", {"torch": "2.14"}, seconds=60)


def with_backend(result: DemoResult, **changes: object) -> DemoResult:
    """The same with another ONNX Runtime."""
    [detector] = result.detectors
    changed = dataclasses.replace(detector.backends[-1], **changes)  # type: ignore[arg-type]
    backends = (*detector.backends[:-1], changed)
    return dataclasses.replace(
        result, detectors=(dataclasses.replace(detector, backends=backends),)
    )


def test_agreement_passes(result: DemoResult, tmp_path: Path) -> None:
    assert result.passed
    text = demo_report(result, tmp_path)
    assert "Everything agrees." in text
    assert "✗" not in text


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({"numbers": {"bbox": {**NUMBERS, "AP": 0.7433 + 4e-4}}}, True),
        ({"numbers": {"bbox": {**NUMBERS, "AP": 0.7433 + 6e-4}}}, False),
        ({"numbers": {"bbox": {**NUMBERS, "AP75": 0.8999 - 6e-4}}}, False),
        ({"matched": 841}, True),
        ({"matched": 840}, False),  # 99.88 %
    ],
)
def test_a_deviating_backend_fails(
    result: DemoResult, tmp_path: Path, changes: dict[str, object], passed: bool
) -> None:
    changed = with_backend(result, **changes)
    assert changed.passed == passed
    line = next(
        line
        for line in demo_report(changed, tmp_path).splitlines()
        if line.startswith("| Faster R-CNN, ONNX Runtime")
    )
    assert line.endswith("| ✓ |" if passed else "| ✗ |")
    assert changed.to_dict()["passed"] == passed


def test_failed_parity_fails(result: DemoResult, tmp_path: Path) -> None:
    changed = with_backend(result, parity=parity(row(passed=False)))
    assert not changed.passed
    assert "**Something deviates: see ✗ below.**" in demo_report(changed, tmp_path)


def test_a_step_that_failed_is_a_row(result: DemoResult, tmp_path: Path) -> None:
    [detector] = result.detectors
    failed = dataclasses.replace(
        detector,
        backends=detector.backends[1:],  # PyTorch, which the change of AP is measured from
        failed={"AP of PyTorch": Failure("RuntimeError: no | luck")},
    )
    changed = dataclasses.replace(result, detectors=(failed,))
    assert not changed.passed
    assert changed.to_dict()["detectors"][0]["failed"]["AP of PyTorch"]["reason"].endswith("luck")
    text = demo_report(changed, tmp_path)
    assert r"| ✗ Faster R-CNN, AP of PyTorch | RuntimeError: no \| luck |" in text
    assert "| Faster R-CNN, ONNX Runtime |  | 1e-06 |  | – | ✓ |" in text


def test_table_of_ap(result: DemoResult, tmp_path: Path) -> None:
    assert (
        "| Faster R-CNN, ONNX Runtime | 0.7433 | 0.9491 | 0.8999 | – | – | – "
        "| 841 of 841 | 50 ms | ✓ |"
    ) in demo_report(result, tmp_path).splitlines()


def test_engine_built_and_not_run(result: DemoResult, tmp_path: Path) -> None:
    assert (
        "- Faster R-CNN: TensorRT-RTX, built in 5.6 s, 7 plugin layers for 7 custom nodes; "
        "not run: there is no GPU"
    ) in demo_report(result, tmp_path).splitlines()


def test_engine_that_ran(result: DemoResult) -> None:
    ran = dataclasses.replace(result.detectors[0].engine, reason="")
    assert engine_summary(ran).endswith("7 plugin layers for 7 custom nodes")


def test_engine_that_nothing_builds(result: DemoResult, tmp_path: Path) -> None:
    [detector] = result.detectors
    none = EngineResult("", None, 0.0, 0, 0, "TensorRT is not installed")
    assert engine_summary(none) == "not built: TensorRT is not installed"
    changed = dataclasses.replace(result, detectors=(dataclasses.replace(detector, engine=none),))
    assert "[2.0 MB](a.onnx) | – |" in demo_report(changed, tmp_path)


def test_links_are_relative_and_written(result: DemoResult, tmp_path: Path) -> None:
    write_demo_report(result, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert set(links) == {
        "detections.jpg",
        "report.json",
        "a%20b.ts",
        "a.onnx",
        "a.engine",
        "faster_rcnn/000001.png",
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], ""),
        ([row(max_rel_error=0.0)], "0"),
        ([row(max_rel_error=2e-7), row(max_rel_error=3e-6)], "3e-06"),
        ([counted(9, 10), counted(99, 100)], "9/10"),
        ([counted(10, 10), counted(99, 99)], "10/10"),
        ([row(max_rel_error=2e-7), counted(7, 8)], "2e-07, 7/8"),
        ([row(max_rel_error=2e-7), counted(8, 8)], "2e-07"),
        ([row(level="ap")], ""),
    ],
)
def test_summary_of_a_level(rows: list[ParityRow], expected: str) -> None:
    assert level_summary(parity(*rows) if rows else parity(row(level="ap")), "stages") == expected


def test_bars_do_not_break_a_table() -> None:
    assert markdown_table(["a", "b"], [["x|y", "z"]]) == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | z |",
    ]
