"""What ``carafe-deploy parity`` found, as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from carafe_deploy.cli.common import hint_debug, line, plural

if TYPE_CHECKING:
    from carafe_deploy.parity import ParityReport, ParityRow
    from carafe_deploy.parity.walk import StageWalk, WalkStep

__all__ = ["bars", "show_report", "show_walk"]

#: Up to so many stages each has a line.
_MANY = 16

_BARS = " ▁▂▃▅▇"
#: Over a histogram: each character is half a decade.
_SCALE = " 1e-9    1e-5      1"


def show_report(console: Console, report: ParityReport, images: str) -> None:
    """All rows of a comparison; of many stages the worst of each kind.

    Args:
        console: where.
        report: what was found.
        images: which were used, in words.
    """
    table = _table("", "error", "relative", "matched", "limit", "")
    level = ""
    for label, row in _lines(report.rows):
        if row.level != level:
            table.add_row(row.level, style="bold")
            level = row.level
        table.add_row(f"  {label}", *_cells(row), _mark(row.passed))
    console.print()
    console.print(table)
    console.print()
    for _, row in _lines(report.rows):
        if row.note and (not row.passed or row.level in ("detections", "ap")):
            line(console, f"{row.name}: {row.note}", style="dim")
    for level, reason in report.skipped.items():
        line(console, f"{level} not compared: {reason}", style="yellow")
    for level, failure in report.failed.items():
        line(console, f"{level} failed: {failure.reason}", style="red")
    _show_subject(console, report, images)
    if report.passed:
        console.print(f"[bold green]PASS[/bold green] all {len(report.rows)} rows")
    else:
        failed = [f"{plural(len(report.failures), 'row')} of {len(report.rows)}"]
        failed += [plural(len(report.failed), "level")] * bool(report.failed)
        console.print(f"[bold red]FAIL[/bold red] {', '.join(failed)}")
    if report.failed:
        hint_debug(console, "parity")


def _lines(rows: Sequence[ParityRow]) -> Iterator[tuple[str, ParityRow]]:
    """Label and row of each line."""
    from carafe_deploy.stages import describe_stages

    stages = [row for row in rows if row.level == "stages"]
    kinds: dict[str, list[ParityRow]] = {}
    if len(stages) > _MANY:
        by_name = {stage.name: stage.kind for stage in describe_stages(row.name for row in stages)}
        for row in stages:
            kinds.setdefault(by_name[row.name], []).append(row)
    done = False
    for row in rows:
        if row.level != "stages" or not kinds:
            yield row.name, row
        elif not done:
            done = True
            yield from (_summary(kind, of_kind) for kind, of_kind in kinds.items())


def _summary(kind: str, rows: Sequence[ParityRow]) -> tuple[str, ParityRow]:
    """The first that failed, else the worst."""
    failed = [row for row in rows if not row.passed]
    row = failed[0] if failed else max(rows, key=lambda row: row.max_rel_error or 0.0)
    if len(rows) == 1:
        return row.name, row
    place = f"first of {len(failed)} outside" if len(failed) > 1 else f"worst of {len(rows)}"
    return f"{row.name} [dim]{place} in {kind}[/dim]", row


def _cells(row: ParityRow) -> tuple[str, str, str, str]:
    counted = row.measure in ("matched", "iou")
    matched = f"{row.matched}/{row.total}" if counted and row.matched is not None else ""
    # Tensors are held to their relative error; say so where it is the other one.
    limit = _limit(row) + (" abs" if row.measure == "absolute" else "")
    return _number(row.max_abs_error), _number(row.max_rel_error), matched, limit


def show_walk(console: Console, walk: StageWalk, images: str) -> None:
    """Every tensor of a walk with its histogram, and where the difference comes from.

    Args:
        console: where.
        walk: what was found.
        images: which were used, in words.
    """
    table = _table("", "error", "growth", "outside", "limit", "", _SCALE)
    for step in walk.steps:
        outside = 1 - step.fraction
        table.add_row(
            step.name,
            _number(step.max_rel_error),
            f"{step.growth:.1f}" if step.growth < 1000 else _number(step.growth),
            f"{outside:.2%}" if outside else "0",
            _limit(step),
            _mark(step.passed),
            _histogram(step, walk.edges),
        )
    console.print()
    console.print(table)
    console.print()
    if walk.first_outside is not None and walk.first_outside.note:
        line(console, f"{walk.first_outside.name}: {walk.first_outside.note}", style="dim")
    if walk.left_out:
        names = ", ".join(walk.left_out)
        line(console, f"named by one artefact only, so not compared: {names}", style="yellow")
    _show_subject(console, walk, images)
    line(console, walk.growth_verdict())
    line(console, walk.verdict(), style="green" if walk.passed else "red")


def _show_subject(console: Console, found: ParityReport | StageWalk, images: str) -> None:
    count = plural(found.images, "image")
    line(console, f"{found.candidate} against {found.reference}, {count}: {images}")


def bars(counts: Sequence[int]) -> str:
    """A histogram in one character a bin; heights are logarithms, so that outliers show."""
    total = math.log(max(sum(counts), 2))
    top = len(_BARS) - 1
    return "".join(
        _BARS[1 + min(int(math.log(count) / total * top), top - 1)] if count else " "
        for count in counts
    )


def _histogram(step: WalkStep, edges: Sequence[float]) -> Text:
    """With what lies beyond the tolerance in red."""
    text = Text(bars(step.histogram))
    if step.measure == "relative":
        beyond = sum(edge < step.tolerance for edge in edges) + 1
        text.stylize("red", beyond)
    return text


def _table(name: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(
            column, justify="left" if column in ("", _SCALE) else "right", no_wrap=True
        )
    return table


def _mark(passed: bool) -> str:
    return "[green]✓[/green]" if passed else "[red]✗[/red]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _limit(row: ParityRow | WalkStep) -> str:
    return f"{'≥' if row.measure in ('matched', 'iou') else '≤'} {row.tolerance:g}"
