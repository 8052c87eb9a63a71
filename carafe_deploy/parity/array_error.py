"""How far two arrays lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError
from carafe_deploy.runners.base import Array

__all__ = ["HISTOGRAM_EDGES", "ArrayError", "array_error", "histogram", "largest", "rounded"]

#: Between the bins of a histogram of relative errors, half a decade each: 1e-9, 3.2e-9, ... 1.
#: Equal elements are in the first bin, below all edges; whatever is no number is in the last.
HISTOGRAM_EDGES = tuple(10 ** (exponent / 2) for exponent in range(-18, 1))

_NO_COUNTS = (0,) * (len(HISTOGRAM_EDGES) + 1)

#: Elements that are compared at a time: their differences stay in the cache.
_CHUNK = 1 << 17

_Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, repr=False)
class ArrayError(OneLine):
    """Differences between two arrays, and how many elements agree.

    Attributes:
        max_abs: largest |candidate - reference|; infinite where exactly one is not a number.
        max_rel: ``max_abs`` over the largest finite magnitude of the reference.
        within: elements, or rows, within the tolerance asked for, of ``total``.
        sum_abs: of the differences.
        sum_reference: of the reference's finite magnitudes.
        histogram: elements by difference over the reference's largest magnitude, see
            :data:`HISTOGRAM_EDGES`.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    within: int = 0
    total: int = 0
    sum_abs: float = 0.0
    sum_reference: float = 0.0
    histogram: tuple[int, ...] = _NO_COUNTS

    @property
    def fraction(self) -> float:
        """Of the elements or rows, how many agree; 1 where there are none."""
        return self.within / self.total if self.total else 1.0

    @property
    def mean_rel(self) -> float:
        """Mean difference over mean magnitude of the reference."""
        if self.sum_reference:
            return self.sum_abs / self.sum_reference
        return math.inf if self.sum_abs else 0.0


def array_error(
    name: str, reference: Array, candidate: Array, relative: float, *, rows: bool = False
) -> ArrayError:
    """Compare two floating arrays of one shape, element by element.

    Errors are measured against the tensor's largest magnitude: the rounding error of a sum grows
    with its terms, not with what they add up to. Equal infinities differ by zero, two NaNs as well.

    Args:
        name: of the tensor, for the error message.
        reference: what is right.
        candidate: what is checked.
        relative: tolerance for counting an element as agreeing.
        rows: count rows, of which every element must agree, and not elements.

    Raises:
        ArtefactError: the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ArtefactError(
            f"{name} is {list(reference.shape)} in the reference and {list(candidate.shape)} in "
            "the candidate: compare exports of the same model"
        )
    if not reference.size:
        return ArrayError()
    shape = (len(reference), -1) if rows else (-1,)
    reference, candidate = reference.reshape(shape), candidate.reshape(shape)
    magnitudes = [_magnitudes(part) for part in _chunks(reference)]
    scale = max(largest for largest, _ in magnitudes)
    parts = [
        _chunk_error(ours, theirs, scale, relative)
        for ours, theirs in zip(_chunks(reference), _chunks(candidate), strict=True)
    ]
    return replace(largest(parts), sum_reference=sum(total for _, total in magnitudes))


def _chunks(array: Array) -> Iterator[Array]:
    step = max(1, _CHUNK * len(array) // array.size)
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _magnitudes(array: Array) -> tuple[float, float]:
    """Largest finite magnitude and sum of the finite ones."""
    magnitudes = np.abs(array)
    if not np.isfinite(magnitudes.max()):
        magnitudes = magnitudes[np.isfinite(magnitudes)]
    return float(magnitudes.max(initial=0.0)), float(magnitudes.sum())


def _chunk_error(reference: Array, candidate: Array, scale: float, relative: float) -> ArrayError:
    """Of part of a tensor, [N] elements or [N, D] rows, whose largest magnitude is ``scale``."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(candidate.astype(np.float32) - reference)
    if not np.isfinite(difference.max()):
        odd = ~np.isfinite(difference)
        alike = (reference == candidate) | (np.isnan(reference) & np.isnan(candidate))
        difference[odd] = np.where(alike[odd], 0.0, np.inf)
    max_abs = float(difference.max())
    counted = difference.max(axis=1) if difference.ndim == 2 else difference
    return ArrayError(
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else (math.inf if max_abs else 0.0),
        within=int(np.count_nonzero(counted <= relative * scale)),
        total=len(counted),
        sum_abs=float(difference.sum()),
        histogram=histogram(difference, scale),
    )


def histogram(differences: _Floats, scale: float = 1.0) -> tuple[int, ...]:
    """Count differences over a scale in the bins that :data:`HISTOGRAM_EDGES` separate.

    Differences are infinite for what cannot be subtracted. Over a scale of 0 all are.
    """
    last = len(_NO_COUNTS) - 1
    with np.errstate(divide="ignore", over="ignore"):
        places = np.log10(differences.ravel() / np.float32(scale or np.finfo(np.float32).tiny))
    places = np.clip(np.floor(2 * places) + last, 0, last)
    return tuple(np.bincount(places.astype(np.intp), minlength=last + 1).tolist())


def largest(errors: Iterable[ArrayError]) -> ArrayError:
    """The largest of each error, the sum of the counts and sums."""
    errors = list(errors)
    return ArrayError(
        max_abs=max((error.max_abs for error in errors), default=0.0),
        max_rel=max((error.max_rel for error in errors), default=0.0),
        within=sum(error.within for error in errors),
        total=sum(error.total for error in errors),
        sum_abs=sum(error.sum_abs for error in errors),
        sum_reference=sum(error.sum_reference for error in errors),
        histogram=tuple(
            map(sum, zip(_NO_COUNTS, *(error.histogram for error in errors), strict=True))
        ),
    )


#: Low bits of a float32 that a precision with its exponent does without.
_CUT = {"tf32": 13, "bf16": 16}


def rounded(array: Array, precision: str) -> Array:
    """float32 values that ``precision`` represents exactly (round half to even)."""
    array = array.astype(np.float32)
    if precision == "fp16":
        return array.astype(np.float16).astype(np.float32)
    if precision not in _CUT:
        return array
    cut = _CUT[precision]
    bits = array.view(np.uint32)
    bits = bits + np.uint32((1 << (cut - 1)) - 1) + ((bits >> cut) & 1)
    return (bits >> cut << cut).view(np.float32)
