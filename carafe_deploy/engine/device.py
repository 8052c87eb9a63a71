"""A GPU's memory and streams, by whichever package is installed: torch, pycuda or cuda-bindings.

The runner makes the same few calls to each. Pointers and streams are plain integers, as TensorRT
takes them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from carafe_deploy.backends import load
from carafe_deploy.errors import BackendUnavailableError

__all__ = ["PACKAGES", "Array", "Device", "choose_backend", "no_gpu", "open_device"]

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


#: Ways to GPU memory: name -> (module that must be there, class), in order of preference.
PACKAGES: dict[str, tuple[str, str]] = {
    "torch": ("torch", "carafe_deploy.engine._device_torch:TorchDevice"),
    "pycuda": ("pycuda", "carafe_deploy.engine._device_pycuda:PyCudaDevice"),
    "cuda-python": ("cuda.bindings", "carafe_deploy.engine._device_cuda_python:CudaPythonDevice"),
}


def choose_backend(name: str | None = None) -> type[Device]:
    """The named backend, else the first that is installed; raises BackendUnavailableError."""
    if name is not None and name not in PACKAGES:
        raise BackendUnavailableError(f"backend is {name!r}: choose from {', '.join(PACKAGES)}")
    for known, (module, device) in PACKAGES.items():
        if name in (None, known) and _is_installed(module):
            chosen: type[Device] = load(device)
            return chosen
    wanted = f"{name} is not" if name else f"none of {', '.join(PACKAGES)} is"
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


def no_gpu(index: int, reason: str) -> BackendUnavailableError:
    """The error of a device that cannot be opened, and why."""
    return BackendUnavailableError(
        f"an engine needs an NVIDIA GPU and its driver, and device {index} cannot be opened: "
        f"{reason}. Check with nvidia-smi, or run the ONNX file instead"
    )
