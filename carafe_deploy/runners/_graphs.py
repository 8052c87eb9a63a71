"""A function as CUDA graphs, one for each shape of its inputs, within a budget of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["SHARE", "Graphed", "captured"]

#: Of the device's memory, what graphs take unless told otherwise. The rest is for weights, for
#: runs that precede a capture and for the newest graph.
SHARE = 0.5

_Function = Callable[..., Sequence[Tensor]]


class Graph(Protocol):
    """A captured function, for inputs of one shape."""

    #: Of device memory, which is free once nothing refers to the graph and its results.
    num_bytes: int

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run it; the results are overwritten by the next call."""
        ...


class Graphed:
    """Captures a graph for each shape of the inputs and replays it from then on.

    Results are overwritten by the next call with the same shape. When graphs take more than the
    budget, those that were not used for longest are dropped until they do not, or one is left; a
    shape that returns is captured again. When memory runs out in a capture, all others are dropped
    and it is tried once more.

    Args:
        function: of tensors on one device.
        budget: bytes; None for :data:`SHARE` of the device.
        capture: takes the function and inputs.
        release: called when graphs were dropped.
    """

    def __init__(
        self,
        function: _Function,
        budget: int | None = None,
        *,
        capture: Callable[[_Function, Sequence[Tensor]], Graph] | None = None,
        release: Callable[[], None] = torch.cuda.empty_cache,
    ) -> None:
        self._function, self._budget = function, budget
        self._capture = captured if capture is None else capture
        self._release = release
        # The one that was used last comes last.
        self._graphs: OrderedDict[Any, Graph] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of device memory that the graphs take."""
        return sum(graph.num_bytes for graph in self._graphs.values())

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the function returns."""
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._graphs:
            graph = self._captured(inputs)
            self._graphs[key] = graph
            self._keep_to(self._limit(inputs[0].device))
        self._graphs.move_to_end(key)
        return self._graphs[key](*inputs)

    def _captured(self, inputs: Sequence[Tensor]) -> Graph:
        try:
            return self._capture(self._function, inputs)
        except torch.OutOfMemoryError:
            if not self._graphs:
                raise
        # Outside of the handler, or the failed run's tensors would live on in its traceback.
        if inputs[0].is_cuda:
            torch.cuda.synchronize(inputs[0].device)  # one of the graphs may be running
        self._graphs.clear()
        self._release()
        return self._capture(self._function, inputs)

    def _limit(self, device: torch.device) -> int:
        if self._budget is None:
            self._budget = int(SHARE * torch.cuda.get_device_properties(device).total_memory)
        return self._budget

    def _keep_to(self, limit: int) -> None:
        """Called after a capture, before which the device had done all its work."""
        dropped = False
        while self.num_bytes > limit and len(self._graphs) > 1:
            self._graphs.popitem(last=False)
            dropped = True
        if dropped:
            self._release()


def captured(function: _Function, inputs: Sequence[Tensor]) -> Graph:
    """A CUDA graph of the function, in a memory pool of its own."""
    return _CudaGraph(function, inputs)


class _CudaGraph:
    #: Runs before a capture: libraries allocate and choose algorithms in them.
    WARMUP = 3

    def __init__(self, function: _Function, inputs: Sequence[Tensor]) -> None:
        device = inputs[0].device
        with torch.cuda.device(device):
            self._own = tuple(tensor.clone() for tensor in inputs)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self.WARMUP):
                    function(*self._own)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # What other threads do (pasting masks, for one) is no part of it.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                # Nothing of a graph's pool is reserved before, and all of it afterwards.
                before = torch.cuda.memory_reserved(device)
                self._results = function(*self._own)
                pool = torch.cuda.memory_reserved(device) - before
        self.num_bytes = max(pool, 0) + sum(tensor.nbytes for tensor in self._own)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        for target, tensor in zip(self._own, inputs, strict=True):
            target.copy_(tensor)
        self._graph.replay()
        return self._results
