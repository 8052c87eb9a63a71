"""Ranges of activations from histograms of bounded size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "PERCENTILE", "Histogram", "choose"]

#: Of a histogram, both signs together.
BINS = 4096
#: Percent of the values that the method percentile keeps.
PERCENTILE = 99.99
#: Steps on each side of zero that 8 bits have.
_STEPS = 128

_Counts = npt.NDArray[np.int64]
_Range = tuple[float, float]


class Histogram:
    """Counts of values in :data:`BINS` bins over [-limit, limit], limit a power of two.

    Values beyond double the limit, by merging bins in pairs: what is counted stays exact. Its size
    does not depend on the values.
    """

    def __init__(self) -> None:
        self.counts: _Counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self._zeros = 0  # counted while there is no limit
        self.low = np.inf
        self.high = -np.inf

    def add(self, values: npt.NDArray[np.floating], *, count: bool = True) -> None:
        """Count values, or look at the lowest and highest alone.

        Raises:
            ValueError: one is not finite.
        """
        if not values.size:
            return
        flat = values.reshape(-1).astype(np.float32, copy=False)
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError("it is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not count:
            return
        self._reach(max(-low, high))
        if not self.limit:
            self._zeros += flat.size
        else:
            bins = np.floor(flat * np.float32(BINS / 2 / self.limit))  # exact: a power of two
            index = np.minimum(bins.astype(np.int32) + BINS // 2, BINS - 1)
            self.counts += np.bincount(index, minlength=BINS)

    def _reach(self, largest: float) -> None:
        if largest <= self.limit:
            return
        wanted = 2.0 ** np.ceil(np.log2(max(largest, 2.0**-100)))
        if not self.limit:
            self.limit = wanted
            self.counts[BINS // 2] += self._zeros
        while self.limit < wanted:
            middle = np.add.reduceat(self.counts, np.arange(0, BINS, 2))
            self.counts = np.concatenate(
                (np.zeros(BINS // 4, np.int64), middle, np.zeros(BINS // 4, np.int64))
            )
            self.limit *= 2

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """[BINS] middle of each bin."""
        width = 2 * self.limit / BINS
        centres: npt.NDArray[Any] = (np.arange(BINS) + 0.5) * width - self.limit
        return centres


def choose(
    histogram: Histogram, method: str, percentile: float = PERCENTILE, *, symmetric: bool = False
) -> _Range:
    """Lowest and highest value that is not clipped; zero lies between them.

    Args:
        histogram: of at least one value.
        method: one of :data:`~carafe_deploy.types.CALIBRATION_METHODS`.
        percentile: of the method percentile: percent of the values kept, in 50..100.
        symmetric: the two shall differ in sign only.
    """
    seen = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        seen = -max(-seen[0], seen[1]), max(-seen[0], seen[1])
    if not histogram.limit or method == "minmax":
        return seen
    if method == "mse":
        return _mse(histogram, seen)
    low, high = (_percentile if method == "percentile" else _entropy)(histogram, percentile)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    return max(low, seen[0]), min(high, seen[1])


def _percentile(histogram: Histogram, percentile: float) -> _Range:
    """Cut half of the rest on either side, all of it where there is one side only."""
    share = 1 - percentile / 100
    share /= 2 if histogram.low < 0 < histogram.high else 1
    upto = np.cumsum(histogram.counts) / histogram.counts.sum()
    width = 2 * histogram.limit / BINS
    low = np.searchsorted(upto, share, side="right") * width - histogram.limit
    high = (np.searchsorted(upto, 1 - share) + 1) * width - histogram.limit
    return min(low, 0.0), max(high, 0.0)


def _entropy(histogram: Histogram, _: float) -> _Range:
    """TensorRT's: the clipping whose 8-bit image diverges least from the values (KL)."""
    half = BINS // 2
    folded = histogram.counts[half:] + histogram.counts[:half][::-1]
    folded[0] = folded[1]  # zeros, which ReLU makes of all else, are exact whatever the range
    best, chosen = np.inf, half
    for reach in range(_STEPS, half + 1, _STEPS // 8):
        kept = folded[:reach].astype(np.float64)
        clipped = kept.copy()
        clipped[-1] += folded[reach:].sum()
        used = kept > 0
        edges = np.linspace(0, reach, _STEPS, endpoint=False).astype(np.int64)
        total, filled = np.add.reduceat(kept, edges), np.add.reduceat(used, edges, dtype=np.int64)
        mean = np.divide(total, filled, out=np.zeros(_STEPS), where=filled > 0)
        image = np.repeat(mean, np.diff(np.append(edges, reach))) * used
        divergence = _divergence(clipped, image)
        if divergence < best:
            best, chosen = divergence, reach
    threshold = chosen * histogram.limit / half
    return -threshold, threshold


def _divergence(values: npt.NDArray[np.float64], image: npt.NDArray[np.float64]) -> float:
    """Kullback and Leibler's, of counts; a bin that the image lacks counts as nearly empty."""
    p, q = values / max(values.sum(), 1.0), image / max(image.sum(), 1.0)
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())


def _mse(histogram: Histogram, seen: _Range) -> _Range:
    """The share of the range seen whose rounding and clipping cost least, squared."""
    used = histogram.counts > 0
    values, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    best, chosen = np.inf, seen
    for share in np.linspace(0.1, 1.0, 91):
        low, high = share * seen[0], share * seen[1]
        step = (high - low) / (2 * _STEPS - 1)
        rounded = np.clip(np.rint(values / step) * step, low, high)
        cost = float((counts * (values - rounded) ** 2).sum())
        if cost <= best:
            best, chosen = cost, (low, high)
    return chosen
