"""The self check: outcomes of made-up backends, and one real run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carafe_deploy import selfcheck
from carafe_deploy.data import CHECKPOINTS
from carafe_deploy.errors import BackendUnavailableError, EngineError
from carafe_deploy.failures import failure_of
from carafe_deploy.parity import ParityReport, ParityRow
from carafe_deploy.report.selfcheck import selfcheck_report
from carafe_deploy.selfcheck import Check, SelfCheck, run_selfcheck
from tests.scripted import ERRORS

FASTER, MASK = CHECKPOINTS
ROW = ParityRow(
    level="stages",
    name="P2",
    max_abs_error=2e-6,
    max_rel_error=1e-6,
    matched=None,
    total=None,
    tolerance=1e-4,
    measure="relative",
    passed=True,
)
AGREES = ParityReport(rows=(ROW,), reference="r", candidate="c", images=4, seed=0)
DIFFERS = dataclasses.replace(
    AGREES, rows=(ROW, dataclasses.replace(ROW, name="P3", passed=False, note="off by a mile"))
)


class Runner:
    """Something to open and close; ``outcome`` is what comparing it gives, or what it raises."""

    backend, info, inputs, outputs = "fake", None, (), ()
    device, preprocesses, implementations = "cpu", False, ("",)

    def __init__(self, outcome: Any = None, close: Exception | None = None) -> None:
        self.outcome = outcome
        self.closed = False
        self._close = close

    def close(self) -> None:
        self.closed = True
        if self._close is not None:
            raise self._close

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., SelfCheck]:
    """Run the self check on made-up backends: name -> runner, or an error on opening."""

    def compare(reference: Any, candidate: Runner, **settings: Any) -> Any:
        settings["progress"]("stages", 1, 2)
        if isinstance(candidate.outcome, Exception):
            raise candidate.outcome
        return candidate.outcome

    def run(backends: Mapping[str, Any], **settings: Any) -> SelfCheck:
        def opened(outcome: Any) -> Runner:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(
            selfcheck,
            "_candidates",
            lambda checkpoint, folder: {
                name: lambda outcome=outcome: opened(outcome) for name, outcome in backends.items()
            },
        )
        monkeypatch.setattr(selfcheck, "open_runner", lambda *a, **k: Runner())
        monkeypatch.setattr(selfcheck, "run_parity", compare)
        return run_selfcheck(tmp_path, **{"checkpoints": [FASTER], **settings})

    return run


def outcomes(result: SelfCheck) -> list[tuple[str, str, str]]:
    """Backend, status and reason of each check."""
    return [(check.backend, check.status, check.reason) for check in result.checks]


def test_passed_failed_and_skipped(check: Callable[..., SelfCheck]) -> None:
    backends = {
        "good": Runner(AGREES),
        "bad": Runner(DIFFERS),
        "absent": BackendUnavailableError("no GPU: buy one"),
        "broken": EngineError("workspace is 0: give more"),
        "gone": Runner(BackendUnavailableError("the GPU has left")),
        "lost": Runner(EngineError("failed to run: no reason")),
    }
    result = check(backends)
    assert outcomes(result) == [
        ("good", "passed", ""),
        ("bad", "failed", "stages P3: off by a mile"),
        ("absent", "skipped", "no GPU: buy one"),
        ("broken", "failed", "workspace is 0: give more"),
        ("gone", "failed", "the GPU has left"),
        ("lost", "failed", "failed to run: no reason"),
    ]
    assert not result.passed
    assert [check.parity for check in result.checks] == [AGREES, DIFFERS, None, None, None, None]
    assert all(made.closed for made in backends.values() if isinstance(made, Runner))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_backend_raises_is_one_row(
    check: Callable[..., SelfCheck], error: Exception
) -> None:
    """While opening, comparing, in a level, or when closed; after it the next has its turn."""
    failing = dataclasses.replace(AGREES, failed={"operators": failure_of(error)})
    closing = Runner(AGREES, error)
    backends = {"open": error, "run": Runner(error), "level": Runner(failing), "close": closing}
    result = check({**backends, "good": Runner(AGREES)})
    reason = ERRORS[error]
    assert outcomes(result) == [
        ("open", "failed", reason),
        ("run", "failed", reason),
        ("level", "failed", f"operators: {reason}"),
        ("close", "failed", reason),
        ("good", "passed", ""),
    ]
    assert not result.passed
    data = result.to_dict()["checks"]
    assert all(type(error).__name__ in entry["traceback"] for entry in data[:4])
    assert data[4]["traceback"] == ""
    assert selfcheck_report(result).count("<details>") == 4
    assert result.checks[3].parity == AGREES  # what was compared before is kept


@pytest.mark.parametrize("where", ["open", "close"])
def test_a_reference_that_breaks_is_a_row_and_the_other_detector_is_checked(
    check: Callable[..., SelfCheck], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    check({"good": Runner(AGREES)})  # sets up what is made up
    error = RuntimeError("no luck")

    def opened(path: Path) -> Runner:
        if path.name != FASTER:
            return Runner()
        if where == "open":
            raise error
        return Runner(close=error)

    monkeypatch.setattr(selfcheck, "open_runner", opened)
    result = run_selfcheck(tmp_path)
    broken = (FASTER, "reference (plain PyTorch)", "failed", "RuntimeError: no luck")
    good = [(name, "good", "passed", "") for name in (FASTER, MASK)]
    expected = [broken, good[1]] if where == "open" else [good[0], broken, good[1]]
    assert [(c.detector, c.backend, c.status, c.reason) for c in result.checks] == expected


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [
        (["passed"], True),
        (["passed", "skipped"], True),
        (["passed", "failed"], False),
        (["skipped"], False),
        ([], False),
    ],
)
def test_verdict(statuses: list[str], passed: bool) -> None:
    checks = tuple(Check(FASTER, "x", status, "", 0.0) for status in statuses)
    assert SelfCheck({}, checks, 0.0).passed is passed


def test_steps_and_progress_are_told(check: Callable[..., SelfCheck]) -> None:
    steps: list[str] = []
    parts: list[tuple[int, int]] = []
    check(
        {"a": Runner(AGREES), "b": EngineError("no")},
        checkpoints=[FASTER, MASK],
        step=steps.append,
        progress=lambda done, total: parts.append((done, total)),
    )
    detectors = ("shapes_faster_rcnn_carafe", "shapes_mask_rcnn_carafe")
    assert steps == [f"{detector}: {name}" for detector in detectors for name in "ab"]
    assert parts == [(1, 2), (1, 2)]


def test_json(check: Callable[..., SelfCheck]) -> None:
    result = check({"good": Runner(AGREES), "absent": BackendUnavailableError("none")})
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["passed"] is True
    assert data["environment"] == dict(result.environment)
    good, absent = data["checks"]
    assert (good["detector"], good["backend"], good["status"]) == (FASTER, "good", "passed")
    assert good["parity"] == json.loads(AGREES.to_json())
    assert (absent["status"], absent["reason"], absent["parity"]) == ("skipped", "none", None)


def test_report(check: Callable[..., SelfCheck]) -> None:
    result = check({"good": Runner(AGREES), "bad": Runner(DIFFERS), "x": EngineError("a |\n b")})
    text = selfcheck_report(result)
    assert text.startswith("# carafe-deploy selfcheck\n\n**Something failed.**\n")
    rows = [
        [cell.strip() for cell in line.replace(r"\|", "/").strip("| ").split("|")]
        for line in text.splitlines()
        if line.startswith("| shapes")
    ]
    assert [row[:2] for row in rows] == [
        ["shapes_faster_rcnn_carafe, good", "passed"],
        ["shapes_faster_rcnn_carafe, bad", "failed"],
        ["shapes_faster_rcnn_carafe, x", "failed"],
    ]
    assert [row[-1] for row in rows[1:]] == ["stages P3: off by a mile", "a / b"]
    for name, value in result.environment.items():
        assert f"| {name} | {value} |".replace("\n", " ") in text.replace(r"\|", "|")
    agreed = selfcheck_report(dataclasses.replace(result, checks=result.checks[:1]))
    assert "Every backend that runs here agrees." in agreed


def test_an_engine_that_is_built_but_not_run_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shapes_dir: Path
) -> None:
    from carafe_deploy.engine import build
    from carafe_deploy.graph import onnx_export

    def no_gpu(*arguments: Any, **settings: Any) -> Any:
        raise BackendUnavailableError("it needs a GPU")

    built: list[Any] = []
    exported: list[Path] = []

    def build_engine(model: Path, path: Path, options: Any) -> Any:
        built.append((model.name, path.name, options.flavour, options.stages))
        return SimpleNamespace(build={"seconds": 4.25})

    monkeypatch.setattr(
        onnx_export, "export_onnx", lambda detector, path, *a, **k: exported.append(path)
    )
    monkeypatch.setattr(build, "build_engine", build_engine)
    monkeypatch.setattr(selfcheck, "open_runner", no_gpu)
    candidates = selfcheck._candidates(shapes_dir / FASTER, tmp_path)
    stem = Path(FASTER).stem
    for name, flavour in (("TensorRT", "tensorrt"), ("TensorRT-RTX", "tensorrt_rtx")):
        with pytest.raises(BackendUnavailableError, match=r"built in 4\.2 s, not run: it needs"):
            candidates[name]()
        assert built.pop() == (f"{stem}.onnx", f"{stem}.{flavour}.engine", flavour, True)
    assert exported == [tmp_path / f"{stem}.onnx"]  # once, for both
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(selfcheck, "open_runner", lambda path, **given: opened.append(given))
    for name in ("kernels", "function bodies"):
        candidates[f"ONNX Runtime by {name}, cpu"]()
    assert [given["operators"] for given in opened] == [True, False]


@pytest.mark.slow
def test_the_kernels_agree_with_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = selfcheck._candidates
    name = "PyTorch, cpu"
    monkeypatch.setattr(
        selfcheck,
        "_candidates",
        lambda checkpoint, folder: {name: every(checkpoint, folder)[name]},
    )
    monkeypatch.setattr(selfcheck, "AP_IMAGES", 4)
    result = run_selfcheck(tmp_path, checkpoints=[FASTER])
    assert outcomes(result) == [(name, "passed", "")]
    assert result.passed
    parity = result.checks[0].parity
    assert parity is not None
    assert {row.level for row in parity.rows} == {"operators", "stages", "detections", "ap"}
    assert "shapes_faster_rcnn_carafe, PyTorch, cpu | passed" in selfcheck_report(result)
