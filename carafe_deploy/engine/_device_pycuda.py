"""A GPU through pycuda."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.engine.device import Array, Device, no_gpu

__all__ = ["PyCudaDevice"]


class PyCudaDevice(Device):
    """Through pycuda, on the GPU's primary context, which TensorRT uses, too."""

    name = "pycuda"
    captures_graphs = False

    def __init__(self, index: int = 0) -> None:
        from pycuda import driver

        try:
            driver.init()
            found = driver.Device.count()
        except driver.Error as error:
            raise no_gpu(index, str(error)) from error
        if index >= found:
            raise no_gpu(index, f"there are {found}")
        self._driver = driver
        self._device = driver.Device(index)
        self._context = self._device.retain_primary_context()
        self._memory: dict[int, Any] = {}
        with self.current():
            self._stream = driver.Stream()
        self.stream = self._stream.handle

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def capability(self) -> tuple[int, int]:
        major, minor = self._device.compute_capability()
        return major, minor

    def allocate(self, size: int) -> int:
        with self.current():
            memory = self._driver.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def release(self, pointer: int) -> None:
        with self.current():
            self._memory.pop(pointer).free()

    def upload(self, pointer: int, array: Array) -> None:
        with self.current():
            self._driver.memcpy_htod_async(pointer, array, self._stream)

    def download(self, array: Array, pointer: int) -> None:
        with self.current():
            self._driver.memcpy_dtoh_async(array, pointer, self._stream)

    def host_memory(self, size: int) -> npt.NDArray[np.uint8]:
        with self.current():
            memory: npt.NDArray[np.uint8] = self._driver.pagelocked_empty(size, np.uint8)
        return memory

    def synchronize(self) -> None:
        with self.current():
            self._stream.synchronize()

    def mark(self) -> Any:
        with self.current():
            return self._driver.Event(self._driver.event_flags.BLOCKING_SYNC).record(self._stream)

    def wait(self, mark: Any) -> None:
        with self.current():
            mark.synchronize()

    def intervals(self, marks: Sequence[Any]) -> list[float]:
        with self.current():
            return [float(first.time_till(second)) for first, second in itertools.pairwise(marks)]

    def close(self) -> None:
        for pointer in tuple(self._memory):
            self.release(pointer)
        if self._context is not None:
            with self.current():
                self._stream = None
            self._context.detach()
            self._context = None
