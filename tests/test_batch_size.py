"""The batch size chosen by measurement, over a runner and a clock that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.batch_size import RUNS, BatchSize, choose_batch_size
from carafe_deploy.errors import EngineError, RunError
from tests.test_pipeline import FrameRunner

IMAGE = np.zeros((50, 40, 3), np.uint8)


class TimedRunner(FrameRunner):
    """Whose runs take the seconds that a table says by batch size; the first one is slow."""

    error = RunError

    def __init__(self, seconds: dict[int, float], batch: tuple[int, int], fails: int = 1 << 30):
        super().__init__(batch=batch)
        self.seconds, self.fails, self.now = seconds, fails, 0.0

    def run(self, inputs):
        size = len(inputs["images"])
        if size >= self.fails:
            raise self.error(f"no memory for {size}")
        self.now += self.seconds[size] * (1 if size in self.batches else 10)
        return super().run(inputs)

    def clock(self) -> float:
        return self.now


def choose(
    seconds: dict[int, float],
    batch: tuple[int, int] = (1, 1000),
    count: int = 10**6,
    fails: int = 1 << 30,
) -> tuple[int, list[int]]:
    runner = TimedRunner(seconds, batch, fails)
    found = choose_batch_size(runner, IMAGE, count, clock=runner.clock)
    assert all(runner.batches.count(size) == RUNS + 1 for size in found.tried)
    assert found.tried == pytest.approx({size: size / seconds[size] for size in found.tried})
    return found.chosen, list(found.tried)


#: No gain beyond 8.
SATURATED = {size: 1.0 + max(size, 8) for size in range(1, 200)} | {1: 5, 2: 6, 4: 7}
FLAT = {size: float(size) for size in range(1, 200)}
STEEP = dict.fromkeys(range(1, 200), 1.0)


@pytest.mark.parametrize(
    ("given", "chosen", "tried"),
    [
        ({"seconds": STEEP}, 64, [1, 2, 4, 8, 16, 32, 64]),
        ({"seconds": SATURATED}, 16, [1, 2, 4, 8, 16, 32]),
        # A tie is the smaller one's, and so is a gain that is no more than noise.
        ({"seconds": FLAT}, 1, [1, 2]),
        ({"seconds": FLAT | {2: 1.92}}, 1, [1, 2]),
        ({"seconds": FLAT | {2: 1.9}}, 2, [1, 2, 4]),
        # What the artefact accepts.
        ({"seconds": STEEP, "batch": (1, 1)}, 1, [1]),
        ({"seconds": STEEP, "batch": (1, 11)}, 8, [1, 2, 4, 8]),
        ({"seconds": STEEP, "batch": (3, 11)}, 8, [3, 4, 8]),
        ({"seconds": STEEP, "batch": (4, 4)}, 4, [4]),
        # What memory allows.
        ({"seconds": STEEP, "fails": 8}, 4, [1, 2, 4]),
        # Measuring takes its share of what there is to do.
        ({"seconds": STEEP, "count": 79}, 1, []),
        ({"seconds": STEEP, "count": 80}, 1, [1]),
        ({"seconds": STEEP, "count": 300}, 2, [1, 2]),
        ({"seconds": STEEP, "count": 300, "batch": (64, 64)}, 64, []),
    ],
)
def test_the_fastest_size_is_chosen(given, chosen, tried):
    assert choose(**given) == (chosen, tried)


@pytest.mark.parametrize("error", [EngineError, MemoryError])
def test_without_memory_for_more_it_settles(monkeypatch, error):
    monkeypatch.setattr(TimedRunner, "error", error)
    assert choose(STEEP, fails=8) == (4, [1, 2, 4])


def test_a_first_size_that_fails_is_an_error():
    with pytest.raises(RunError, match="no memory for 1"):
        choose(STEEP, fails=1)


def test_what_is_told():
    told = str(BatchSize(4, {1: 12.345, 4: 1234.5}))
    assert told == "batch size 4, of 12.3 with 1, 1.23e+03 with 4 images a second"
    assert str(BatchSize(2, {})).startswith("batch size 2, since there are too few images")
