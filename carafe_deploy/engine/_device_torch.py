"""A GPU through torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.arrays import writable
from carafe_deploy.engine.device import Array, Device, no_gpu

__all__ = ["TorchDevice"]


class TorchDevice(Device):
    """Through torch, so that memory comes from its caching allocator."""

    name = "torch"

    def __init__(self, index: int = 0) -> None:
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= found:
            raise no_gpu(index, f"torch {torch.__version__} sees {found} CUDA devices")
        self._torch = torch
        self._index = index
        self._stream = torch.cuda.Stream(index)
        self.stream = self._stream.cuda_stream
        self._memory: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._torch.cuda.device(self._index), self._torch.cuda.stream(self._stream):
            yield

    def capability(self) -> tuple[int, int]:
        major, minor = self._torch.cuda.get_device_capability(self._index)
        return major, minor

    def allocate(self, size: int) -> int:
        with self.current():
            memory = self._torch.empty(size, dtype=self._torch.uint8, device="cuda")
        self._memory[memory.data_ptr()] = memory
        return int(memory.data_ptr())

    def release(self, pointer: int) -> None:
        del self._memory[pointer]

    def upload(self, pointer: int, array: Array) -> None:
        source = self._torch.from_numpy(writable(_bytes(array)))
        self._copy(self._memory[pointer], source, array.nbytes)

    def download(self, array: Array, pointer: int) -> None:
        self._copy(self._torch.from_numpy(_bytes(array)), self._memory[pointer], array.nbytes)

    def _copy(self, target: Any, source: Any, size: int) -> None:
        with self.current():
            target[:size].copy_(source[:size], non_blocking=True)

    def host_memory(self, size: int) -> npt.NDArray[np.uint8]:
        memory: npt.NDArray[np.uint8] = self._torch.empty(
            size, dtype=self._torch.uint8, pin_memory=True
        ).numpy()
        return memory

    def synchronize(self) -> None:
        self._stream.synchronize()

    def mark(self) -> Any:
        with self.current():
            event = self._torch.cuda.Event(enable_timing=True, blocking=True)
            event.record(self._stream)
        return event

    def wait(self, mark: Any) -> None:
        mark.synchronize()

    def intervals(self, marks: Sequence[Any]) -> list[float]:
        return [float(first.elapsed_time(second)) for first, second in itertools.pairwise(marks)]

    def capture(self, enqueue: Callable[[], None]) -> Any:
        cuda = self._torch.cuda
        graph, mode = cuda.CUDAGraph(), "thread_local"  # what other threads do is no part of it
        with self.current(), cuda.graph(graph, stream=self._stream, capture_error_mode=mode):
            enqueue()
        return graph

    def launch(self, graph: Any) -> None:
        with self.current():
            graph.replay()

    def discard(self, graph: Any) -> None:
        graph.reset()

    def close(self) -> None:
        self._memory.clear()


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
