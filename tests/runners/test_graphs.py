"""Graphs of each shape within a budget: without a GPU, over captures that are called."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from carafe_deploy.artefacts import open_runner
from carafe_deploy.data import CHECKPOINTS, data_path
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.runners._graphs import Graph, Graphed, captured
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import ModelInfo


def doubled(tensor: Tensor) -> tuple[Tensor]:
    return (2 * tensor,)


class FakeGraph:
    """Takes as many bytes as its first input has elements; computes on memory of its own."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
        self.num_bytes = inputs[0].numel()
        self._function, self._own = function, inputs[0].clone()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        self._own.copy_(inputs[0])
        return self._function(self._own)


class Captures:
    """Notes the sizes that are captured, and the graphs that live."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.alive: weakref.WeakSet[FakeGraph] = weakref.WeakSet()
        self.releases = 0
        self.failures: list[Exception] = []

    def __call__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
    ) -> Graph:
        if self.failures:
            raise self.failures.pop(0)
        self.sizes.append(inputs[0].numel())
        graph = FakeGraph(function, inputs)
        self.alive.add(graph)
        return graph

    def release(self) -> None:
        self.releases += 1

    @property
    def living(self) -> list[int]:
        return sorted(graph.num_bytes for graph in self.alive)


def graphed(captures: Captures, budget: int) -> Graphed:
    return Graphed(doubled, budget, capture=captures, release=captures.release)


def run(function: Graphed, *sizes: int) -> None:
    for size in sizes:
        tensor = torch.arange(size)
        torch.testing.assert_close(function(tensor)[0], 2 * tensor)


@pytest.mark.parametrize(
    ("sizes", "captured", "living", "releases"),
    [
        ((3, 3, 3), [3], [3], 0),
        ((1, 2, 3, 4), [1, 2, 3, 4], [1, 2, 3, 4], 0),
        ((4, 3, 2, 4, 3), [4, 3, 2], [2, 3, 4], 0),
        # The one that was used last stays, though it came first.
        ((4, 3, 2, 4, 5), [4, 3, 2, 5], [4, 5], 1),
        ((6, 5, 6, 5), [6, 5, 6, 5], [5], 3),
        # One shape alone may take more.
        ((2, 3, 50, 50, 2), [2, 3, 50, 2], [2], 2),
    ],
)
def test_graphs_stay_within_the_budget(
    sizes: tuple[int, ...], captured: list[int], living: list[int], releases: int
) -> None:
    captures = Captures()
    function = graphed(captures, 10)
    run(function, *sizes)
    assert captures.sizes == captured
    assert captures.living == living
    assert function.num_bytes == sum(living)
    assert captures.releases == releases


def test_nothing_is_kept_of_what_was_dropped() -> None:
    captures = Captures()
    function = graphed(captures, 100)
    results: weakref.WeakSet[Tensor] = weakref.WeakSet()
    for size in [*range(1, 60), *range(60, 0, -1)]:
        result = function(torch.ones(size))[0]
        results.add(result)
        del result
    assert sum(captures.living) <= 100
    assert len(results) == 0
    del function
    gc.collect()
    assert captures.living == []


def test_a_capture_that_runs_out_of_memory_has_all_of_it() -> None:
    captures = Captures()
    function = graphed(captures, 100)
    run(function, 1, 2)
    captures.failures = [torch.OutOfMemoryError("full")]
    run(function, 3)
    assert (captures.living, captures.releases) == ([3], 1)
    captures.failures = [torch.OutOfMemoryError("full"), torch.OutOfMemoryError("still full")]
    with pytest.raises(torch.OutOfMemoryError, match="still full"):
        run(function, 4)
    captures.failures = [torch.OutOfMemoryError("nothing to drop")]
    with pytest.raises(torch.OutOfMemoryError, match="nothing"):
        run(function, 4)
    run(function, 4)
    assert captures.living == [4]


@pytest.mark.parametrize(
    ("mode", "budget"), [("eager", 5), ("compile", 5), ("cuda-graph", 0), ("compile-graph", -1)]
)
def test_a_budget_is_of_graphs(mode: str, budget: int) -> None:
    info = ModelInfo("x", "faster_rcnn", ("a",))
    with pytest.raises(CarafeDeployError, match=f"graph_memory is {budget} in mode {mode}: give"):
        PyTorchRunner(info, torch.device("cuda"), doubled, doubled, mode=mode, graph_memory=budget)


@pytest.mark.gpu
def test_memory_of_graphs_goes_back_to_the_device() -> None:
    def work(tensor: Tensor) -> tuple[Tensor]:
        for _ in range(4):
            tensor = torch.cat((tensor, tensor))  # of new sizes, so of new memory
        return (tensor,)

    function = Graphed(work, 400 << 20)
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    start, reserved = torch.cuda.memory_reserved(device), []
    for _ in range(2):
        for count in range(8, 16):
            given = torch.rand(count << 18, device=device)
            torch.testing.assert_close(function(given)[0], given.repeat(16))
        del given
        torch.cuda.empty_cache()
        assert function.num_bytes > 16 << 20
        reserved.append(torch.cuda.memory_reserved(device))
    one = captured(work, [torch.rand(8 << 18, device=device)])
    assert one.num_bytes >= 24 * 8 << 20  # of 31, what cannot be shared
    assert reserved[1] <= reserved[0] + (64 << 20)
    del function, one
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) <= start + (64 << 20)


@pytest.mark.gpu
def test_a_detector_in_no_memory_captures_every_shape_again() -> None:
    path = data_path("shapes") / CHECKPOINTS[0]
    with open_runner(path, device="cuda", mode="cuda-graph", graph_memory=1) as runner:
        for size in (256, 320, 256):
            inputs = {
                "images": torch.zeros(1, 3, size, size).numpy(),
                "image_sizes": torch.full((1, 2), float(size)).numpy(),
            }
            assert runner.run(inputs)["det_scores"].shape[0] == 1
        assert len(runner.module._graphs) == 1  # type: ignore[attr-defined]
