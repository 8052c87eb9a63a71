"""``carafe-deploy bench``: options, output, exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carafe_deploy.bench import provenance
from carafe_deploy.bench import run as run_module
from carafe_deploy.bench.result_file import read_result
from tests.bench.fakes import FakeRunner, install
from tests.cli.conftest import Run

QUICK = ("--rounds", "2", "--block", "1", "--batch-sizes", "1", "--no-memory")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PAUSE", 0.0)
    monkeypatch.setattr(provenance, "LOOK", 0.02)


def test_table_warnings_and_files(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = install(
        monkeypatch, tmp_path, first_onnx=FakeRunner(), second_ts=FakeRunner("torchscript")
    )
    done = run("bench", *paths, *QUICK, "-o", "r.json", "--html", "r.html")
    assert done.status == 0
    assert "ONNX Runtime fp32" in done.out
    assert "TorchScript fp32" in done.out
    assert "1/1" in done.out  # detections agree
    assert "p99 of 2 samples" in done.out
    assert "2 rounds, in each every subject" in done.out
    result = read_result("r.json")
    assert [len(subject.samples.total_ms) for subject in result.subjects] == [2, 2]
    assert "<!doctype html>" in Path("r.html").read_text().lower()


def test_json_is_the_result(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = install(monkeypatch, tmp_path, first_onnx=FakeRunner())
    done = run("bench", *paths, *QUICK, "--json", "-o", "r.json")
    assert done.status == 0
    assert done.json == json.loads(Path("r.json").read_text())
    assert done.json["kind"] == "bench"
    assert done.json["settings"]["images"].startswith("1 (")


def test_what_is_missing_is_listed_with_its_reason(run: Run, checkpoint: Path) -> None:
    done = run("bench", checkpoint, *QUICK, "--mode", "eager,cuda-graph", "--threads", "1")
    assert done.status == 0
    assert (
        "PyTorch fp32, cuda-graph, channels-last skipped: mode cuda-graph needs a GPU" in done.out
    )


def test_other_detections_are_a_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = FakeRunner("torchscript", score=0.2)
    paths = install(monkeypatch, tmp_path, first_onnx=FakeRunner(), second_ts=other)
    done = run("bench", *paths, *QUICK)
    assert done.status == 1
    assert "FAIL TorchScript fp32" in done.out


def test_a_broken_artefact_is_a_failure_that_leaves_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = FakeRunner("torchscript", fails_after=4)
    paths = install(monkeypatch, tmp_path, first_onnx=FakeRunner(), second_ts=broken)
    done = run("bench", *paths, *QUICK)
    assert done.status == 1
    assert "TorchScript fp32 failed: the GPU fell off the bus" in done.out
    assert "ONNX Runtime fp32" in done.out


def test_ctrl_c_keeps_what_was_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = install(monkeypatch, tmp_path, first_onnx=FakeRunner(interrupts_after=4))
    done = run("bench", *paths, *QUICK, "-o", "r.json", "--html", "r.html")
    assert done.status == 130
    assert "interrupted: this is what was measured by then" in done.out
    assert read_result("r.json").partial
    assert "interrupted" in Path("r.html").read_text()


def test_by_kernels_and_by_bodies(run: Run, onnx_file: Path) -> None:
    quick = ("--rounds", 1, "--block", 1, "--batch-sizes", 0, "--no-memory")
    outcome = run("bench", onnx_file, "--bodies", *quick, "--json")
    assert outcome.status == 0, outcome.err
    subjects = json.loads(outcome.out)["subjects"]
    assert [subject["implementation"] for subject in subjects] == ["kernels", "function bodies"]
    names = ["ONNX Runtime fp32, kernels", "ONNX Runtime fp32, function bodies"]
    assert [subject["name"] for subject in subjects] == names
    assert subjects[1]["agreement"]["passed"]


def test_what_is_about_onnx_files_alone(run: Run, checkpoint: Path) -> None:
    for option in (("--bodies",), ("--provider-option", "a=1")):
        run("bench", checkpoint, *option).assert_refused("none of the artefacts is an ONNX file")
        run("bench", "--op", "nms", *option).assert_refused(f"{option[0]} is about ONNX files")


@pytest.mark.parametrize("word", ["prefer_nhwc", "=1", "prefer_nhwc="])
def test_an_option_of_a_provider_has_name_and_value(run: Run, onnx_file: Path, word: str) -> None:
    run("bench", onnx_file, "--provider-option", word).assert_refused(
        f"--provider-option is '{word}': give NAME=VALUE"
    )


def test_noise_of_a_given_size(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = install(monkeypatch, tmp_path, first_onnx=FakeRunner())
    done = run("bench", *paths, *QUICK, "--random", "50x90", "--json")
    assert done.json["settings"]["images"] == "1 (50x90 pixels, height x width)"
