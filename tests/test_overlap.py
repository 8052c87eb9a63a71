"""Stages in threads: order, failures, leaving early, and how much is held."""

from __future__ import annotations

import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carafe_deploy.overlap import overlapped


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("carafe-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert pool_threads() == []


def same(item: int) -> int:
    return item


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_every_item_in_order(count: int, depth: int) -> None:
    stages = (lambda x: x - 1), (lambda x: x + 2), (lambda x: x * 2), str
    found = list(overlapped(range(count), *stages, depth=depth))
    assert found == [str((item + 1) * 2) for item in range(count)]


@pytest.mark.parametrize(("loaders", "finishers"), [(1, 1), (4, 1), (3, 3)])
def test_order_is_kept_when_later_items_are_faster(loaders: int, finishers: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item

    stages = [slow_first] * 4
    found = overlapped(range(9), *stages, loaders=loaders, finishers=finishers)
    assert list(found) == list(range(9))


def test_nothing_happens_before_the_first_result_is_asked_for() -> None:
    seen: list[int] = []
    stream = overlapped(iter(range(3)), seen.append, same, same, same)
    assert seen == []
    assert pool_threads() == []
    stream.close()


@pytest.mark.parametrize("name", ["depth", "loaders", "finishers"])
@pytest.mark.parametrize("count", [0, -1])
def test_numbers_below_one(name: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {count}: give at least 1"):
        overlapped([1], same, same, same, same, **{name: count})


def test_the_stages_work_at_the_same_time() -> None:
    """Each waits for the others, on other items; one after the other would never get past."""
    meeting = threading.Barrier(4, timeout=10)

    # Stage s (0, 1, 2, 3) meets with item 3 - s.
    def stage(number: int) -> Callable[[int], int]:
        def call(item: int) -> int:
            if item == 3 - number:
                meeting.wait()
            return item

        return call

    assert list(overlapped(range(4), *map(stage, range(4)))) == [0, 1, 2, 3]


@pytest.mark.parametrize("stage", ["load", "finish"])
def test_a_stage_with_several_threads_works_on_as_many_items(stage: str) -> None:
    meeting = threading.Barrier(3, timeout=10)

    def meet(item: int) -> int:
        meeting.wait()
        return item

    if stage == "load":
        found = overlapped(range(9), meet, same, same, same, loaders=3, depth=1)
    else:
        found = overlapped(range(9), same, same, same, meet, finishers=3, depth=3)
    assert list(found) == list(range(9))


@pytest.mark.parametrize(("depth", "loaders"), [(1, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("slow", ["load", "prepare", "run", "finish", "consumer"])
def test_no_more_is_held_than_promised(slow: str, loaders: int, depth: int) -> None:
    class Item:
        pass

    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def make() -> Iterator[Item]:
        nonlocal most
        for _ in range(25):
            item = Item()
            alive.add(item)
            most = max(most, len(alive))
            yield item
            del item

    def stage(name: str) -> object:
        def call(item: Item) -> Item:
            time.sleep(0.004 * (name == slow))
            return item

        return call

    count = 0
    stages = (stage(name) for name in ("load", "prepare", "run", "finish"))
    for result in overlapped(make(), *stages, depth=depth, loaders=loaders):
        count += 1
        del result
        time.sleep(0.004 * (slow == "consumer"))
    assert count == 25
    # The generator of items and the loop above hold one each while they hand it over.
    assert most <= 2 * depth + loaders + 1 + 2
    gc.collect()
    assert len(alive) == 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("failing", [0, 1, 4])
def test_a_failure_comes_after_all_earlier_results(stage: int, failing: int, threads: int) -> None:
    def fail(item: int) -> int:
        if item == failing:
            raise KeyError(f"item {item}")
        return item

    stages = [same, same, same, same]
    stages[stage] = fail
    stream = overlapped(range(8), *stages, loaders=threads, finishers=threads)
    found: list[int] = []
    with pytest.raises(KeyError, match=f"item {failing}"):
        found.extend(stream)
    assert found == list(range(failing))
    assert list(stream) == []


def test_items_that_fail_to_come() -> None:
    def broken() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("camera unplugged")

    found: list[int] = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(overlapped(broken(), same, same, same, same))
    assert found == [0, 1]


@pytest.mark.parametrize("results", [1, 3])
def test_closing_early_stops_everything(results: int) -> None:
    finished: list[int] = []
    stream = overlapped(iter(range(1000)), same, same, same, lambda x: finished.append(x) or x)
    for _ in range(results):
        next(stream)
    begun = time.perf_counter()
    stream.close()
    assert time.perf_counter() - begun < 5
    assert pool_threads() == []
    assert len(finished) <= results + 3


def test_an_exception_of_the_consumer_stops_everything() -> None:
    def consume() -> None:
        with contextlib.closing(overlapped(range(1000), same, same, same, same)) as stream:
            for result in stream:
                raise ZeroDivisionError(result)

    with pytest.raises(ZeroDivisionError, match="0"):
        consume()
    assert pool_threads() == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_is_finished_when_somebody_interrupts_goes_out_before(
    kind: type[BaseException],
) -> None:
    found: list[int] = []
    with pytest.raises(kind, match="leave"):
        found.extend(overlapped(range(1000), same, same, *interrupted(kind("leave"))))
    assert found == [0]
    assert pool_threads() == []


@pytest.mark.parametrize("end", ["close", "next"])
def test_an_interrupt_is_not_lost_among_the_results_before_it(end: str) -> None:
    stream = overlapped(range(1000), same, same, *interrupted(KeyboardInterrupt("leave")))
    assert next(stream) == 0
    with pytest.raises(KeyboardInterrupt, match="leave"):
        stream.close() if end == "close" else next(stream)


def interrupted(error: BaseException) -> tuple[Callable[[int], int], Callable[[int], int]]:
    """The run raises at item 2, when 0 is finished since a moment, and 1 is not."""
    begun, finished = threading.Event(), threading.Event()

    def run(item: int) -> int:
        if item == 2:
            begun.set()
            assert finished.wait(10)
            time.sleep(0.05)  # from the call's last line to its result
            raise error
        return item

    def finish(item: int) -> int:
        assert begun.wait(10)
        if item == 1:
            time.sleep(0.5)
        finished.set()
        return item

    return run, finish


def test_no_thread_is_left_wherever_a_signal_comes() -> None:
    class Alarm(BaseException):
        pass

    def alarm(number: int, frame: object) -> None:
        raise Alarm

    def work(item: int) -> int:
        time.sleep(0.001)
        return item

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for number in range(100):
            found: list[int] = []
            stages = [work] * 4
            stream = overlapped(range(1000), *stages, loaders=1 + number % 3, finishers=2)
            signal.setitimer(signal.ITIMER_REAL, 1e-3 + number * 1e-4)
            with pytest.raises(Alarm):
                found.extend(stream)
            assert found == list(range(len(found)))
            assert pool_threads() == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_stream_that_nobody_closes_does_not_keep_the_program_from_its_end(
    tmp_path: Path,
) -> None:
    program = (
        "from carafe_deploy.overlap import overlapped\n"
        "stream = overlapped(range(9), int, int, int, int, loaders=3)\n"
        "print(next(stream))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
