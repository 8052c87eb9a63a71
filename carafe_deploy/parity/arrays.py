"""How far two arrays lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from carafe_deploy.errors import ArtefactError
from carafe_deploy.runners.base import Array

__all__ = ["ArrayError", "array_error", "largest", "rounded"]


@dataclass(frozen=True)
class ArrayError:
    """Largest difference between two arrays, and how many elements agree.

    Attributes:
        max_abs: largest |candidate - reference|; infinite where exactly one is not a number.
        max_rel: ``max_abs`` over the largest finite magnitude of the reference.
        within: elements, or rows, within the tolerance asked for.
        total: all of them.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    within: int = 0
    total: int = 0

    @property
    def fraction(self) -> float:
        """Of the elements or rows, how many agree; 1 where there are none."""
        return self.within / self.total if self.total else 1.0


def array_error(
    name: str, reference: Array, candidate: Array, relative: float, *, rows: bool = False
) -> ArrayError:
    """Compare element by element.

    Errors are measured against the tensor's largest magnitude, since the rounding error of a sum
    grows with its terms and not with what they happen to add up to. Equal infinities differ by
    zero, two NaNs as well.

    Args:
        name: of the tensor, for the error message.
        reference: floating, any shape.
        candidate: of the same shape.
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
    with np.errstate(invalid="ignore"):
        difference = np.abs(candidate.astype(np.float32) - reference)
    odd = ~np.isfinite(difference)
    if odd.any():
        alike = (reference == candidate) | (np.isnan(reference) & np.isnan(candidate))
        difference[odd] = np.where(alike[odd], 0.0, np.inf)
    scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
    max_abs = float(difference.max())
    if rows:
        difference = difference.reshape(len(difference), -1).max(axis=1)
    return ArrayError(
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else (math.inf if max_abs else 0.0),
        within=int(np.count_nonzero(difference <= relative * scale)),
        total=difference.size,
    )


def largest(errors: Iterable[ArrayError]) -> ArrayError:
    """The largest of each error, the sum of the counts."""
    errors = list(errors)
    return ArrayError(
        max_abs=max((error.max_abs for error in errors), default=0.0),
        max_rel=max((error.max_rel for error in errors), default=0.0),
        within=sum(error.within for error in errors),
        total=sum(error.total for error in errors),
    )


def rounded(array: Array, precision: str) -> Array:
    """float32 values that ``precision`` represents exactly (round half to even)."""
    array = array.astype(np.float32)
    if precision == "fp16":
        return array.astype(np.float16).astype(np.float32)
    if precision == "bf16":
        # bfloat16 is the upper half of a float32.
        bits = array.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)
    return array
