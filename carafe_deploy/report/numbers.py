"""Numbers as people read them: few digits, and the same number of decimals down a column."""

from __future__ import annotations

import math
from collections.abc import Iterable

from carafe_deploy.bench.statistics import Ratio

__all__ = [
    "NONE",
    "column",
    "decimals",
    "interval",
    "large",
    "optional",
    "scientific",
    "share",
    "significant",
    "span",
]

#: In a cell whose number was not measured.
NONE = "–"


def decimals(value: float, digits: int = 3) -> int:
    """Decimals that show a number with so many significant digits; none from 10^digits on."""
    if not math.isfinite(value) or value == 0:
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponent notation."""
    return f"{value:.{decimals(value, digits)}f}"


def column(values: Iterable[float | None], digits: int = 3) -> list[str]:
    """Numbers below each other, with as many decimals as the smallest of them needs."""
    values = list(values)
    known = [abs(value) for value in values if value]
    places = decimals(min(known), digits) if known else 0
    return [NONE if value is None else f"{value:.{places}f}" for value in values]


def optional(value: float | None, text: str = "{:.0f}") -> str:
    """A number in this format; a dash if there is none."""
    return NONE if value is None else text.format(value)


def scientific(value: float | None) -> str:
    """An error: two digits and a power of ten, or a plain zero."""
    return NONE if value is None else f"{value:.1e}" if value else "0"


def share(part: float) -> str:
    """0.0253 as 2.5%."""
    return f"{part:.1%}"


def interval(ratio: Ratio) -> str:
    """A ratio and its interval; ≈ marks one that holds 1."""
    return f"{span(ratio.value, ratio.low, ratio.high)}{'' if ratio.is_decided else ' ≈'}"


def span(value: float, low: float, high: float) -> str:
    """``1.004 [0.998–1.010]``: enough decimals to tell ratios near 1 apart."""
    places = 3 if 0.1 <= value < 2 else decimals(value)
    return f"{value:.{places}f} [{low:.{places}f}–{high:.{places}f}]"


def large(value: float) -> str:
    """Three significant digits, thousands parted: 0.123, 12.3, 1,230, 51,000."""
    if value < 1000:
        return significant(value)
    return f"{float(f'{value:.3g}'):,.0f}"
