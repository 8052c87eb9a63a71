"""Runners that are closed, that are printed, and that find themselves in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.parity.compatible import BoundedRunner
from carafe_deploy.runners import _torch
from tests.engine import fake_tensorrt
from tests.engine.fake_tensorrt import write_engine


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


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("pytorch", r"<PyTorchRunner .*\.pth: faster_rcnn fp32, on cpu, channels-last>"),
        ("torchscript", r"<TorchScriptRunner .*faster_\w+\.ts: faster_rcnn fp32, on cpu>"),
        (
            "onnxruntime",
            r"<OnnxRuntimeRunner .*faster_\w+\.onnx: faster_rcnn fp32, on cpu, kernels>",
        ),
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


def test_a_fork_frees_nothing_of_its_parent(shapes_files: dict[str, Path]) -> None:
    """ONNX Runtime's session would wait for threads that are not there."""
    with open_runner(shapes_files["onnxruntime"]) as runner:
        references = sys.getrefcount(runner)
        child = os.fork()
        if child == 0:
            runner.close()
            os._exit(sys.getrefcount(runner) - references)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1  # that is never given back
