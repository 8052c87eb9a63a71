"""A backend that breaks, in the four commands that go through several: one row, exit status 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carafe_deploy import demo, selfcheck
from carafe_deploy.bench import provenance
from carafe_deploy.bench import run as bench_run
from carafe_deploy.bench.record import BenchResult, Subject
from carafe_deploy.cli import parity as parity_command
from carafe_deploy.demo import job
from carafe_deploy.errors import BackendUnavailableError, EngineError
from carafe_deploy.failures import failure_of
from carafe_deploy.parity import ParityReport, ParityRow
from tests.bench.fakes import FakeRunner, install
from tests.cli.conftest import Run
from tests.scripted import ERRORS, Scripted

ERROR = next(iter(ERRORS))
REASON = ERRORS[ERROR]
ROW = ParityRow("stages", "P2", 1e-6, 2e-7, None, None, 1e-4, "relative", True)
AGREES = ParityReport((ROW,), "reference", "candidate", images=8, seed=0)
FAILED = Subject(
    *("TorchScript fp32", "torchscript", "cpu", "fp32", "", "m.ts", 1.0),
    status="failed",
    reason=REASON,
)
NUMBERS = {"AP": 0.5, "AP50": 0.9, "AP75": 0.8}


@pytest.fixture(params=[(), ("--debug",)], ids=["", "debug"])
def debug(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param


def tracebacks(outcome: Any) -> int:
    """How many reached stderr, where alone they belong."""
    assert "Traceback" not in outcome.out
    return outcome.err.count("Traceback (most recent call last)")


# --- selfcheck -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["open", "run", "close"])
def test_selfcheck(
    run: Run, monkeypatch: pytest.MonkeyPatch, where: str, debug: tuple[str, ...]
) -> None:
    def broken() -> Any:
        if where == "open":
            raise ERROR
        return Scripted(FakeRunner(), ERROR, run=1, close=where == "close")

    def compare(reference: Any, candidate: Any, **_: Any) -> ParityReport:
        if isinstance(candidate, Scripted) and where == "run":
            candidate.run({})
        return AGREES

    backends = {"PyTorch, cuda": broken, "ONNX Runtime, cpu": FakeRunner}
    monkeypatch.setattr(selfcheck, "_candidates", lambda *_: backends)
    monkeypatch.setattr(selfcheck, "open_runner", lambda path: FakeRunner())
    monkeypatch.setattr(selfcheck, "run_parity", compare)
    outcome = run(*debug, "selfcheck")
    assert outcome.status == 1
    row = rf"✗ shapes_faster_rcnn_carafe PyTorch, cuda \d\.\d {re.escape(REASON)}"
    assert re.search(row, " ".join(outcome.out.split()))
    assert outcome.out.count("ONNX Runtime, cpu") == outcome.out.count("✓") == 2
    assert "carafe-deploy --debug selfcheck" in outcome.out
    assert tracebacks(outcome) == 2 * len(debug)  # two detectors
    checks = json.loads(Path("out/selfcheck/report.json").read_text())["checks"]
    assert "Traceback" in checks[0]["traceback"]
    assert (
        "<summary>shapes_mask_rcnn_carafe, PyTorch, cuda: traceback</summary>"
        in Path("out/selfcheck/report.md").read_text()
    )


# --- bench ---------------------------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "PAUSE", 0.0)
    monkeypatch.setattr(provenance, "LOOK", 0.02)


QUICK = ("--rounds", "2", "--block", "1", "--batch-sizes", "1", "--no-memory")


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("script", "part"),
    [("open", ""), ({"run": 1}, ""), ({"run": 5}, ""), ({"close": True}, "closing it: ")],
    ids=["open", "first run", "5th run", "close"],
)
def test_bench(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: Any,
    part: str,
    debug: tuple[str, ...],
) -> None:
    broken = ERROR if script == "open" else Scripted(FakeRunner("torchscript"), ERROR, **script)
    paths = install(monkeypatch, tmp_path, b_ts=broken, a_onnx=FakeRunner())
    done = run(*debug, "bench", *paths, *QUICK, "-o", "r.json")
    assert done.status == 1
    name = "TorchScript" if script == "open" else "TorchScript fp32"
    assert f"{name} failed: {part}{REASON}\n" in done.out
    assert f"FAIL {name}\n" in done.out
    assert tracebacks(done) == len(debug)
    subjects = json.loads(Path("r.json").read_text())["subjects"]
    assert [subject["status"] for subject in subjects] == ["failed", "measured"]


@pytest.mark.usefixtures("_quick")
def test_bench_of_nothing_but_what_breaks(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, debug: tuple[str, ...]
) -> None:
    paths = install(monkeypatch, tmp_path, b_ts=ERROR)
    done = run(*debug, "bench", *paths, *QUICK)
    assert (done.status, done.out) == (1, "")
    assert f"error: nothing can be measured here. TorchScript: {REASON}\n" in done.err
    assert (tracebacks(done) > 0) is bool(debug)


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "failed"),
    [({"operators": True}, "operators"), ({"run": 1, "stages": True}, "stages")],
    ids=["operators", "stages"],
)
def test_parity(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    images: Path,
    script: dict[str, Any],
    failed: str,
    debug: tuple[str, ...],
) -> None:
    opened = parity_command.open_pair

    def broken(*arguments: Any, **settings: Any) -> Any:
        first, second = opened(*arguments, **settings)
        return first, Scripted(second, ERROR, **script)

    monkeypatch.setattr(parity_command, "open_pair", broken)
    levels = ("--images", images / "000001.png", "--levels", f"{failed},detections")
    done = run(*debug, "parity", checkpoint, checkpoint, *levels)
    assert done.status == 1
    assert f"{failed} failed: {REASON}\n" in done.out
    assert "FAIL 0 rows of " in done.out
    both = failed == "stages"  # whose run is that of the detections
    assert ("boxes and masks:" in done.out) is not both
    assert (f"detections failed: {REASON}" in done.out) is both
    assert tracebacks(done) == (1 + both) * len(debug)


@pytest.mark.parametrize("broken", ["open", "first run"])
def test_parity_of_several(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    broken: str,
    debug: tuple[str, ...],
) -> None:
    """Named files that do not open stand beside one that breaks and one that agrees."""
    opened = parity_command.open_pair

    def open_pair(reference: str, candidate: str, *arguments: Any, **settings: Any) -> Any:
        if candidate == "bad.ts" and broken == "open":
            raise ERROR
        if candidate == "gpu.engine":
            raise BackendUnavailableError("there is no GPU: buy one")
        if candidate == "none.onnx":
            return opened(reference, candidate, *arguments, **settings)
        first, second = opened(reference, reference, *arguments, **settings)
        return first, Scripted(second, ERROR, run=1 if candidate == "bad.ts" else None)

    monkeypatch.setattr(parity_command, "open_pair", open_pair)
    candidates = ("bad.ts", "none.onnx", "gpu.engine", checkpoint)
    levels = ("--levels", "detections", "-o", "p.json")
    done = run(*debug, "parity", checkpoint, *candidates, images / "000001.png", *levels)
    assert done.status == 1
    rows = json.loads(Path("p.json").read_text())
    reason = REASON if broken == "open" else f"detections: {REASON}"
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("failed", reason),
        ("failed", "none.onnx does not exist"),
        ("skipped", "there is no GPU: buy one"),
        ("passed", ""),
    ]
    assert done.out.count("✗") == 2
    assert "FAIL 2 of 4 candidates\n" in done.out
    assert tracebacks(done) == 2 * len(debug)


@pytest.mark.parametrize(
    ("candidates", "status"),
    [
        (("CHECKPOINT", "CHECKPOINT"), 0),
        (("CHECKPOINT", "gpu.engine"), 0),
        (("gpu.engine",) * 2, 1),
    ],
)
def test_parity_of_several_passes_when_something_did(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    candidates: tuple[str, ...],
    status: int,
) -> None:
    def open_pair(reference: str, candidate: str, *_: Any, **__: Any) -> Any:
        if candidate == "gpu.engine":
            raise BackendUnavailableError("there is no GPU: buy one")
        return FakeRunner(), FakeRunner()

    monkeypatch.setattr(parity_command, "open_pair", open_pair)
    monkeypatch.setattr("carafe_deploy.parity.run_parity", lambda *_, **__: AGREES)
    names = [checkpoint if name == "CHECKPOINT" else name for name in candidates]
    done = run("parity", checkpoint, *names, "--json")
    assert done.status == status
    assert [row["status"] for row in done.json] == [
        "skipped" if name == "gpu.engine" else "passed" for name in candidates
    ]


# --- demo ----------------------------------------------------------------------------------------


class Named(FakeRunner):
    """With the name of the backend whose file it is."""

    def __init__(self, path: Path) -> None:
        names = {".pth": "pytorch", ".ts": "torchscript", ".onnx": "onnxruntime"}
        super().__init__(names.get(path.suffix, "tensorrt"))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """All steps of the demo without their work; a function that breaks some of them."""
    steps: dict[str, Any] = {}

    def opened(path: Path) -> Any:
        if path.suffix == ".onnx" and steps.get("script") == "open":
            raise ERROR
        script = steps.get("script") if path.suffix == ".onnx" else None
        return Scripted(Named(path), ERROR, **script) if isinstance(script, dict) else Named(path)

    def evaluate(runner: Any, *_: Any, **__: Any) -> Any:
        runner.run_timed(job_inputs())
        return SimpleNamespace(numbers={"bbox": NUMBERS}), {1: found()}

    def compare(reference: Any, candidate: Any, **_: Any) -> ParityReport:
        try:
            candidate.run_stages({})
        except NotImplementedError:
            return AGREES
        except Exception as error:
            return ParityReport((ROW,), "r", "c", 8, 0, failed={"stages": failure_of(error)})
        raise AssertionError

    def export(kind: str) -> Callable[..., None]:
        def write(detector: Any, path: Path, *_: Any, **__: Any) -> None:
            if steps.get("export") == kind:
                raise ERROR
            path.write_bytes(b"x")

        return write

    def build(*_: Any) -> Any:
        raise steps.get("engine", BackendUnavailableError("there is no GPU"))

    def measure(*_: Any, **__: Any) -> BenchResult:
        if "measure" in steps:
            raise steps["measure"]
        subjects = steps.get("subjects", ())
        return BenchResult({}, {"turns": ""}, "m", "faster_rcnn", ("circle",), subjects)

    monkeypatch.setattr(job, "open_runner", opened)
    monkeypatch.setattr(job, "evaluate_runner", evaluate)
    monkeypatch.setattr(job, "run_parity", compare)
    monkeypatch.setattr(job, "build_engine", build)
    monkeypatch.setattr(job, "run_bench", measure)
    monkeypatch.setattr(job.Job, "_matched", lambda self, found: (1, 1))
    monkeypatch.setattr(job.Job, "_recorded_numbers", lambda self: {"bbox": NUMBERS})
    for kind in ("torchscript", "onnx"):
        monkeypatch.setattr(f"carafe_deploy.graph.{kind}_export.export_{kind}", export(kind))
    monkeypatch.setitem(demo.run_demo.__kwdefaults__, "checkpoints", demo.CHECKPOINTS[:1])
    return steps.update


def job_inputs() -> dict[str, Any]:
    import numpy as np

    images = np.zeros((1, 3, 64, 64), np.float32)
    return {"images": images, "image_sizes": np.full((1, 2), 64, np.float32)}


def found() -> Any:
    import numpy as np

    from carafe_deploy.types import Detections

    box = np.array([[2, 2, 40, 40]], np.float32)
    return Detections(box, np.array([0.9], np.float32), np.array([0]), (64, 64))


@pytest.mark.parametrize(
    ("broken", "step", "rows"),
    [
        ({"export": "onnx"}, "export to ONNX", 2),
        ({"export": "torchscript"}, "export to TorchScript", 2),
        ({"script": "open"}, "open ONNX Runtime", 2),
        ({"script": {"run": 1}}, "AP of ONNX Runtime", 2),
        ({"script": {"stages": True}}, "parity of ONNX Runtime, stages", 3),
        ({"script": {"close": True}}, "close ONNX Runtime", 3),
        ({"engine": EngineError(REASON)}, "build an engine", 3),
        ({"engine": ERROR}, "build an engine", 3),
        ({"measure": ERROR}, "measure", 3),
        ({"subjects": (FAILED,)}, "measure TorchScript fp32", 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_demo(
    run: Run,
    made_up: Callable[..., None],
    broken: dict[str, Any],
    step: str,
    rows: int,
) -> None:
    made_up(**broken)
    outcome = run("demo", "--json")
    assert outcome.status == 1
    [detector] = outcome.json["detectors"]
    assert {name: entry["reason"] for name, entry in detector["failed"].items()} == {step: REASON}
    assert ("Traceback" in detector["failed"][step]["traceback"]) is ("subjects" not in broken)
    assert len(detector["backends"]) == rows
    assert detector["pictures"]
    text = Path("out/demo/report.md").read_text()
    assert f"| ✗ Faster R-CNN, {step} | {REASON} |" in text
    assert "Traceback" not in outcome.err


def test_demo_says_it_on_the_terminal(
    run: Run, made_up: Callable[..., None], debug: tuple[str, ...]
) -> None:
    made_up(script={"run": 1})
    outcome = run(*debug, "demo")
    assert outcome.status == 1
    assert f"✗ Faster R-CNN, AP of ONNX Runtime: {REASON}\n" in outcome.out
    assert "Faster R-CNN, engine: not built: there is no GPU\n" in outcome.out
    assert "report.json and carafe-deploy --debug demo have the tracebacks" in outcome.out
    assert outcome.out.count("TorchScript") == 2  # its AP, its parity
    assert tracebacks(outcome) == len(debug)


def test_demo_where_nothing_breaks(run: Run, made_up: Callable[..., None]) -> None:
    made_up()
    outcome = run("demo")
    assert (outcome.status, "PASS everything agrees" in outcome.out) == (0, True)
