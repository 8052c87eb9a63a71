"""Statistics of the difference between two arrays."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.parity.array_error import HISTOGRAM_EDGES, array_error, histogram, largest


def _bins(**counts: int) -> tuple[int, ...]:
    """By the exponent of the bin's lower edge in half decades: ``_18`` is 1e-9, ``_0`` is 1."""
    found = [0] * (len(HISTOGRAM_EDGES) + 1)
    for name, count in counts.items():
        found[0 if name == "below" else 19 - int(name[1:])] = count
    return tuple(found)


def test_a_histogram_by_hand() -> None:
    values = [0.0, 5e-10, 2e-9, 2e-5, 2e-5, 4e-5, 0.9, 1.5, np.inf]
    expected = _bins(below=2, _18=1, _10=2, _9=1, _1=1, _0=2)
    assert histogram(np.array(values)) == expected
    assert histogram(np.array(values, np.float32) * 8, scale=8.0) == expected


def test_without_a_scale_every_difference_is_infinitely_large() -> None:
    assert histogram(np.array([0.0, 1e-20, 1.0], np.float32), scale=0.0) == _bins(below=1, _0=2)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("shape", [(1, 7), (700, 300), (3, 400, 300), (2, 3, 4, 5)])
def test_arrays_of_any_size_are_compared_in_pieces(shape: tuple[int, ...], rows: bool) -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=shape).astype(np.float32)
    candidate = reference + generator.normal(scale=1e-3, size=shape).astype(np.float32)
    difference = np.abs(candidate - reference)
    scale = np.abs(reference).max()
    error = array_error("x", reference, candidate, 1e-3, rows=rows)
    counted = difference.reshape(len(reference), -1).max(axis=1) if rows else difference
    assert error.max_abs == difference.max()
    assert error.max_rel == pytest.approx(difference.max() / scale)
    assert (error.within, error.total) == ((counted <= 1e-3 * scale).sum(), counted.size)
    assert error.mean_rel == pytest.approx(difference.mean() / np.abs(reference).mean(), rel=1e-4)
    assert error.histogram == histogram(difference, scale)
    assert sum(error.histogram) == reference.size


def test_what_is_no_number_on_one_side_is_infinitely_far() -> None:
    reference = np.array([1.0, np.nan, np.inf, -np.inf, 2.0], np.float32)
    candidate = np.array([1.0, np.nan, np.inf, np.inf, np.nan], np.float32)
    error = array_error("x", reference, candidate, 0.1)
    assert (error.max_abs, error.max_rel, error.mean_rel) == (np.inf, np.inf, np.inf)
    assert (error.within, error.total) == (3, 5)
    assert error.histogram == _bins(below=3, _0=2)


def test_several_errors_become_one() -> None:
    ones = np.ones((2, 3), np.float32)
    parts = [array_error("x", ones, ones * factor, 0.1) for factor in (1.0, 1.05, 3.0)]
    error = largest(parts)
    assert (error.max_abs, error.max_rel, error.within, error.total) == (2.0, 2.0, 12, 18)
    assert error.mean_rel == pytest.approx((0.05 + 2) / 3)
    assert error.histogram == _bins(below=6, _3=6, _0=6)
    assert sum(largest([]).histogram) == 0
