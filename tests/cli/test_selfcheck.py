"""``carafe-deploy selfcheck``: files, exit status, what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy import selfcheck
from carafe_deploy.data import CHECKPOINTS
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.selfcheck import Check, SelfCheck

Run = Callable[..., Any]
PASSED = Check(CHECKPOINTS[0], "PyTorch, cpu", "passed", "", 1.25)
SKIPPED = Check(CHECKPOINTS[0], "TensorRT", "skipped", "TensorRT is not installed", 0.0)
FAILED = Check(CHECKPOINTS[1], "ONNX Runtime, cpu", "failed", "stages P3: off by a mile", 2.0)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decide what the checks find."""

    def decide(*checks: Check) -> None:
        def run_selfcheck(folder: Path, *, step: Any, progress: Any) -> SelfCheck:
            step("faster: PyTorch, cpu")
            progress(1, 2)
            return SelfCheck({"GPU": "none"}, checks, 3.0)

        monkeypatch.setattr(selfcheck, "run_selfcheck", run_selfcheck)

    return decide


def test_success(run: Run, found: Callable[..., None]) -> None:
    found(PASSED, SKIPPED)
    outcome = run("selfcheck")
    assert outcome.status == 0
    assert "PASS what runs here agrees (3 s)" in outcome.out
    assert "TensorRT is not installed" in " ".join(outcome.out.split())
    assert "faster: PyTorch, cpu" in outcome.err
    report = Path("out/selfcheck/report.md").read_text()
    assert "Every backend that runs here agrees." in report
    assert "| GPU | none |" in report
    data = json.loads(Path("out/selfcheck/report.json").read_text())
    assert data["passed"] is True
    assert [check["status"] for check in data["checks"]] == ["passed", "skipped"]


@pytest.mark.parametrize("checks", [(PASSED, FAILED), (SKIPPED,)])
def test_failure_is_status_1_and_still_reported(
    run: Run, found: Callable[..., None], checks: tuple[Check, ...]
) -> None:
    found(*checks)
    outcome = run("selfcheck", "--out", "here")
    assert outcome.status == 1
    assert "FAIL see" in outcome.out
    assert "**Something failed.**" in Path("here/report.md").read_text()
    assert json.loads(Path("here/report.json").read_text())["passed"] is False


def test_json_is_all_of_stdout(run: Run, found: Callable[..., None]) -> None:
    found(PASSED, FAILED)
    outcome = run("selfcheck", "--json")
    assert outcome.status == 1
    assert outcome.json == json.loads(Path("out/selfcheck/report.json").read_text())


def test_without_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **settings: Any) -> Any:
        raise BackendUnavailableError("PyTorch is not installed: pip install it")

    monkeypatch.setattr(selfcheck, "open_runner", missing)
    outcome = run("selfcheck")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == "error: PyTorch is not installed: pip install it"


def test_without_torch_in_a_process_of_its_own(process: Run) -> None:
    """The package is hidden from Python, as on a target that only runs engines."""
    outcome = process("selfcheck", code="sys.modules['torch'] = None")
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert 'pip install "carafe-deploy[torch]"' in outcome.err


def test_a_folder_that_cannot_be_written(
    run: Run, found: Callable[..., None], tmp_path: Path
) -> None:
    found(PASSED)
    (tmp_path / "file").write_text("in the way")
    outcome = run("selfcheck", "--out", tmp_path / "file")
    assert outcome.status == 2
    assert str(tmp_path / "file") in outcome.err


def test_a_wrong_plugin_folder_is_no_lack_of_the_machine(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", "/nonexistent")
    run("selfcheck").assert_refused("CARAFE_DEPLOY_PLUGIN is '/nonexistent', which does not exist")
