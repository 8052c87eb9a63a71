"""Summaries against hand-worked numbers, ratios against drift that hits both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carafe_deploy.bench.statistics import ratio, summary


def test_summary_of_ten_numbers() -> None:
    found = summary([10, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    assert (found.count, found.minimum, found.maximum) == (10, 1, 10)
    assert (found.mean, found.median) == (5.5, 5.5)
    # Linear interpolation between the order statistics: 1 + 0.9 * 9, and so on.
    assert found.p90 == pytest.approx(9.1)
    assert found.p95 == pytest.approx(9.55)
    assert found.p99 == pytest.approx(9.91)
    # Sample standard deviation of 1..10 is sqrt(82.5 / 9).
    assert found.variation == pytest.approx((82.5 / 9) ** 0.5 / 5.5)


def test_outliers_count() -> None:
    found = summary([1.0] * 99 + [1000.0])
    assert found.maximum == 1000
    assert found.mean == pytest.approx(10.99)
    assert found.median == 1


def test_one_sample_has_no_variation_and_none_is_an_error() -> None:
    assert summary([3.0]).variation == 0
    assert summary([3.0]).p99 == 3
    with pytest.raises(ValueError, match="no samples"):
        summary([])


def test_drift_of_the_machine_cancels() -> None:
    # The machine becomes three times slower; the candidate always takes half as long.
    drift = np.linspace(1, 3, 12).repeat(5)
    rounds = np.arange(12).repeat(5)
    noise = np.random.default_rng(0).uniform(0.99, 1.01, 60)
    found = ratio((rounds, 5 * drift * noise), (rounds, 10 * drift))
    assert found.value == pytest.approx(0.5, rel=0.01)
    assert 0.49 < found.low <= found.value <= found.high < 0.51
    assert found.is_decided


def test_order_within_a_series_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    rounds, times = np.arange(8).repeat(3), generator.uniform(1, 2, 24)
    shuffled = generator.permutation(24)
    assert ratio((rounds[shuffled], times[shuffled]), (rounds, times)).value == 1
    assert not ratio((rounds[shuffled], times[shuffled]), (rounds, times)).is_decided


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    rounds = np.arange(20)
    hits = 0
    for trial in range(200):
        ours = 2.0 * generator.lognormal(0, 0.1, 20)
        found = ratio((rounds, ours), (rounds, generator.lognormal(0, 0.1, 20)), seed=trial)
        hits += found.low <= 2.0 <= found.high
    assert 0.9 <= hits / 200 <= 0.995


def test_the_interval_is_that_of_95_percent() -> None:
    # Of 51 rounds with the ratios 1 to 51, a resample's median is at most k where at least 26 of
    # its 51 draws are: a binomial distribution, so that the interval's ends are known exactly.
    rounds, middle = 51, 26

    def share(k: int) -> float:
        hit = k / rounds
        return sum(
            math.comb(rounds, n) * hit**n * (1 - hit) ** (rounds - n)
            for n in range(middle, rounds + 1)
        )

    low, high = (next(k for k in range(1, rounds) if share(k) >= q) for q in (0.025, 0.975))
    narrow = [next(k for k in range(1, rounds) if share(k) >= q) for q in (0.05, 0.95)]
    wide = [next(k for k in range(1, rounds) if share(k) >= q) for q in (0.005, 0.995)]
    assert wide[0] < low < narrow[0] < middle < narrow[1] < high < wide[1]
    numbers = np.arange(rounds)
    found = ratio((numbers, numbers + 1.0), (numbers, np.ones(rounds)))
    assert (found.low, found.value, found.high) == (low, middle, high)


def test_only_rounds_that_both_have_count() -> None:
    found = ratio(([0, 1, 2], [2.0, 2.0, 90.0]), ([0, 1], [1.0, 1.0]))
    assert (found.value, found.low, found.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="no round in common"):
        ratio(([0], [1.0]), ([1], [1.0]))
