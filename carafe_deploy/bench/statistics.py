"""Latencies in a few numbers, and ratios between things that were measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine

__all__ = ["Ratio", "Summary", "ratio", "summary"]

#: Resamples of a bootstrap, and the share of them that an interval holds.
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, repr=False)
class Summary(OneLine):
    """A distribution of ``count`` samples, none left out, in their unit.

    Percentiles are interpolated linearly. ``variation`` is the standard deviation over the mean; 0
    for one sample.
    """

    count: int
    minimum: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    maximum: float
    variation: float


def summary(samples: Sequence[float]) -> Summary:
    """Summarise at least one sample.

    Raises:
        ValueError: there is none.
    """
    if not samples:
        raise ValueError("there are no samples to summarise")
    values = np.asarray(samples, np.float64)
    median, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Summary(
        count=len(values),
        minimum=float(values.min()),
        mean=mean,
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        maximum=float(values.max()),
        variation=deviation / mean if mean else 0.0,
    )


@dataclass(frozen=True)
class Ratio:
    """How many times longer one thing takes: median over rounds, its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """The interval does not hold 1: one of the two is faster."""
        return not self.low <= 1.0 <= self.high


def ratio(
    candidate: tuple[Sequence[int], Sequence[float]],
    reference: tuple[Sequence[int], Sequence[float]],
    *,
    seed: int = 0,
) -> Ratio:
    """Compare two series that were measured in turns.

    Each round gives one ratio, of its two medians, so that whatever slows a whole round down
    cancels. Rounds are resampled with replacement for the interval (percentile bootstrap, Efron
    1979).

    Args:
        candidate: round number and duration of every sample, in any unit.
        reference: the same.
        seed: of the resampling.

    Raises:
        ValueError: the two have no round in common.
    """
    ours, theirs = _medians(*candidate), _medians(*reference)
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        raise ValueError("the two series have no round in common")
    ratios = np.array([ours[number] / theirs[number] for number in rounds])
    chosen = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[chosen], axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = (float(value) for value in np.percentile(medians, (tail, 100 - tail)))
    return Ratio(float(np.median(ratios)), low, high)


def _medians(rounds: Sequence[int], samples: Sequence[float]) -> dict[int, float]:
    numbers: npt.NDArray[np.int64] = np.asarray(rounds, np.int64)
    values = np.asarray(samples, np.float64)
    return {int(number): float(np.median(values[numbers == number])) for number in set(rounds)}
