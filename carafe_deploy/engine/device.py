"""A GPU's memory and streams, by whichever package is installed: torch, pycuda or cuda-bindings.

The runner makes the same few calls to each. Pointers and streams are plain integers, as TensorRT
takes them.
"""

from __future__ import annotations

import importlib.util
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from carafe_deploy.arrays import writable
from carafe_deploy.errors import BackendUnavailableError, EngineError

__all__ = ["BACKENDS", "Device", "choose_backend", "open_device"]

Array = npt.NDArray[Any]


class Device:
    """One GPU with one stream, on which everything is enqueued.

    Buffers and graphs live until they are released or the device is closed.

    Args:
        index: of the GPU.

    Raises:
        BackendUnavailableError: there is no driver or no such GPU.
    """

    #: For people, and to choose it by.
    name: str
    #: Handle of the stream.
    stream: int
    #: :meth:`capture` and :meth:`launch` are there.
    captures_graphs = True

    def __init__(self, index: int = 0) -> None:
        raise NotImplementedError

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the one that CUDA calls of this thread mean."""
        yield

    def capability(self) -> tuple[int, int]:
        """Compute capability, e.g. (8, 9)."""
        raise NotImplementedError

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes."""
        raise NotImplementedError

    def release(self, pointer: int) -> None:
        """Free what :meth:`allocate` returned."""
        raise NotImplementedError

    def upload(self, pointer: int, array: Array) -> None:
        """Enqueue a copy to the GPU; the array must stay as it is until :meth:`synchronize`."""
        raise NotImplementedError

    def download(self, array: Array, pointer: int) -> None:
        """Enqueue a copy into an array, complete after :meth:`synchronize`."""
        raise NotImplementedError

    def host_memory(self, size: int) -> npt.NDArray[np.uint8]:
        """[size] page-locked memory of the host: copies to and from it leave the host free."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for everything enqueued."""
        raise NotImplementedError

    def mark(self) -> Any:
        """Enqueue an event, for :meth:`intervals` or :meth:`wait`."""
        raise NotImplementedError

    def wait(self, mark: Any) -> None:
        """Wait for what was enqueued before an event, which is freed by this."""
        raise NotImplementedError

    def intervals(self, marks: Sequence[Any]) -> list[float]:
        """Milliseconds between each two events in a row; all are over, and freed by this."""
        raise NotImplementedError

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Record what ``enqueue`` does on the stream as a graph, without doing it."""
        raise NotImplementedError

    def launch(self, graph: Any) -> None:
        """Enqueue a graph."""
        raise NotImplementedError

    def discard(self, graph: Any) -> None:
        """Free a graph."""
        raise NotImplementedError

    def close(self) -> None:
        """Free everything; calling it twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TorchDevice(Device):
    """Through torch, so that memory comes from its caching allocator."""

    name = "torch"

    def __init__(self, index: int = 0) -> None:
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= found:
            raise _no_gpu(index, f"torch {torch.__version__} sees {found} CUDA devices")
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
            event = self._torch.cuda.Event(enable_timing=True)
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
            raise _no_gpu(index, self._text(status) if found is None else f"there are {found}")
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
        event = self._call(self._runtime.cudaEventCreate)
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
            raise _no_gpu(index, str(error)) from error
        if index >= found:
            raise _no_gpu(index, f"there are {found}")
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
            return self._driver.Event().record(self._stream)

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


#: Name -> (module that must be there, class), in order of preference.
BACKENDS: dict[str, tuple[str, type[Device]]] = {
    "torch": ("torch", TorchDevice),
    "pycuda": ("pycuda", PyCudaDevice),
    "cuda-python": ("cuda.bindings", CudaPythonDevice),
}


def choose_backend(name: str | None = None) -> type[Device]:
    """The named backend, else the first that is installed; raises BackendUnavailableError."""
    if name is not None and name not in BACKENDS:
        raise BackendUnavailableError(f"backend is {name!r}: choose from {', '.join(BACKENDS)}")
    for known, (module, kind) in BACKENDS.items():
        if name in (None, known) and _is_installed(module):
            return kind
    wanted = f"{name} is not" if name else f"none of {', '.join(BACKENDS)} is"
    raise BackendUnavailableError(
        f"running an engine takes a way to GPU memory, and {wanted} installed: "
        f"pip install 'carafe-deploy[{name or 'cuda-python'}]'"
    )


def open_device(index: int = 0, backend: str | None = None) -> Device:
    """Open a GPU, see :func:`choose_backend` and :class:`Device`."""
    return choose_backend(backend)(index)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _no_gpu(index: int, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"an engine needs an NVIDIA GPU and its driver, and device {index} cannot be opened: "
        f"{reason}. Check with nvidia-smi, or run the ONNX file instead"
    )


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
