"""What an attack came to, and the loop that all of them share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: An attack that found as many stops: the first few say what is wrong.
MOST_FAILURES = 10


class Broken(Exception):
    """A case did what it must not; the message says what and how to repeat it."""


@dataclass(frozen=True)
class Outcome:
    """What an attack came to.

    Attributes:
        count: of cases, those that failed among them.
        outcomes: how many ended in which allowed way, by its name.
        failures: what ended otherwise, each with the seed that repeats it.
    """

    count: int
    outcomes: Mapping[str, int]
    failures: list[str]


def repeated(seconds: float, seed: int, case: Callable[[int], str]) -> Outcome:
    """Call ``case`` with ``seed``, ``seed + 1``, ... for so long, once at least.

    A case returns the name of its outcome, or raises :class:`Broken`. So its own seed, with no
    seconds, repeats it alone.
    """
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    number = seed
    while True:
        try:
            outcomes[case(number)] += 1
        except Broken as broken:
            failures.append(f"--seed {number} --seconds 0: {broken}")
        number += 1
        if time.monotonic() >= end or len(failures) >= MOST_FAILURES:
            return Outcome(number - seed, outcomes, failures)
