"""How many images a run should hold, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import EngineError, RunError
from carafe_deploy.images import Image
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.runners.base import Runner

__all__ = ["BatchSize", "choose_batch_size"]

#: What a larger batch must gain in images a second over the best smaller one; less is a tie, which
#: the smaller one wins.
GAIN = 0.05
#: Largest batch that is tried.
MOST = 64
#: Runs of each size that are timed, the fastest of which counts; one more before is not.
RUNS = 3
#: Of the time that all images would take one by one, what measuring may take. Where the first size
#: alone would take more, nothing is measured; once it is spent, no larger size is tried.
SHARE = 0.05

_POWERS = tuple(1 << power for power in range(MOST.bit_length()))


@dataclass(frozen=True, repr=False)
class BatchSize(OneLine):
    """The size chosen, and images a second by each size that was tried, in order."""

    chosen: int
    tried: dict[int, float]

    def __str__(self) -> str:
        if not self.tried:
            return f"batch size {self.chosen}, since there are too few images to measure others"
        tried = ", ".join(f"{rate:.3g} with {size}" for size, rate in self.tried.items())
        return f"batch size {self.chosen}, of {tried} images a second"


def choose_batch_size(
    runner: Runner,
    image: Image,
    count: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSize:
    """Time runs of 1, 2, 4, 8, ... copies of an image; see the constants above for the rules.

    Sizes are those that the artefact accepts. It ends with the
    first size that is no faster, that fails (for want of memory), or at which the time is up; so
    few images, or slow ones, are not measured for long.

    Args:
        runner: stays open. Runs alone are timed, copies to a device and back included.
        image: the first one.
        count: images in all.
        clock: seconds.
    """
    best, tried = runner.info.input.batch[0], dict[int, float]()
    if count * SHARE < (RUNS + 1) * best:
        return BatchSize(best, tried)
    begun = clock()
    for size in _sizes(runner):
        try:
            rate = _images_per_second(runner, image, size, clock)
        except (RunError, EngineError, MemoryError):
            if not tried:
                raise
            break
        is_faster = rate >= (1 + GAIN) * tried.get(best, 0.0)
        tried[size] = rate
        if not is_faster:
            break
        best = size
        if clock() - begun >= SHARE * count / next(iter(tried.values())):
            break
    return BatchSize(best, tried)


def _sizes(runner: Runner) -> Iterator[int]:
    smallest, largest = runner.info.input.batch
    yield smallest
    for size in takewhile(lambda size: size <= min(largest, MOST), _POWERS):
        if size > smallest:
            yield size


def _images_per_second(
    runner: Runner, image: Image, size: int, clock: Callable[[], float]
) -> float:
    inputs = Pipeline(runner, size).inputs([image] * size)
    runner.run(inputs)
    seconds = []
    for _ in range(RUNS):
        begun = clock()
        runner.run(inputs)
        seconds.append(clock() - begun)
    return size / max(min(seconds), 1e-9)
