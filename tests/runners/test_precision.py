"""fp32 is float32 whatever the process has chosen, TF32 only if asked for; all that on any machine.

What counts is a setting while a model runs, so models here write down the settings they run under.
"""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.backends import cuda, cudnn, mkldnn

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import CarafeDeployError, RunError
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.runners._precision import float32_products
from carafe_deploy.runners.base import with_tf32
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import ModelInfo, OperatorCall

INFO = ModelInfo("toy", "faster_rcnn", ("a",))
INPUTS = {
    "images": np.zeros((1, 3, 64, 64), np.float32),
    "image_sizes": np.array([[64, 64]], np.float32),
}
PARTS = (cudnn, cudnn.conv, cudnn.rnn, cuda.matmul, mkldnn.conv, mkldnn.matmul)


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError:
        return "contradictory"


def settings() -> list[Any]:
    """All that PyTorch says of float32, by both of its interfaces."""
    return [
        _answer(lambda: cudnn.allow_tf32),
        _answer(lambda: cuda.matmul.allow_tf32),
        _answer(torch.get_float32_matmul_precision),
        torch.backends.fp32_precision,
        *(part.fp32_precision for part in PARTS),
    ]


def rounds() -> list[bool]:
    """Who rounds float32: convolutions and products by the old interface, then by the new one."""
    said = [part.fp32_precision not in ("ieee", "none") for part in PARTS]
    return [cudnn.allow_tf32, cuda.matmul.allow_tf32, *said]


EXACT = [False] * 8
TF32 = [True] * 6 + [False] * 2  # never on the CPU


def _old(convolutions: bool, products: str) -> None:
    cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _new(**values: str) -> None:
    for name, value in values.items():
        part = {"all": torch.backends, "conv": cudnn.conv, "matmul": cuda.matmul}[name]
        part.fp32_precision = value


PROCESSES = {
    "as PyTorch starts": lambda: None,
    "old interface, all TF32": lambda: _old(True, "high"),
    "old interface, products in bfloat16": lambda: _old(True, "medium"),
    "old interface, exact": lambda: _old(False, "highest"),
    "new interface, one exact": lambda: _new(conv="ieee"),
    "new interface, one TF32": lambda: _new(matmul="tf32"),
    "new interface, all TF32": lambda: _new(all="tf32"),
    "both interfaces": lambda: (_old(False, "highest"), _new(all="tf32", conv="none")),
}


@pytest.fixture(params=PROCESSES)
def process(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """A process with settings of its own, and what it says of them."""
    PROCESSES[request.param]()
    yield settings()
    torch.backends.fp32_precision = "none"
    cudnn.fp32_precision = "none"
    _old(True, "highest")
    for part in (cuda.matmul, mkldnn.conv, mkldnn.matmul):
        part.fp32_precision = "none"


class Recording(torch.nn.Module):
    """Writes down who rounds, then fails if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[bool]] = []
        self.fails = False

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen.append(rounds())
        if self.fails:
            raise RuntimeError("out of memory")
        return (sizes,) * len(INFO.output_names)


@pytest.mark.parametrize("tf32", [False, True])
def test_a_run_has_its_own_settings_and_leaves_the_processes(
    process: list[Any], tf32: bool
) -> None:
    module = Recording()
    runner = PyTorchRunner(INFO, torch.device("cpu"), module, module, tf32=tf32)
    runner.run(INPUTS)
    runner.run_timed(INPUTS)
    runner.run_stages(INPUTS)
    prepared = runner.prepared(INPUTS)
    prepared()
    module.fails = True
    with pytest.raises(RunError, match="out of memory"):
        runner.run(INPUTS)
    assert module.seen == [TF32 if tf32 else EXACT] * 5
    assert settings() == process


@pytest.mark.parametrize("tf32", [False, True])
def test_compiling_and_single_operators_too(monkeypatch: pytest.MonkeyPatch, tf32: bool) -> None:
    before = settings()
    module = Recording()
    compiled = []

    def compile_(forward: Any, **settings: Any) -> Any:
        def first_call(*inputs: Any) -> Any:
            compiled.append(rounds())
            return forward(*inputs)

        return first_call

    monkeypatch.setattr(torch, "compile", compile_)
    runner = PyTorchRunner(INFO, torch.device("cpu"), module, module, mode="compile", tf32=tf32)
    runner.run(INPUTS)
    operator = SimpleNamespace(carafe=lambda *a, **k: compiled.append(rounds()) or a[0])
    monkeypatch.setattr(torch.ops, "carafe", operator)
    runner.run_operator(OperatorCall("carafe", ((1,),), {}), [np.zeros(1, np.float32)])
    assert compiled + module.seen == [TF32 if tf32 else EXACT] * 3
    assert settings() == before


def test_a_torchscript_file_runs_so(shapes_files: dict[str, Path]) -> None:
    before = settings()
    seen = []
    with open_runner(shapes_files["torchscript"]) as runner:
        forward = runner.module
        runner._forward = lambda *inputs: (seen.append(rounds()), forward(*inputs))[1]
        cudnn.allow_tf32 = True
        runner.run(
            {
                "images": np.zeros((1, 3, 64, 128), np.float32),
                "image_sizes": np.float32([[64, 128]]),
            }
        )
    assert seen == [EXACT]
    assert settings() == before


def test_runs_that_ask_for_the_same_run_side_by_side_the_others_wait() -> None:
    inside, meets = [], threading.Barrier(2, timeout=60)
    begun, release = threading.Event(), threading.Event()

    def exact(hold: bool) -> None:
        with float32_products():
            inside.append(("exact", rounds() == EXACT))
            meets.wait()  # with the other one that wants the same
            begun.set()
            if hold:
                release.wait(60)

    def other() -> None:
        begun.wait(60)
        with float32_products(tf32=True):
            inside.append(("tf32", rounds() == TF32))

    threads = [threading.Thread(target=exact, args=(hold,)) for hold in (True, False)]
    threads.append(threading.Thread(target=other))
    for thread in threads:
        thread.start()
    begun.wait(60)
    threads[2].join(0.1)
    assert inside == [("exact", True)] * 2
    release.set()
    for thread in threads:
        thread.join(60)
    assert inside == [("exact", True)] * 2 + [("tf32", True)]


def test_one_inside_the_other_is_refused_instead_of_waiting_for_itself() -> None:
    before = settings()
    with float32_products():
        with float32_products():
            pass
        with pytest.raises(CarafeDeployError, match="inside each other"), float32_products(True):
            pass
        assert rounds() == EXACT
    assert settings() == before


def test_what_is_computed_with_tf32_says_so() -> None:
    module = Recording()
    runner = PyTorchRunner(INFO, torch.device("cpu"), module, module, tf32=True)
    assert runner.info.precision == "tf32"
    assert ExportOptions.like(runner.info).precision == "fp32"
    with pytest.raises(CarafeDeployError, match="toy computes in fp16: leave it out"):
        with_tf32(ModelInfo("toy", "faster_rcnn", ("a",), precision="fp16"))


# --- ONNX Runtime --------------------------------------------------------------------------------


def test_another_thread_may_close_what_one_has_opened() -> None:
    before = torch.get_float32_matmul_precision()
    held = float32_products()
    opener = threading.Thread(target=held.__enter__)
    opener.start()
    opener.join()
    held.__exit__(None, None, None)
    with float32_products(tf32=True):  # nobody is waited for
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_a_fork_while_another_thread_holds_the_settings_is_free_of_them() -> None:
    context = multiprocessing.get_context("fork")
    before = torch.get_float32_matmul_precision()
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with float32_products(tf32=True):
            inside.set()
            done.wait(30)

    def child(found: Any) -> None:
        seen = [torch.get_float32_matmul_precision()]
        with float32_products():
            seen.append(torch.get_float32_matmul_precision())
        found.put(seen)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(30)
    found = context.SimpleQueue()
    process = context.Process(target=child, args=(found,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of programs with threads
        process.start()
    done.set()
    holder.join()
    process.join(30)
    assert process.exitcode == 0
    assert found.get() == [before, "highest"]
