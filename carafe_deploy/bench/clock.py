"""Timing single calls on the CPU and on a GPU, and what the machine can do at best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from carafe_deploy.runners._precision import float32_products

__all__ = [
    "SETTLED",
    "Clock",
    "CudaClock",
    "clock_of",
    "copy_of",
    "measured_bandwidth",
    "measured_flops",
]

#: A turn whose calls take less, in seconds, begins with one that is not timed: caches fill.
SETTLED = 0.1
#: Bytes read and written by the copy that is measured: far beyond any cache.
COPIED = 512 * 2**20
#: Copies of fewer bytes on the CPU are made by one thread: waking others takes longer.
THREADED = 2 * 2**20
#: Side of the matrices that are multiplied.
SIDE = {"cpu": 1024, "cuda": 4096}
#: Seconds that each of the two is repeated for, and calls at most.
PEAK_SECONDS, PEAK_CALLS = 1.0, 50


class Clock:
    """Wall clock of the CPU.

    Attributes:
        device: what is timed.
        cache: ``"warm"``, or ``"cold"`` if caches are flushed before every call.
        pause: seconds to wait before a turn: threads of runtimes spin for a while after their work.
    """

    cache = "warm"
    pause = 0.02

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def once(self, call: Callable[[], object]) -> float:
        """Microseconds of one call; what it returns is freed afterwards."""
        begun = time.perf_counter()
        result = call()
        ended = time.perf_counter()
        del result
        return (ended - begun) * 1e6

    def turn(self, call: Callable[[], object], count: int, seconds: float) -> list[float]:
        """Microseconds of up to ``count`` calls in a row; one at least, no more after ``seconds``.

        Calls shorter than :data:`SETTLED` are preceded by one that does not count.
        """
        begun = time.perf_counter()
        first = self.once(call)
        samples = [first] if first >= SETTLED * 1e6 else []
        while len(samples) < count and (not samples or time.perf_counter() - begun < seconds):
            samples.append(self.once(call))
        return samples


class CudaClock(Clock):
    """Device events around the call, with the second-level cache flushed before.

    Flushing writes a buffer larger than the cache; it is repeated for as long as the host took to
    launch the call before, so that the device does not wait for the host in the middle of it.
    """

    cache = "cold"
    pause = 0.0

    #: Of flushing over launching, and flushes at most.
    LEAD, MOST = 1.5, 200

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        size = max(2 * cache, 64 * 2**20)
        self._buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self._launch_us = 0.0
        self._flush_us = 1.0
        self._flush_us = min(self.once(self._buffer.zero_) for _ in range(5))

    def once(self, call: Callable[[], object]) -> float:
        """Microseconds on the device of one call."""
        wanted = math.ceil(self.LEAD * self._launch_us / self._flush_us)
        with torch.cuda.device(self.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(min(max(wanted, 1), self.MOST)):
                self._buffer.zero_()
            begin.record()
            begun = time.perf_counter()
            call()
            self._launch_us = (time.perf_counter() - begun) * 1e6
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3


def clock_of(device: torch.device) -> Clock:
    """The clock for a device."""
    return CudaClock(device) if device.type == "cuda" else Clock(device)


# --- what the machine can do ---------------------------------------------------------------------


def copy_of(num_bytes: int, device: torch.device) -> Callable[[], object]:
    """A call that reads and writes ``num_bytes`` in all, between two buffers."""
    # Ones: memory that was never written to is no memory yet.
    source = torch.ones(max(num_bytes // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    if device.type == "cpu" and num_bytes < THREADED:
        arrays = target.numpy(), source.numpy()
        return lambda: np.copyto(*arrays)
    return lambda: target.copy_(source)


def measured_bandwidth(clock: Clock) -> float:
    """Bytes a second, read and written, of the fastest copy of :data:`COPIED` bytes."""
    return COPIED / _fastest_s(clock, copy_of(COPIED, clock.device))


def measured_flops(clock: Clock) -> float:
    """Operations a second of the fastest float32 matrix product without tensor cores."""
    side = SIDE[clock.device.type]
    left, right = (torch.randn(side, side, device=clock.device) for _ in range(2))
    out = torch.empty_like(left)
    with float32_products():
        return 2 * side**3 / _fastest_s(clock, lambda: torch.matmul(left, right, out=out))


def _fastest_s(clock: Clock, call: Callable[[], object]) -> float:
    return min(clock.turn(call, PEAK_CALLS, PEAK_SECONDS)) / 1e6
