"""The library whose CUDA device is an emulator, which runs the kernels' own source on the CPU."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from carafe_deploy.ops._library import KernelLibrary

ROOT = Path(__file__).parents[2]


class Order(NamedTuple):
    """Order of a block's threads between two barriers, and of blocks."""

    name: str
    number: int
    seed: int = 0


FORWARD, BACKWARD = Order("forward", 0), Order("backward", 1)


def at_random(seed: int) -> Order:
    return Order("random", 2, seed)


ORDERS = (FORWARD, BACKWARD, at_random(1))


def library_path() -> Path:
    """Where the build leaves the library, unless the environment says otherwise."""
    default = ROOT / "build/dev/lib/libcarafe_kernels_emulated.so"
    return Path(os.environ.get("CARAFE_DEPLOY_EMULATED", default))


class EmulatedLibrary(KernelLibrary):
    """Device CUDA takes addresses of host memory."""

    def set_order(self, order: Order) -> None:
        """For later calls on device CUDA."""
        self._library.carafe_emulator_set_order(
            ctypes.c_int32(order.number), ctypes.c_uint64(order.seed)
        )
