"""Histograms of bounded size, and the ranges chosen from them."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.quantize.ranges import BINS, Histogram, choose
from carafe_deploy.types import CALIBRATION_METHODS


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part.astype(np.float32))
    return found


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=100_000).astype(np.float32)


def test_counts_are_those_of_numpy(values: np.ndarray) -> None:
    found = histogram(values)
    edges = np.linspace(-found.limit, found.limit, BINS + 1)
    assert found.limit == 8
    np.testing.assert_array_equal(found.counts, np.histogram(values, edges)[0])
    assert (found.low, found.high) == (values.min(), values.max())


def test_larger_values_merge_bins_and_lose_no_count(values: np.ndarray) -> None:
    parts = [values * 1e-3, values, values * 1e4]
    found = histogram(*parts)
    whole = histogram(np.concatenate(parts))
    assert whole.limit == found.limit
    np.testing.assert_array_equal(found.counts, whole.counts)
    assert found.counts.size == BINS
    assert found.counts.sum() == sum(part.size for part in parts)


def test_zeros_count_whenever_they_come(values: np.ndarray) -> None:
    first, last = histogram(values * 0, values), histogram(values, values * 0)
    np.testing.assert_array_equal(first.counts, last.counts)
    assert first.counts.sum() == 2 * values.size


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(odd: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        histogram(np.array([1, odd]))


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_hold_zero_and_stay_within_what_was_seen(
    values: np.ndarray, method: str, symmetric: bool
) -> None:
    for part in (values, np.abs(values), -np.abs(values), values * 0, values * 1e-30):
        low, high = choose(histogram(part), method, symmetric=symmetric)
        assert low <= 0 <= high
        bound = np.abs(part).max() if symmetric else None
        assert low >= (-bound if symmetric else min(part.min(), 0))
        assert high <= (bound if symmetric else max(part.max(), 0))
        if symmetric:
            assert low == -high


def test_minmax_is_what_was_seen(values: np.ndarray) -> None:
    assert choose(histogram(values), "minmax") == (values.min(), values.max())


@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_a_percentile_cuts_both_tails(values: np.ndarray, percent: float) -> None:
    low, high = choose(histogram(values), "percentile", percent)
    width = 2 * histogram(values).limit / BINS
    rest = (100 - percent) / 2
    assert low == pytest.approx(np.percentile(values, rest), abs=2 * width)
    assert high == pytest.approx(np.percentile(values, 100 - rest), abs=2 * width)


def test_a_percentile_cuts_one_tail_where_there_is_one(values: np.ndarray) -> None:
    low, high = choose(histogram(np.abs(values)), "percentile", 99)
    assert low == 0
    assert high == pytest.approx(np.percentile(np.abs(values), 99), rel=1e-2)


def test_mse_is_the_least_of_all_shares(values: np.ndarray) -> None:
    spread = np.append(values, np.float32(40))  # one that is far away

    def cost(bound: float) -> float:
        step = 2 * bound / 255
        rounded = np.clip(np.rint(spread / step) * step, -bound, bound)
        return float(((spread - rounded) ** 2).sum())

    low, high = choose(histogram(spread), "mse", symmetric=True)
    best = min(np.linspace(0.1, 1, 91) * 40, key=cost)
    assert high == pytest.approx(best, abs=0.5)
    assert high < 40
    assert low == -high


def test_entropy_keeps_what_is_even_and_cuts_what_is_alone(values: np.ndarray) -> None:
    even = np.linspace(-3.9, 3.9, 100_000)
    assert choose(histogram(even), "entropy")[1] > 3.5
    alone = np.append(values, np.float32(1000))
    assert choose(histogram(alone), "entropy")[1] < 500
