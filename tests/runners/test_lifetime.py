"""Runners that are closed, that are printed, and that find themselves in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.parity.compatible import BoundedRunner
from carafe_deploy.runners import _torch
from tests.engine import fake_tensorrt
from tests.engine.fake_tensorrt import write_engine

BACKENDS = ("pytorch", "torchscript", "onnxruntime", "tensorrt")


@pytest.fixture
def opened(
    shapes_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """A runner of a backend; the engine's GPU is made up."""

    def open_(backend: str) -> Any:
        if backend == "tensorrt":
            trt = fake_tensorrt.install(monkeypatch)
            return open_runner(write_engine(tmp_path / "toy.engine", trt))
        return open_runner(shapes_files[backend])

    return open_


def _inputs(width: int = 128) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(1, 3, 64, width)).astype(np.float32)
    return {"images": images, "image_sizes": np.array([[64, width]], np.float32)}


#: Whatever there is to call.
CALLS: dict[str, Callable[[Any], object]] = {
    "run": lambda runner: runner.run(_inputs()),
    "run_timed": lambda runner: runner.run_timed(_inputs()),
    "run_stages": lambda runner: runner.run_stages(_inputs()),
    "run_operator": lambda runner: runner.run_operator(runner.info.operators, []),
    "profile": lambda runner: runner.profile(_inputs(), 1),
    "custom_nodes": lambda runner: runner.custom_nodes(),
    "prepared": lambda runner: runner.prepared(_inputs()),
    "module": lambda runner: runner.module,
    "__enter__": lambda runner: runner.__enter__(),
}


def _refused(runner: Any, message: str) -> list[str]:
    called = [name for name in CALLS if hasattr(type(runner), name)]
    for name in called:
        with pytest.raises(CarafeDeployError, match=message):
            CALLS[name](runner)
    return called


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_method_of_a_closed_runner_says_so(
    opened: Callable[[str], Any], backend: str
) -> None:
    runner = opened(backend)
    prepared = runner.prepared(_inputs()) if hasattr(runner, "prepared") else None
    runner.close()
    runner.close()
    label = rf"{'toy' if backend == 'tensorrt' else 'faster'}.* is closed: open it again"
    assert len(_refused(runner, label)) >= 5
    if prepared is not None:
        with pytest.raises(CarafeDeployError, match=label):
            prepared()
    assert repr(runner).endswith(", closed>")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runner_in_another_process_says_how_to_do_without(
    opened: Callable[[str], Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened(backend)
    freed = []
    monkeypatch.setattr(runner, "_free", lambda: freed.append(runner))
    here = os.getpid()
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: here + 1)
        _refused(runner, f"opened in process {here} and is used in its fork {here + 1}.*spawn")
        runner.close()
        assert freed == []  # what is not there cannot be freed


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("pytorch", r"<PyTorchRunner .*\.pth: faster_rcnn fp32, on cpu, channels-last>"),
        ("torchscript", r"<TorchScriptRunner .*faster_\w+\.ts: faster_rcnn fp32, on cpu>"),
        ("onnxruntime", r"<OnnxRuntimeRunner .*faster_\w+\.onnx: faster_rcnn fp32, on cpu>"),
        ("tensorrt", r"<TensorRTRunner .*toy\.engine: faster_rcnn fp32, on cuda:0>"),
    ],
)
def test_one_line_when_printed(opened: Callable[[str], Any], backend: str, expected: str) -> None:
    with opened(backend) as runner:
        assert re.fullmatch(expected, repr(runner))
        bounded = BoundedRunner(runner, (1, 1), (64, 64), (128, 128))
        assert repr(bounded).startswith("<BoundedRunner batch (1, 1), height (64, 64), width (128")
        assert "\n" not in repr(bounded)
        assert bounded.device == runner.device


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_that_may_only_be_read_are_no_matter(
    opened: Callable[[str], Any], backend: str, tmp_path: Path
) -> None:
    inputs = _inputs()
    # A page that must not be written: who did would end the process.
    np.save(tmp_path / "images.npy", inputs["images"])
    readonly = {**inputs, "images": np.load(tmp_path / "images.npy", mmap_mode="r")}
    with opened(backend) as runner, warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, found = runner.run(inputs), runner.run(readonly)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_readonly_array_is_not_copied_for_that() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.setflags(write=False)
    tensor = _torch._tensor(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    del array
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


# --- processes and threads: docs/processes.md ----------------------------------------------------

#: Everything in turn, a line of outcome each.
PROGRAM = """
import multiprocessing, sys, threading
import numpy as np
from carafe_deploy.artefacts import open_runner

inputs = {"images": np.zeros((1, 3, 64, 128), np.float32), "image_sizes": np.float32([[64, 128]])}

def reopened(path, threads=None):
    if threads:
        import torch
        torch.set_num_threads(threads)
    with open_runner(path) as runner:
        runner.run(inputs)

def child(what, context, target, *arguments):
    def attempt():
        try:
            target(*arguments)
        except Exception as error:
            print(what, "=", error, flush=True)
            sys.exit(1)
    attempt = attempt if context == "fork" else target
    process = multiprocessing.get_context(context).Process(
        target=attempt, args=() if context == "fork" else arguments
    )
    process.start()
    process.join(60 if context == "fork" else 200)
    if process.is_alive():
        print(what, "=", "hangs", flush=True)
    elif process.exitcode == 0:
        print(what, "=", "works", flush=True)
    process.kill()

if __name__ == "__main__":
    path = sys.argv[1]
    if not path.endswith(".onnx"):
        import torch
        torch.set_num_threads(2)
    child("fork first", "fork", reopened, path)
    with open_runner(path) as runner:
        runner.run(inputs)
        child("fork, the parent's", "fork", runner.run, inputs)
        child("fork, its own", "fork", reopened, path)
        child("fork, its own, one thread", "fork", reopened, path, 1)
        child("spawn", "spawn", reopened, path)
        threads = [threading.Thread(target=runner.run, args=(inputs,)) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join(60) for thread in threads]
        print("threads", "=", "works")
"""
REFUSED = "was opened in process"


@pytest.mark.parametrize(
    ("backend", "its_own"), [("torchscript", "PyTorch has computed in"), ("onnxruntime", "works")]
)
def test_what_works_in_processes_and_threads(
    shapes_files: dict[str, Path], tmp_path: Path, backend: str, its_own: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), str(shapes_files[backend])],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"},
        check=False,
    )
    found = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    expected = {
        "fork first": "works",
        "fork, the parent's": REFUSED,
        "fork, its own": its_own,
        "fork, its own, one thread": "works",
        "spawn": "works",
        "threads": "works",
    }
    assert found.keys() == expected.keys(), done.stdout + done.stderr
    for what, outcome in expected.items():
        assert outcome in found[what], what
