"""What `carafe-deploy demo` says, over results made up here; `tests/test_demo.py` runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.demo import BackendResult, DemoResult, DetectorResult, EngineResult
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.parity import ParityReport, ParityRow

Run = Callable[..., Any]


def made_up(folder: Path, ap: float) -> DemoResult:
    """A Faster R-CNN whose exports have this AP, 0.5 being right."""
    folder.mkdir(parents=True)
    row = ParityRow("stages", "P2", 1e-6, 2e-7, None, None, 1e-4, "relative", True)
    report = ParityReport((row,), "reference", "candidate", images=8, seed=0)

    def numbers(value: float) -> dict[str, dict[str, float]]:
        return {"bbox": {"AP": value, "AP50": 0.9, "AP75": 0.8}}

    backends = []
    for name, value in (("pytorch", 0.5), ("torchscript", ap), ("onnxruntime", ap)):
        file = folder / f"x.{name}"
        file.write_bytes(b"x")
        compared = None if name == "pytorch" else report
        backends.append(BackendResult(name, file, numbers(value), 10, 10, 0.05, compared))
    engine = EngineResult("tensorrt_rtx", folder / "x.engine", 5.6, 7, 7, "there is no GPU")
    (folder / "x.engine").write_bytes(b"x")
    detector = DetectorResult(
        title="Faster R-CNN",
        checkpoint=folder / "x.pytorch",
        recorded=numbers(0.5),
        backends=tuple(backends),
        engine=engine,
        pictures=(),
    )
    return DemoResult((detector,), 100, folder / "detections.jpg", {}, seconds=1.0)


@pytest.mark.parametrize(
    ("ap", "status", "verdict"),
    [(0.5004, 0, "PASS everything agrees"), (0.51, 1, "FAIL something deviates: see ✗")],
)
def test_verdict(
    run: Run, monkeypatch: pytest.MonkeyPatch, ap: float, status: int, verdict: str
) -> None:
    monkeypatch.setattr("carafe_deploy.demo.run_demo", lambda output, **_: made_up(output, ap))
    outcome = run("demo")
    assert outcome.status == status
    assert verdict in outcome.out
    rows = [line.split() for line in outcome.out.splitlines()]
    [runtime] = [row for row in rows if row[:2] == ["ONNX", "Runtime"] and "10/10" in row]
    assert runtime[2:] == [f"{ap:.4f}", "10/10", "50", "✗" if status else "✓"]
    assert (
        "Faster R-CNN, engine: TensorRT-RTX, built in 5.6 s, 7 plugin layers for 7 custom nodes; "
        "not run: there is no GPU"
    ) in outcome.out
    assert "out/demo/x.engine" in outcome.out
    assert Path("out/demo/report.md").is_file()
    assert ("carafe-deploy export YOUR_CHECKPOINT.pth" in outcome.out) == (status == 0)


def test_json_is_the_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carafe_deploy.demo.run_demo", lambda output, **_: made_up(output, 0.5))
    outcome = run("demo", "--out", "here", "--json")
    assert outcome.json["passed"] is True
    assert outcome.json["detectors"][0]["backends"][2]["numbers"]["bbox"]["AP"] == 0.5


def test_unwritable_output(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    run("demo", "--out", tmp_path / "file").assert_refused("error: cannot write")
    assert (tmp_path / "file").read_text() == "in the way"


def test_errors_are_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output: Path, **_: object) -> DemoResult:
        raise CarafeDeployError("something is missing: install it")

    monkeypatch.setattr("carafe_deploy.demo.run_demo", fail)
    outcome = run("demo")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.endswith("error: something is missing: install it\n")
