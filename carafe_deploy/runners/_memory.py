"""Memory of the host between the runs of a detector."""

from __future__ import annotations

import ctypes
import os

from carafe_deploy.errors import CarafeDeployError

__all__ = ["ENVIRONMENT_VARIABLE", "keep_freed_memory"]

#: ``off`` leaves glibc's malloc as it is; unset or ``auto`` lets it keep memory.
ENVIRONMENT_VARIABLE = "CARAFE_DEPLOY_KEEP_MEMORY"

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Keep what PyTorch frees for its next allocation, in the whole process.

    PyTorch takes every tensor on the CPU from malloc, and glibc's returns large ones to the system
    at once, so that every run of a detector faults its pages in again. ONNX Runtime keeps such
    memory in an arena of its own; this is the same for PyTorch.

    Returns:
        Whether malloc is glibc's and takes the setting.

    Raises:
        CarafeDeployError: :data:`ENVIRONMENT_VARIABLE` is neither ``auto`` nor ``off``.
    """
    choice = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if choice not in ("auto", "off"):
        raise CarafeDeployError(f"{ENVIRONMENT_VARIABLE} is {choice!r}, expected 'auto' or 'off'")
    if choice == "off":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
