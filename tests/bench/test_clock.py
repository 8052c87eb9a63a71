"""Clocks and limits of the machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
import torch

from carafe_deploy.bench import clock
from carafe_deploy.bench.clock import (
    Clock,
    CudaClock,
    clock_of,
    copy_of,
    measured_bandwidth,
    measured_flops,
)

CPU = torch.device("cpu")


class Scripted(Clock):
    """Takes what calls return for their microseconds."""

    def once(self, call):
        return call()


def turn(times: list[float], count: int, seconds: float) -> tuple[list[float], int]:
    """Samples of a turn, and the calls it made."""
    calls: Iterator[float] = iter(times)
    samples = Scripted(CPU).turn(lambda: next(calls), count, seconds)
    return samples, len(times) - len(list(calls))


def test_a_short_call_is_preceded_by_one_that_does_not_count() -> None:
    assert turn([9.0, 1.0, 2.0, 3.0, 4.0], 3, 60.0) == ([1.0, 2.0, 3.0], 4)


def test_a_long_call_counts_at_once() -> None:
    assert turn([2e5, 3e5, 4e5], 2, 60.0) == ([2e5, 3e5], 2)


def test_when_time_is_up_one_call_has_counted() -> None:
    assert turn([9.0, 1.0, 2.0], 3, 0.0) == ([1.0], 2)
    assert turn([2e5, 3e5], 3, 0.0) == ([2e5], 1)


def test_microseconds_by_the_wall() -> None:
    assert clock_of(CPU).cache == "warm"
    assert 2e3 <= clock_of(CPU).once(lambda: time.sleep(2e-3)) < 1e6


@pytest.mark.parametrize("num_bytes", [2, 1000, clock.THREADED])
def test_a_copy_reads_and_writes_so_many_bytes(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them each, whoever copies."""
    made: list[torch.Tensor] = []

    def empty_like(tensor: torch.Tensor) -> torch.Tensor:
        made.append(torch.zeros(tensor.shape, dtype=tensor.dtype))
        return made[-1]

    monkeypatch.setattr(torch, "empty_like", empty_like)
    copy = copy_of(num_bytes, CPU)
    [target] = made
    assert target.nbytes == num_bytes // 2
    assert not target.any()
    copy()
    assert (target == 1).all()


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "COPIED", 1000)
    monkeypatch.setattr(clock, "SIDE", {"cpu": 10})

    class Slow(Clock):
        def once(self, call):
            call()
            return 50.0

    assert measured_bandwidth(Slow(CPU)) == pytest.approx(1000 / 50e-6)
    assert measured_flops(Slow(CPU)) == pytest.approx(2000 / 50e-6)


def test_products_are_float32_and_the_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SIDE", {"cpu": 10})
    seen = []

    class Looking(Clock):
        def once(self, call):
            seen.append(torch.get_float32_matmul_precision())
            return 1.0

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        measured_flops(Looking(CPU))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


# --- CUDA ----------------------------------------------------------------------------------------


class FakeCuda:
    """Events that tell the order of things; launching takes as long as the call says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log = self.log

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                log.append("record")

            def synchronize(self) -> None:
                log.append("synchronize")

            def elapsed_time(self, other: object) -> float:
                return 0.25

        class Buffer:
            def zero_(self) -> None:
                log.append("flush")

        def empty(size: int, **settings: object) -> Buffer:
            self.size = size
            return Buffer()

        class Properties:
            L2_cache_size = 50 * 2**20

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
        monkeypatch.setattr(torch, "empty", empty)


def test_the_cache_is_flushed_before_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    clock = clock_of(torch.device("cuda"))
    assert clock.cache == "cold"
    assert fake.size == 100 * 2**20
    fake.log.clear()
    assert clock.once(lambda: fake.log.append("call")) == 250.0
    assert fake.log == ["flush", "record", "call", "record", "synchronize"]


def test_flushing_lasts_until_the_host_has_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a flush takes 250 us, and launching 2 ms or more."""
    fake = FakeCuda(monkeypatch)
    clock = CudaClock(torch.device("cuda"))
    clock.once(lambda: time.sleep(2e-3))
    fake.log.clear()
    clock.once(lambda: None)
    assert 12 <= fake.log.count("flush") <= CudaClock.MOST
    assert fake.log[-3:] == ["record", "record", "synchronize"]


@pytest.mark.gpu
def test_a_gpu() -> None:
    clock = clock_of(torch.device("cuda"))
    assert measured_bandwidth(clock) > 1e10
    assert measured_flops(clock) > 1e11
    few, many = copy_of(2**24, clock.device), copy_of(2**30, clock.device)
    assert min(clock.turn(few, 10, 1.0)) < min(clock.turn(many, 10, 1.0))
