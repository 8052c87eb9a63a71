"""Where CARAFE's choice of a kernel disagrees with what was measured.

    python benchmarks/_design_choice.py DESIGNS.json

Reads what ``carafe_designs`` wrote (plugins/harness/designs.cpp; ``make gpu-check`` runs it): the
times of each design of a call, and which of them the library takes by itself, by the table
``kPreferences`` of plugins/kernels/carafe.cu.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Choice", "choices", "disagreements"]


class Choice(NamedTuple):
    """One call: the design that the library takes, and the fastest whose result is right.

    Times are medians in microseconds, caches cold.
    """

    call: str
    chosen: str
    chosen_us: float
    fastest: str
    fastest_us: float

    @property
    def agrees(self) -> bool:
        return self.chosen == self.fastest

    def __str__(self) -> str:
        more = 100 * (self.chosen_us / self.fastest_us - 1)
        return (
            f"{self.call}: takes {self.chosen}, {self.chosen_us:.1f} us, {more:.0f} % more than "
            f"{self.fastest}, {self.fastest_us:.1f} us"
        )


def choices(measured: Mapping[str, Any]) -> list[Choice]:
    """One entry a call, in the order of the file.

    Raises:
        ValueError: a call without exactly one chosen design, or without any right result.
    """
    calls: dict[str, list[Mapping[str, Any]]] = {}
    for entry in measured["calls"]:
        name = f"{entry['dtype']} {entry['layout']} {entry['shape']}"
        calls.setdefault(name, []).append(entry)
    return [_choice(name, entries) for name, entries in calls.items()]


def _choice(call: str, entries: Sequence[Mapping[str, Any]]) -> Choice:
    chosen = [entry for entry in entries if entry["chosen"]]
    right = [entry for entry in entries if entry["agrees"]]
    if len(chosen) != 1 or not right:
        raise ValueError(
            f"{call}: {len(chosen)} designs are marked as chosen and {len(right)} results are "
            "right, expected one and at least one: measure again"
        )
    fastest = min(right, key=lambda entry: entry["cold_median_us"])
    return Choice(
        call,
        chosen[0]["design"],
        chosen[0]["cold_median_us"],
        fastest["design"],
        fastest["cold_median_us"],
    )


def disagreements(measured: Mapping[str, Any]) -> str:
    """A heading, then a line a call whose chosen design was not the fastest, the worst first."""
    found = choices(measured)
    wrong = [choice for choice in found if not choice.agrees]
    wrong.sort(key=lambda choice: choice.fastest_us / choice.chosen_us)
    heading = f"CARAFE's choice is the fastest measured design in {len(found) - len(wrong)} of "
    return "\n".join([f"{heading}{len(found)} calls", *(f"  {choice}" for choice in wrong)])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(disagreements(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
