"""The library whose CUDA device is an emulator, which runs the kernels' own source on the CPU."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from carafe_deploy.kernels import CarafeParams, KernelLibrary

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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        library, call = self._library, [ctypes.c_void_p] * 4
        library.carafe_emulator_designs.argtypes = call
        library.carafe_emulator_design.argtypes = call
        library.carafe_emulator_design_name.restype = ctypes.c_char_p
        library.carafe_emulator_run_design.argtypes = [ctypes.c_int32, *call]
        library.carafe_emulator_run_design.restype = ctypes.c_char_p

    def _design_name(self, design: int) -> str:
        name: bytes = self._library.carafe_emulator_design_name(design)
        return name.decode()

    def designs(self, params: CarafeParams, *addresses: int) -> dict[str, int]:
        """Name -> number of CARAFE's designs that can run a call (plugins/kernels/carafe.cu)."""
        bits: int = self._library.carafe_emulator_designs(ctypes.byref(params), *addresses)
        numbers = itertools.takewhile(lambda design: bits >> design, itertools.count())
        return {self._design_name(design): design for design in numbers if bits >> design & 1}

    def design(self, params: CarafeParams, *addresses: int) -> str:
        """The one that :meth:`carafe` takes."""
        return self._design_name(
            self._library.carafe_emulator_design(ctypes.byref(params), *addresses)
        )

    def run_design(self, design: int, params: CarafeParams, *addresses: int) -> None:
        """As :meth:`carafe` on device CUDA, by a chosen design."""
        error: bytes | None = self._library.carafe_emulator_run_design(
            design, ctypes.byref(params), *addresses
        )
        if error is not None:
            raise RuntimeError(f"{self._design_name(design)}: {error.decode()}")

    def set_order(self, order: Order) -> None:
        """For later calls on device CUDA."""
        self._library.carafe_emulator_set_order(
            ctypes.c_int32(order.number), ctypes.c_uint64(order.seed)
        )


@functools.cache
def built_emulator() -> EmulatedLibrary:
    """Kernels that cannot be run are a failure, not something to skip."""
    path = library_path()
    if not path.exists():
        pytest.fail(f"{path} does not exist: build it with `make test-cpp`", pytrace=False)
    return EmulatedLibrary(path)
