"""benchmarks/gpu_check.py on made-up GPUs and steps: what is run, for how long, what is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugins.built import ROOT, built

sys.path.insert(0, str(ROOT / "benchmarks"))

import _gpu_run
import _gpu_steps
import gpu_check
from _gpu_run import LackingError, Row, Step, StepError, run_steps


def entry(design: str, microseconds: float, **facts: Any) -> dict[str, Any]:
    return {
        "design": design,
        "chosen": False,
        "dtype": "float32",
        "layout": "NHWC",
        "shape": "1x256x13x21",
        "agrees": True,
        "cold_median_us": microseconds,
        "share_of_copy": 0.5,
        **facts,
    }


# --- processes -----------------------------------------------------------------------------------


def shell(name: str, script: str, limit: float = 60, **facts: Any) -> Step:
    return Step(name, ("sh", "-c", script), limit, **facts)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Row]]:
    """Run steps; rows by name in the order they were told."""

    def call(*steps: Step, budget: float = 60) -> dict[str, Row]:
        rows: dict[str, Row] = {}

        def tell(row: Row) -> None:
            rows[row.name] = row

        deadline = time.monotonic() + budget
        run_steps(steps, tmp_path, deadline, dict(os.environ), tmp_path, tell)
        return rows

    return call


def unreadable() -> dict[str, Any]:
    return json.loads("{")


def disappointed(error: Exception) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        raise error

    return read


@pytest.mark.parametrize(
    ("step", "status", "reason"),
    [
        (shell("a", "echo fine"), "passed", ""),
        (shell("a", "echo one; echo; exit 3"), "failed", "status 3: one"),
        (shell("a", "exit 3"), "failed", "status 3"),
        (shell("a", "echo bye >&2; kill -SEGV $$"), "failed", "died of SIGSEGV: bye"),
        (shell("a", r"printf '\351\n'; exit 3"), "failed", "status 3: \N{REPLACEMENT CHARACTER}"),
        (shell("a", "exit 77"), "lacking", "it finds no GPU"),
        (Step("a", ("ncu-that-is-not-there",), 60), "lacking", "there is no ncu-that-is-not-there"),
        (shell("a", "exit 1", lacking="no harness"), "lacking", "no harness"),
        (shell("a", "sleep 60", 0.3), "failed", "took longer than 0 s, its limit"),
        (shell("a", "echo fine", read=unreadable), "failed", "its result cannot be read (JSOND"),
        (shell("a", "exit 3", read=unreadable), "failed", "status 3"),
        (
            shell("a", "exit 0", read=disappointed(StepError("no test ran"))),
            "failed",
            "no test ran",
        ),
        (
            shell("a", "exit 3", read=disappointed(StepError("no test ran"))),
            "failed",
            "status 3; no test ran",
        ),
        (shell("a", "exit 9", read=disappointed(LackingError("not root"))), "lacking", "not root"),
    ],
)
def test_a_step_is_a_row_with_its_reason(
    run: Callable[..., dict[str, Row]], step: Step, status: str, reason: str
) -> None:
    rows = run(step, shell("next", "true"))
    assert rows["a"].status == status
    assert rows["a"].reason.startswith(reason)
    assert bool(rows["a"].reason) is bool(reason)
    assert rows["next"].status == "passed"


def test_a_log_a_step_and_its_end_in_the_row_of_one_that_failed(
    run: Callable[..., dict[str, Row]], tmp_path: Path
) -> None:
    rows = run(shell("a b", "seq 100; exit 1"), shell("c", "seq 3", read=lambda: {"x": 1}))
    assert rows["a b"].tail == [str(number) for number in range(71, 101)]
    assert (tmp_path / "a-b.log").read_text().split() == [str(n) for n in range(1, 101)]
    assert (rows["c"].tail, rows["c"].facts) == ([], {"x": 1})


def test_steps_of_a_group_run_side_by_side(run: Callable[..., dict[str, Row]]) -> None:
    """The first waits for the last, which one after the other would never come."""
    waits = "for i in $(seq 100); do [ -e there ] && exit 0; sleep 0.05; done; exit 1"
    rows = run(
        shell("first", waits, group="both"),
        shell("slow", "sleep 60", 0.2, group="both"),
        shell("last", "touch there", group="both"),
        shell("after", "rm there"),
    )
    assert [row.status for row in rows.values()].count("passed") == 3
    assert rows["slow"].status == "failed"
    assert list(rows)[-1] == "after"


def test_the_budget_cuts_limits_and_then_leaves_out(
    run: Callable[..., dict[str, Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gpu_run, "LEAST", 0.1)
    begun = time.monotonic()
    rows = run(shell("a", "sleep 60"), shell("b", "true"), budget=0.6)
    assert time.monotonic() - begun < 10
    assert rows["a"].reason == "took longer than 1 s, what was left of the budget"
    assert (rows["b"].status, rows["b"].reason[:19]) == ("not run", "the budget is spent")


def test_all_that_a_step_started_ends_with_it(
    run: Callable[..., dict[str, Row]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_gpu_run, "GRACE", 0.2)
    script = "sleep 60 & echo $! > pid; trap '' TERM; while :; do sleep 0.1; done"
    rows = run(shell("a", script, 0.5), shell("b", "sleep 60 & echo $! > other"))
    assert [row.status for row in rows.values()] == ["failed", "passed"]
    for name in ("pid", "other"):
        process = Path("/proc") / (tmp_path / name).read_text().strip() / "stat"
        for _ in range(100):
            if not process.exists() or process.read_text().split()[2] == "Z":
                break
            time.sleep(0.05)
        else:
            pytest.fail("it is still there")


# --- the command ---------------------------------------------------------------------------------

PROGRAM = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU that nvidia-smi knows of, in a PATH of programs that a test writes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder / "nvidia-smi", "echo 'NVIDIA X1, 580.1, 80000 MiB, 9.0'")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def scripted(monkeypatch: pytest.MonkeyPatch, *steps: Step) -> None:
    monkeypatch.setattr(gpu_check, "build_steps", lambda cmake: [])
    monkeypatch.setattr(gpu_check, "steps", lambda output, libraries, programs: list(steps))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu_check.json").read_text())


@pytest.mark.parametrize(
    ("scripts", "status", "verdict"),
    [
        ({"a": "true", "b": "true"}, 0, "PASS 2 passed"),
        ({"a": "true", "b": "exit 77"}, 0, "PASS 1 passed, 1 lacking"),
        ({"a": "true", "b": "false"}, 1, "FAIL 1 passed, 1 failed"),
        ({"a": "exit 77", "b": "exit 77"}, 1, "FAIL nothing was checked: 2 lacking"),
    ],
)
def test_verdict(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    scripts: dict[str, str],
    status: int,
    verdict: str,
) -> None:
    scripted(monkeypatch, *(shell(name, script) for name, script in scripts.items()))
    assert gpu_check.main([str(tmp_path / "out")]) == status
    assert f"\n{verdict}; " in capsys.readouterr().out
    assert result(tmp_path / "out")["passed"] is (status == 0)


def test_the_result_says_what_ran_where(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    scripted(monkeypatch, shell("a", f"cd {ROOT}; pwd; echo {output}; exit 3"))
    gpu_check.main([str(output), "--budget", "50"])
    found = result(output)
    assert found["schema"] == 1
    assert {name: found["machine"][name] for name in ("gpu", "driver", "compute_capability")} == {
        "gpu": "NVIDIA X1",
        "driver": "580.1",
        "compute_capability": "9.0",
    }
    assert found["budget_s"] == 50
    environment = found["environment"]
    assert {"cpu", "cores", "system", "python", "date"} <= set(environment)
    assert re.fullmatch("[0-9a-f]{40}", environment["commit"])
    assert environment["uncommitted_changes"] in (True, False)
    assert environment["packages"]["numpy"]
    [step] = found["steps"]
    assert (step["status"], step["reason"], step["tail"]) == (
        "failed",
        "status 3: OUT",
        [".", "OUT"],
    )
    assert str(ROOT) not in json.dumps(step)


@pytest.mark.parametrize(
    ("given", "commit", "changed"),
    [("abc123", "abc123", False), ("abc123-dirty", "abc123", True), ("", None, None)],
)
def test_sources_without_a_checkout(
    monkeypatch: pytest.MonkeyPatch, given: str, commit: str | None, changed: bool | None
) -> None:
    from _common import environment

    from carafe_deploy.bench import provenance

    monkeypatch.setattr(provenance, "_git", lambda *arguments: None)
    monkeypatch.setenv("CARAFE_DEPLOY_COMMIT", given)
    facts = environment()
    assert (facts["commit"], facts["uncommitted_changes"]) == (commit, changed)


def test_the_result_is_there_after_every_step(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    copies = f"cp {output}/gpu_check.json {tmp_path}/seen.json"
    scripted(monkeypatch, shell("first", "true"), shell("second", copies))
    assert gpu_check.main([str(output)]) == 0
    seen = json.loads((tmp_path / "seen.json").read_text())["steps"]
    assert [(step["name"], step["status"]) for step in seen] == [("first", "passed")]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_kill_loses_one_step(
    machine: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The whole program, whose compute-sanitizer hangs."""
    libraries = tmp_path / "lib"
    libraries.mkdir()
    (libraries / "libcarafe_kernels.so").touch()
    program(libraries / "carafe_harness", "true")
    program(libraries / "carafe_designs", "exit 77")
    program(machine / "compute-sanitizer", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, PROGRAM, output, "--steps", "designs", "memcheck"],
        env={**os.environ, "CARAFE_DEPLOY_PLUGIN": str(libraries)},
        stdout=subprocess.DEVNULL,
    )
    for _ in range(600):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            break
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(20) == status
    child = int((tmp_path / "pid").read_text())
    rows = {step["name"]: step["reason"] for step in result(output)["steps"]}
    if number == signal.SIGKILL:
        os.kill(child, signal.SIGKILL)
        assert rows == {}
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert rows == {"memcheck": "interrupted"}


def test_without_a_gpu_rows_say_so_at_once(
    machine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program(machine / "nvidia-smi", "echo 'NVML: no driver'; exit 9")
    begun = time.monotonic()
    assert gpu_check.main([str(tmp_path / "out")]) == 1
    assert time.monotonic() - begun < 10
    steps = result(tmp_path / "out")["steps"]
    names = ["configure", "build", "memcheck", "racecheck", "synccheck", "initcheck", "pytest"]
    names += ["selfcheck", "operators", "designs", "harness", "detectors", "modes", "stream"]
    names += ["onnxruntime", "ncu"]
    assert [step["name"] for step in steps] == names
    assert {step["status"] for step in steps} == {"lacking"}
    assert all(step["reason"].startswith("it needs a GPU: nvidia-smi: ") for step in steps)
    assert "\nFAIL nothing was checked: 16 lacking; " in capsys.readouterr().out


@pytest.mark.parametrize("beside", [True, False])
def test_prebuilt_libraries_are_taken_and_nothing_is_built(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: bool
) -> None:
    libraries, programs = tmp_path / "lib", tmp_path / ("bin" if beside else "lib")
    libraries.mkdir()
    (libraries / "libcarafe_kernels.so").touch()
    for name in ("carafe_harness", "carafe_designs"):
        program(programs / name, f"echo $0 $CARAFE_DEPLOY_PLUGIN $PYTHONPATH; echo {name}; exit 77")
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(libraries))
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert gpu_check.main([str(tmp_path / "out"), "--steps", "harness"]) == 1
    found = result(tmp_path / "out")
    assert found["machine"]["prebuilt_libraries"] is True
    assert [(step["name"], step["status"]) for step in found["steps"]] == [("harness", "lacking")]
    said = (tmp_path / "out" / "harness.log").read_text().split()
    assert said[:3] == [str(programs / "carafe_harness"), str(libraries), f"{ROOT}:/somewhere"]


@pytest.mark.parametrize(
    ("arguments", "plugin", "message"),
    [
        (
            ["--steps", "bench"],
            None,
            "there is no step 'bench': choose from correctness, c",
        ),
        (["--budget", "0"], None, "--budget is 0: give a number of seconds above 0"),
        ([], "/nonexistent", "CARAFE_DEPLOY_PLUGIN is '/nonexistent', which does not exist"),
    ],
)
def test_bad_arguments(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    plugin: str | None,
    message: str,
) -> None:
    if plugin is not None:
        monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", plugin)
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main([str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_groups_and_steps_by_name(tmp_path: Path) -> None:
    every = [*_gpu_steps.build_steps([]), *_gpu_steps.steps(tmp_path, tmp_path, tmp_path)]
    group = [*_gpu_steps.SANITIZERS, "pytest", "selfcheck"]
    assert [step.name for step in gpu_check.chosen(["correctness"], every)] == group
    assert [step.name for step in gpu_check.chosen(["ncu", "designs"], every)] == ["designs", "ncu"]
    assert gpu_check.chosen(None, every) == every


def test_it_starts_where_nothing_is_installed(tmp_path: Path) -> None:
    """By path from elsewhere, without a PYTHONPATH, without a network, and writes nothing there."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", PROGRAM, "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout


# --- what is read out of results -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "outcome"),
    [
        ('tests="9" failures="0" errors="0" skipped="2"', 7),
        ('tests="9" failures="2" errors="0" skipped="0"', 7),
        ('tests="9" failures="0" errors="0" skipped="9"', "no test passed, 9 were skipped"),
        ('tests="0" failures="0" errors="0" skipped="0"', "no test passed, 0 were skipped"),
    ],
)
def test_skipped_tests_are_not_passed(tmp_path: Path, suite: str, outcome: int | str) -> None:
    path = tmp_path / "pytest.xml"
    path.write_text(f"<testsuites><testsuite {suite}/></testsuites>")
    if isinstance(outcome, int):
        assert _gpu_steps.tests_passed(path)["passed"] == outcome
    else:
        with pytest.raises(StepError, match=outcome):
            _gpu_steps.tests_passed(path)


def check(backend: str, status: str, reason: str = "") -> dict[str, Any]:
    return {"detector": "m-1.pth", "backend": backend, "status": status, "reason": reason}


def test_a_self_check_without_a_gpu_backend_is_not_passed() -> None:
    cpu = check("PyTorch, cpu", "passed")
    lacking = check("PyTorch, cuda", "skipped", "no CUDA"), check("TensorRT", "skipped", "no TRT")
    with pytest.raises(StepError, match="no backend passed on the GPU: no CUDA; no TRT"):
        _gpu_steps.backends({"checks": [cpu, *lacking]})
    lines = ["m, PyTorch, cuda: passed", "m, TensorRT: skipped no TRT"]
    checks = [cpu, check("PyTorch, cuda", "passed"), lacking[1]]
    assert _gpu_steps.backends({"checks": checks})["lines"] == lines
    broken = check("TorchScript, cpu", "failed", "stages: off")
    with pytest.raises(StepError, match=r"^TorchScript, cpu: stages: off$") as caught:
        _gpu_steps.backends({"checks": [*checks, broken, broken]})
    assert caught.value.facts["lines"] == lines


def measured(implementation: str, layout: str, *samples: float, **facts: Any) -> dict[str, Any]:
    return {
        "operator": "carafe",
        "workload": "neck P3",
        "implementation": implementation,
        "entry": "carafe_encoded",
        "dtype": "float32",
        "layout": layout,
        "samples_us": samples,
        "reason": "",
        **facts,
    }


def test_peers_are_set_beside_ours() -> None:
    nms = {"operator": "nms", "workload": "RPN", "entry": "batched_nms"}
    rows = [
        measured("CUDA kernel", "nchw", 40.0, 38.0, 39.0),
        measured("CUDA kernel", "channels-last", 20.0, 22.0),
        measured("CUDA kernel", "nchw", 1.0, entry="carafe"),
        measured("CUDA kernel", "nchw", 2.0, dtype="float16"),
        measured("mmcv, unfused", "nchw", 168.0),
        measured("mmcv, unfused", "channels-last", 900.0),
        measured("mmcv", "nchw", 100.0, entry="carafe"),
        measured("mmcv", "nchw", dtype="bfloat16", reason="mmcv's CARAFE has no bfloat16"),
        measured("CUDA kernel", "", 10.0, **nms),
        measured("torchvision", "", 817.0, **nms),
    ]
    facts = _gpu_steps.peers({"rows": rows})
    assert facts["peers"] == [
        {
            "call": "carafe neck P3 float32",
            "peer": "mmcv",
            "peer_us": 168.0,
            "ours_us": {"nchw": 39.0, "channels-last": 21.0},
        },
        {"call": "nms RPN float32", "peer": "torchvision", "peer_us": 817.0, "ours_us": {"": 10.0}},
    ]
    assert facts["lacking"] == {"mmcv": "mmcv's CARAFE has no bfloat16"}
    assert facts["lines"][0] == "carafe neck P3 float32: 21.0 us, mmcv 168.0 us, 8.0 times"
    broken = measured("PyTorch", "", **nms, reason="failed: RuntimeError: x")
    with pytest.raises(StepError, match=r"^1 rows, first PyTorch failed: RuntimeErr") as caught:
        _gpu_steps.peers({"rows": [*rows, broken]})
    assert caught.value.facts == facts


def test_designs_are_ranked_a_call() -> None:
    calls = [
        entry("any", 30.0, agrees=False),
        entry("strips_2x8", 4.0, chosen=True),
        entry("strips_4x4", 3.5),
        entry("any", 9.0, layout="NCHW"),
    ]
    assert _gpu_steps.fastest_designs({"copy_gb_per_s": 2900.4, "calls": calls}) == [
        "a copy moves 2900 GB/s",
        "float32 NHWC 1x256x13x21: strips_4x4 3.5 us (50%), strips_2x8* 4.0 us (50%),"
        " any 30.0 us (50%) WRONG",
        "float32 NCHW 1x256x13x21: any 9.0 us (50%)",
    ]


@pytest.mark.parametrize("without_a_right_result", [False, True])
def test_where_choose_takes_another_design_is_said(
    monkeypatch: pytest.MonkeyPatch, without_a_right_result: bool
) -> None:
    measured = {"copy_gb_per_s": 2900.4, "calls": [entry("any", 9.0)]}

    def disagreements(given: Any) -> str:
        assert given is measured
        if without_a_right_result:
            raise ValueError("no result is right: measure again")
        return "the fastest in 0 of 1 calls\n  1x256x13x21: takes any, planes is faster"

    choice = SimpleNamespace(disagreements=disagreements)
    monkeypatch.setitem(sys.modules, "_design_choice", choice)
    told = ["the fastest in 0 of 1 calls", "  1x256x13x21: takes any, planes is faster"]
    told = ["no result is right: measure again"] if without_a_right_result else told
    facts = _gpu_steps.design_facts(measured)
    assert facts["choice"] == told
    ranked = ["a copy moves 2900 GB/s", "float32 NHWC 1x256x13x21: any 9.0 us (50%)"]
    assert facts["lines"] == [*ranked, *told]
    measured["calls"].append(entry("planes", 8.0, agrees=False))
    with pytest.raises(StepError, match=r"^1 results differ from the CPU: planes$") as caught:
        _gpu_steps.design_facts(measured)
    assert caught.value.facts["choice"] == told


@pytest.mark.parametrize(
    ("agrees", "message"),
    [([True, True], None), ([True, False], "1 of 2 cases differ: Carafe b"), ([], "0 of 0 cases")],
)
def test_cases_of_the_harness(agrees: list[bool], message: str | None) -> None:
    cases = [
        {"case": name, "plugin": "Carafe", "agrees": one}
        for name, one in zip("ab", agrees, strict=False)
    ]
    if message is None:
        assert _gpu_steps.harness_facts(cases)["lines"] == ["2 cases agree"]
    else:
        with pytest.raises(StepError, match=message):
            _gpu_steps.harness_facts(cases)


def test_ways_to_run_a_detector() -> None:
    def subject(name: str, status: str, reason: str = "", **facts: Any) -> dict[str, Any]:
        known = {"samples": None, "agreement": None}
        return {"name": name, "status": status, "reason": reason, **known, **facts}

    timed = {"samples": {"total_ms": [4.0, 6.0]}}
    good = [subject("a", "measured", **timed), subject("b", "skipped", "no GPU")]
    lines = ["a: 5.0 ms an image", "b skipped: no GPU"]
    assert _gpu_steps.detector_facts({"subjects": good})["lines"] == lines
    other = {"matched": 60, "total": 64, "passed": False}
    for bad, message in (
        (subject("c", "failed", "no luck"), "^c failed: no luck$"),
        (subject("c", "measured", agreement=other), "^c finds 60 of 64 detections$"),
    ):
        with pytest.raises(StepError, match=message) as caught:
            _gpu_steps.detector_facts({"subjects": [*good, bad]})
        assert caught.value.facts["lines"] == lines


def mode_row(way: str, **changes: Any) -> dict[str, Any]:
    times = {"median_ms": 2.5, "images_per_second": 400.0, "launches": 160, "agrees": True}
    return {"way": way, **times, **changes}


def test_ways_to_run_pytorch() -> None:
    rows = [mode_row("a"), {"way": "b", "left_out": "for want of time"}]
    lines = ["a: 2.5 ms, 400.0/s, 160 launches", "b: left out for want of time"]
    assert _gpu_steps.mode_facts({"rows": rows})["lines"] == lines
    for bad, message in (
        (mode_row("c", agrees=False), "c detects other than the usual way"),
        ({"way": "c", "error": "OSError: lost"}, "c: OSError: lost"),
    ):
        with pytest.raises(StepError, match=message) as caught:
            _gpu_steps.mode_facts({"rows": [*rows, bad]})
        assert caught.value.facts["lines"][:2] == lines


def onnxruntime_row(**changes: Any) -> dict[str, Any]:
    way = {"operators": True, "mode": "eager", "provider_options": None}
    times = {"median_ms": 7.5, "images_per_second": 133.3, "agrees": True}
    return {"file": "fp16, batch 1", **way, **times, **changes}


@pytest.mark.parametrize(
    ("stream", "share", "passes"), [(290, 0.91, True), (280, 0.89, False), (240, 0.95, False)]
)
def test_a_stream_beside_its_detector(stream: float, share: float, passes: bool) -> None:
    measured = {
        "batch": 8,
        "images_per_second": {"detector": 319, "stream": stream},
        "share": share,
        "masks_an_image": 21.5,
        "cores": 8,
        "aim": {"share": 0.9, "images_per_second": 250.0},
    }
    line = f"batch 8: {stream}/s, {share:.0%} of the detector's 319/s, 21.5 masks an image, 8 cores"
    if passes:
        assert _gpu_steps.stream_facts(measured) == {"lines": [line]}
    else:
        with pytest.raises(StepError, match="the aim is 90% and 250/s") as caught:
            _gpu_steps.stream_facts(measured)
        assert caught.value.facts == {"lines": [line]}


def test_ways_of_onnx_runtime() -> None:
    refused = {"provider_options": {"x": "1"}, "error": "RuntimeError: no x"}
    bodies = onnxruntime_row(operators=False, device_memory_mb=900)
    rows = [onnxruntime_row(), bodies, onnxruntime_row(**refused)]
    assert _gpu_steps.onnxruntime_facts({"rows": rows})["lines"] == [
        "fp16, batch 1, kernels, eager: 7.5 ms, 133.3/s",
        "fp16, batch 1, bodies, eager: 7.5 ms, 133.3/s, 900 MB",
        "fp16, batch 1, kernels, eager, x=1: RuntimeError: no x",
    ]
    for change, message in (
        ({"agrees": False}, "fp16, batch 1, kernels, eager detects other than the first"),
        ({"error": "OSError: lost"}, "fp16, batch 1, kernels, eager: OSError: lost"),
    ):
        with pytest.raises(StepError, match=message) as caught:
            _gpu_steps.onnxruntime_facts({"rows": [*rows, onnxruntime_row(**change)]})
        assert len(caught.value.facts["lines"]) >= 3


def test_onnx_runtime_without_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "has no CUDA provider" in _gpu_steps.without_provider()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert _gpu_steps.without_provider() == ""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert _gpu_steps.without_provider() == "onnxruntime is not installed"


TABLE = """==PROF== Connected to process 1
"ID","Kernel Name","Block Size","Grid Size","Section","Metric Name","Metric Unit","Metric Value"
"0","void carafe_strips<float, 5>(int)","(128, 1, 1)","(9, 1, 1)","x","Duration","us","52.38"
"0","void carafe_strips<float, 5>(int)","(128, 1, 1)","(9, 1, 1)","x","Elapsed Cycles","","9"
"0","void carafe_strips<float, 5>(int)","(128, 1, 1)","(9, 1, 1)","x","DRAM Throughput","%","42.8"
"1","suppress","(64, 1, 1)","(5, 1, 1)","x","Duration","us","7"
"""


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (TABLE, None, ""),
        ("==ERROR== ERR_NVGPUCTRPERM - no permission", LackingError, "only administrators"),
        (TABLE.splitlines()[0], StepError, "saw none of our kernels"),
    ],
)
def test_nsight_compute(
    tmp_path: Path, text: str, error: type[Exception] | None, message: str
) -> None:
    (tmp_path / "ncu.csv").write_text(text)
    output = tmp_path / "ncu.json"
    if error is not None:
        with pytest.raises(error, match=message):
            _gpu_steps.kernel_facts(tmp_path / "ncu.csv", output)
        return
    assert _gpu_steps.kernel_facts(tmp_path / "ncu.csv", output)["launches"] == 2
    assert json.loads(output.read_text()) == [
        {
            "kernel": "void carafe_strips<float, 5>(int)",
            "grid": "(9, 1, 1)",
            "block": "(128, 1, 1)",
            "Duration": "52.38 us",
            "DRAM Throughput": "42.8 %",
        },
        {"kernel": "suppress", "grid": "(5, 1, 1)", "block": "(64, 1, 1)", "Duration": "7 us"},
    ]


def test_what_nsight_compute_looks_at_runs() -> None:
    import torch
    from _gpu_kernels import run as run_kernels

    assert run_kernels(["nms"], torch.device("cpu")) >= 3


# --- the program that measures designs -----------------------------------------------------------


def test_program_on_the_emulator_writes_what_is_ranked(tmp_path: Any) -> None:
    program = built("libcarafe_kernels_emulated.so").parents[1] / "plugins/tests/emulated_designs"
    output = tmp_path / "designs.json"
    subprocess.run([program, "--small", "--output", output], check=True, timeout=120)
    measured = json.loads(output.read_text())
    assert all(call["agrees"] for call in measured["calls"])
    lines = _gpu_steps.fastest_designs(measured)
    assert len(lines) == 1 + 3 * 2 * 2  # types, layouts, shapes
    assert all(line.count("*") == 1 for line in lines[1:])
    designs = {call["design"] for call in measured["calls"]}
    assert designs == {
        *("any", "planes", "row_pairs", "channels_last", "strips_4x4", "strips_2x8"),
    }


@pytest.mark.parametrize("arguments", [["--wrong"], ["--output"]])
def test_program_refuses_other_arguments(arguments: list[str]) -> None:
    program = built("libcarafe_kernels_emulated.so").parents[1] / "plugins/tests/emulated_designs"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr
