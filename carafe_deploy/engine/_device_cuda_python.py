"""A GPU through NVIDIA's bindings."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.engine.device import Array, Device, no_gpu
from carafe_deploy.errors import EngineError

__all__ = ["CudaPythonDevice"]


class CudaPythonDevice(Device):
    """Through NVIDIA's own bindings of the CUDA runtime; nothing to compile."""

    name = "cuda-python"

    def __init__(self, index: int = 0) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._index = index
        self._memory: set[int] = set()
        status, found = runtime.cudaGetDeviceCount()
        if status != runtime.cudaError_t.cudaSuccess or index >= found:
            raise no_gpu(index, self._text(status) if found is None else f"there are {found}")
        self._call(runtime.cudaSetDevice, index)
        self._stream = self._call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def _text(self, status: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(status)
        return str(text.decode())

    def _call(self, function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"{function.__name__} failed on the GPU: {self._text(status)}")
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        before = self._call(self._runtime.cudaGetDevice)
        self._call(self._runtime.cudaSetDevice, self._index)
        try:
            yield
        finally:
            self._call(self._runtime.cudaSetDevice, before)

    def capability(self) -> tuple[int, int]:
        names = self._runtime.cudaDeviceAttr
        attributes = (
            names.cudaDevAttrComputeCapabilityMajor,
            names.cudaDevAttrComputeCapabilityMinor,
        )
        query = self._runtime.cudaDeviceGetAttribute
        major, minor = (self._call(query, attribute, self._index) for attribute in attributes)
        return major, minor

    def allocate(self, size: int) -> int:
        pointer = int(self._call(self._runtime.cudaMalloc, size))
        self._memory.add(pointer)
        return pointer

    def release(self, pointer: int) -> None:
        self._memory.remove(pointer)
        self._call(self._runtime.cudaFree, pointer)

    def upload(self, pointer: int, array: Array) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(pointer, array.ctypes.data, array.nbytes, kind)

    def download(self, array: Array, pointer: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, pointer, array.nbytes, kind)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call(self._runtime.cudaMemcpyAsync, target, source, size, kind, self._stream)

    def host_memory(self, size: int) -> npt.NDArray[np.uint8]:
        pointer = int(self._call(self._runtime.cudaMallocHost, size))
        return np.asarray(_HostMemory(self._runtime.cudaFreeHost, pointer, size))

    def synchronize(self) -> None:
        self._call(self._runtime.cudaStreamSynchronize, self._stream)

    def mark(self) -> Any:
        event = self._call(
            self._runtime.cudaEventCreateWithFlags, self._runtime.cudaEventBlockingSync
        )
        self._call(self._runtime.cudaEventRecord, event, self._stream)
        return event

    def wait(self, mark: Any) -> None:
        self._call(self._runtime.cudaEventSynchronize, mark)
        self._call(self._runtime.cudaEventDestroy, mark)

    def intervals(self, marks: Sequence[Any]) -> list[float]:
        elapsed = self._runtime.cudaEventElapsedTime
        found = [float(self._call(elapsed, *pair)) for pair in itertools.pairwise(marks)]
        for event in marks:
            self._call(self._runtime.cudaEventDestroy, event)
        return found

    def capture(self, enqueue: Callable[[], None]) -> Any:
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(runtime.cudaStreamBeginCapture, self._stream, mode)
        try:
            enqueue()
        except BaseException:
            runtime.cudaStreamEndCapture(self._stream)
            raise
        graph = self._call(runtime.cudaStreamEndCapture, self._stream)
        try:
            return self._call(runtime.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(runtime.cudaGraphDestroy, graph)

    def launch(self, graph: Any) -> None:
        self._call(self._runtime.cudaGraphLaunch, graph, self._stream)

    def discard(self, graph: Any) -> None:
        self._call(self._runtime.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        for pointer in tuple(self._memory):
            self.release(pointer)
        if self._stream is not None:
            self._call(self._runtime.cudaStreamDestroy, self._stream)
            self._stream = None


class _HostMemory:
    """Memory of the host that is freed by a function once no array is left that refers to it."""

    def __init__(self, free: Callable[[int], Any], pointer: int, size: int) -> None:
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 3,
        }
        weakref.finalize(self, free, pointer)
