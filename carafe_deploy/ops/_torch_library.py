"""libcarafe_torch.so: the operators registered with torch in C++, where that library serves.

It calls the libcarafe_kernels.so beside it. A call costs some microseconds then, a tenth of what it
costs through Python and ctypes (:mod:`carafe_deploy.kernels`), which is the way where the
library is not there or does not load.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.kernels import ENVIRONMENT_VARIABLE
from carafe_deploy.libraries import check_whole, find_library, missing
from carafe_deploy.operators import OPERATORS
from carafe_deploy.types import DOMAIN

__all__ = ["TorchLibrary", "is_registered", "torch_library"]

#: Of the library's interface with this file, and what tells it.
_ABI_VERSION = 1
_VERSION_FUNCTION = "carafe_torch_abi_version"


@dataclass(frozen=True, repr=False)
class TorchLibrary(OneLine):
    """The library, or why it does not serve.

    Attributes:
        path: of the library; None where it does not serve.
        reason: why it does not; empty where it does.
        handle: that holds it in the process.
    """

    path: Path | None
    reason: str = ""
    handle: ctypes.CDLL | None = None

    def has(self, name: str) -> bool:
        """It has registered ``carafe::<name>``."""
        return self.handle is not None and bool(self.handle.carafe_torch_has(name.encode()))

    def offer_pytorch(self) -> None:
        """What computes in PyTorch is registered: calls that no kernel serves go there."""
        if self.handle is not None:
            self.handle.carafe_torch_offer_pytorch()

    def prefer_pytorch(self, wanted: bool) -> None:
        """PyTorch computes all calls of this thread from now on, or no longer does."""
        if self.handle is not None:
            self.handle.carafe_torch_prefer_pytorch(int(wanted))


def is_registered(name: str) -> bool:
    """Torch knows ``carafe::<name>``, whoever has registered it."""
    return bool(torch._C._dispatch_has_kernel(f"{DOMAIN}::{name}"))


@functools.cache
def torch_library() -> TorchLibrary:
    """Load the library, once; it registers its operators then."""
    choice = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if choice != "auto":
        return TorchLibrary(None, f"{ENVIRONMENT_VARIABLE} is {choice!r}")
    try:
        return _load()
    except (BackendUnavailableError, OSError, AttributeError) as error:
        return TorchLibrary(None, str(error))


def _load() -> TorchLibrary:
    kernels = find_library("carafe_kernels")
    if kernels is None:
        return TorchLibrary(None, missing("carafe_kernels"))
    path = kernels.parent / "libcarafe_torch.so"
    if not path.is_file():
        return TorchLibrary(None, f"there is no libcarafe_torch.so beside {kernels}")
    check_whole(kernels)
    check_whole(path)
    if _VERSION_FUNCTION.encode() not in path.read_bytes():  # loading would register its operators
        return TorchLibrary(None, f"{path} is of another version of carafe-deploy")
    # A second library cannot register what one has registered before, so it is not even loaded.
    is_taken = any(map(is_registered, OPERATORS))
    handle = ctypes.CDLL(os.fspath(path), mode=os.RTLD_NOW | (os.RTLD_NOLOAD if is_taken else 0))
    version = getattr(handle, _VERSION_FUNCTION)()
    if version != _ABI_VERSION:
        return TorchLibrary(None, f"{path} has interface version {version}, not {_ABI_VERSION}")
    return TorchLibrary(path, handle=handle)
