"""What ``carafe-deploy parity`` found, as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from carafe_deploy.cli.common import hint_debug, line

if TYPE_CHECKING:
    from carafe_deploy.parity import ParityReport
    from carafe_deploy.parity.table import Line, Row
    from carafe_deploy.parity.walk import StageWalk, WalkStep

_BARS = " ▁▂▃▅▇"
#: Over a histogram: each character is half a decade.
_SCALE = " 1e-9    1e-5      1"


def show_report(console: Console, report: ParityReport) -> None:
    """All rows of a comparison, see :func:`carafe_deploy.parity.table.report_lines`."""
    from carafe_deploy.parity.table import report_lines

    console.print()
    _show(console, report_lines(report))
    if report.failed:
        hint_debug(console, "parity")


def _show(console: Console, lines: Sequence[Line]) -> None:
    for pieces in lines:
        console.print(Text.assemble(*pieces), soft_wrap=True)


def show_walk(console: Console, walk: StageWalk) -> None:
    """Every tensor of a walk with its histogram, and where the difference comes from.

    Args:
        console: where.
        walk: what was found.
    """
    from carafe_deploy.parity.table import aligned, limit, mark, number, subject

    columns = ("", "error", "growth", "outside", "limit", "", _SCALE)
    rows: list[Row] = [[((name, "dim"),) for name in columns]]
    for step in walk.steps:
        growth = ((f"{step.growth:.1f}", ""),) if step.growth < 1000 else number(step.growth)
        outside = "nothing" if step.passed is None else _percent(1 - step.fraction)
        rows.append(
            [
                ((step.name, ""),),
                number(step.max_rel_error),
                growth,
                ((outside, ""),),
                ((limit(step), ""),),
                mark(step.passed),
                _histogram(step, walk.edges),
            ]
        )
    console.print()
    _show(console, aligned(rows, (0, -2, -1)))
    console.print()
    for noted in (walk.first_outside, *walk.uncompared[:1]):
        if noted is not None and noted.note:
            line(console, f"{noted.name}: {noted.note}", style="dim")
    if walk.left_out:
        names = ", ".join(walk.left_out)
        line(console, f"named by one artefact only, so not compared: {names}", style="yellow")
    line(console, subject(walk))
    line(console, walk.growth_verdict())
    style = {"passed": "green", "failed": "red"}.get(walk.state, "yellow")
    line(console, walk.verdict(), style=style)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share else "0"


def bars(counts: Sequence[int]) -> str:
    """A histogram in one character a bin; heights are logarithms, so that outliers show."""
    total = math.log(max(sum(counts), 2))
    top = len(_BARS) - 1
    return "".join(
        _BARS[1 + min(int(math.log(count) / total * top), top - 1)] if count else " "
        for count in counts
    )


def _histogram(step: WalkStep, edges: Sequence[float]) -> Line:
    """With what lies beyond the tolerance in red."""
    text = bars(step.histogram)
    if step.measure != "relative":
        return ((text, ""),)
    beyond = sum(edge < step.tolerance for edge in edges) + 1
    return ((text[:beyond], ""), (text[beyond:], "red"))
