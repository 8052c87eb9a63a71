"""The operators on torch tensors by libcarafe_kernels.so: where it serves, and how it is called.

Where libcarafe_torch.so has registered the operators, calls come here only for what no kernel
serves. Tensors have passed the operators' own checks. The library is loaded at the first call that
could use it; ``CARAFE_DEPLOY_KERNELS=off`` keeps everything in PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.kernels import (
    ENVIRONMENT_VARIABLE,
    Device,
    DType,
    KernelLibrary,
    Layout,
    Where,
    installed_kernels,
    is_switched_off,
)
from carafe_deploy.libraries import missing
from carafe_deploy.ops._torch_library import torch_library

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "KERNEL_DTYPES",
    "empty_in_layout_of",
    "kernel_library",
    "launching_on",
    "layout_of",
    "library_for",
    "memory_format_of",
    "plain_operators",
    "remembering_errors",
]

KERNEL_DTYPES = {
    torch.float32: DType.FLOAT32,
    torch.float16: DType.FLOAT16,
    torch.bfloat16: DType.BFLOAT16,
    torch.float64: DType.FLOAT64,
}


_plain: ContextVar[bool] = ContextVar("plain", default=False)
_failed = threading.local()


# --- which library -------------------------------------------------------------------------------


@functools.cache
def kernel_library() -> KernelLibrary | None:
    """The library, loaded once; None where there is none or it is switched off.

    Warns:
        UserWarning: once, when there is no library.
    Raises:
        BackendUnavailableError: a library is there but cannot be used, or a variable is wrong.
    """
    library = installed_kernels()
    if library is None and not is_switched_off():
        warnings.warn(
            "carafe_deploy computes its operators in plain PyTorch, which is slower: "
            f"{missing('carafe_kernels')}; {ENVIRONMENT_VARIABLE}=off silences this",
            stacklevel=2,
        )
    return library


def library_for(tensor: Tensor, *, float64_on_cpu: bool = False) -> KernelLibrary | None:
    """The library, if it computes on the tensor's device and in its dtype."""
    kind, dtype = tensor.device.type, tensor.dtype
    if _plain.get() or kind not in ("cpu", "cuda") or dtype not in KERNEL_DTYPES:
        return None
    on_cuda = kind == "cuda"
    if dtype == torch.float64 and (on_cuda or not float64_on_cpu):
        return None
    library = kernel_library()
    if library is None or (on_cuda and not library.has_cuda):
        return None
    return library


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Inside, the operators are computed by PyTorch itself, to hold the kernels against it."""
    token = _plain.set(True)
    torch_library().prefer_pytorch(True)
    _failed.error = None
    try:
        yield
    except RuntimeError as error:
        cause, text = _failed.error, str(error)
        # The text names what was raised, or only the operator (torch 2.11).
        if cause is not None and (type(cause).__name__ in text or "_in_pytorch failed" in text):
            raise cause from None
        raise
    finally:
        _failed.error = None
        _plain.reset(token)
        torch_library().prefer_pytorch(_plain.get())


def remembering_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """For a function that is called through C++, where every exception becomes a RuntimeError."""

    @functools.wraps(function)
    def remember(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:
            if _plain.get():  # where it is given back; elsewhere it would only be kept
                _failed.error = error
            raise

    return remember


# --- layouts -------------------------------------------------------------------------------------


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Channels-last for [N, C, H, W] that is dense that way and no other; else contiguous.

    Results take their layout from here, whoever computes them, so that a graph traced with or
    without the library is the same.
    """
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def empty_in_layout_of(tensor: Tensor, *shape: int) -> Tensor:
    """Uninitialised, of the given four sizes; dtype, device and layout of ``tensor``."""
    return torch.empty(
        shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format_of(tensor)
    )


def layout_of(memory_format: torch.memory_format) -> Layout:
    """As the library calls it."""
    return Layout.NHWC if memory_format == torch.channels_last else Layout.NCHW


# --- calls ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def launching_on(tensor: Tensor) -> Iterator[Where]:
    """Inside, the tensor's device is the current one; where and how a call computes."""
    threads = torch.get_num_threads()
    if tensor.device.type != "cuda":
        yield {"device": Device.CPU, "threads": threads}
        return
    with torch.cuda.device(tensor.device):
        # The stream that PyTorch's own kernels would take now.
        stream = torch.cuda.current_stream(tensor.device).cuda_stream
        yield {"device": Device.CUDA, "stream": stream, "threads": threads}
