"""A comparison as lines of text: what the command prints, and ``print(report)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from carafe_deploy.stages import describe_stages
from carafe_deploy.verdict import mark_of

if TYPE_CHECKING:
    from carafe_deploy.parity.report import ParityReport, ParityRow
    from carafe_deploy.parity.walk import StageWalk, WalkStep

__all__ = ["Line", "Row", "aligned", "limit", "mark", "number", "plain", "report_lines", "subject"]

#: Pieces of one line: text, and its style in words such as ``"bold red"``.
Line = tuple[tuple[str, str], ...]
#: Cells of one row.
Row = list[Line]

#: Up to so many stages each has a line.
_MANY = 16
#: All images are named where that takes no more characters.
_NAMES = 160
_COLOURS = {"✓": "green", "✗": "red", "–": "yellow"}


def plain(lines: Sequence[Line]) -> str:
    """Without styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def report_lines(report: ParityReport) -> list[Line]:
    """All rows of a comparison, of many stages the worst of each kind; notes; the verdict."""
    shown = list(_shown(report.rows))
    table: list[Row] = [
        [((name, "dim"),) for name in ("", "error", "relative", "matched", "limit", "")]
    ]
    level = ""
    for label, place, row in shown:
        if row.level != level:
            level = row.level
            table.append([((level, "bold"),)])
        table.append([((f"  {label}", ""), (f" {place}" if place else "", "dim")), *_cells(row)])
    lines = [*aligned(table), ()]
    lines += [
        ((f"{row.name}: {row.note}", "dim"),)
        for _, _, row in shown
        if row.note and (not row.passed or row.level in ("detections", "ap"))
    ]
    lines += [
        ((f"{level} not compared: {reason}", "yellow"),) for level, reason in report.skipped.items()
    ]
    lines += [
        ((f"{level} failed: {failure.reason}", "red"),) for level, failure in report.failed.items()
    ]
    lines.append(((subject(report), ""),))
    count = len(report.rows)
    if report.passed:
        lines.append((("PASS", "bold green"), (f" all {count} rows", "")))
    if report.state == "failed":
        failed = [f"{_count(len(report.failures), 'row')} of {count}"]
        failed += [_count(len(report.failed), "level")] * bool(report.failed)
        lines.append((("FAIL", "bold red"), (f" {', '.join(failed)}", "")))
    if report.state == "nothing compared" or report.uncompared:
        text = f" in {_count(len(report.uncompared), 'row')} of {count}"
        lines.append((("NOTHING COMPARED", "bold yellow"), (text if count else "", "")))
    return lines


def subject(found: ParityReport | StageWalk) -> str:
    """What was compared, and on which images."""
    images = "1 image" if found.images == 1 else f"{found.images} images"
    text = f"{found.candidate} against {found.reference}, {images}"
    names = found.image_names
    if not names:
        return text
    listed = ", ".join(names)
    if len(listed) > _NAMES:
        listed = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    return f"{text}: {listed}"


def aligned(rows: Sequence[Row], left: Sequence[int] = (0, -1)) -> list[Line]:
    """Cells under each other.

    Args:
        rows: of equally many cells; those of one cell are headings, which no column is as wide as.
        left: columns that begin under each other; the others end so.
    """
    columns = max(map(len, rows))
    widths = [
        max(sum(len(text) for text, _ in row[column]) for row in rows if len(row) == columns)
        for column in range(columns)
    ]
    to_the_left = {column % columns for column in left}
    lines: list[Line] = []
    for row in rows:
        line: list[tuple[str, str]] = []
        for column, cell in enumerate(row):
            missing = " " * (widths[column] - sum(len(text) for text, _ in cell))
            space = (missing, "")
            line += [*cell, space] if column in to_the_left else [space, *cell]
            line.append((" ", ""))
        lines.append(tuple(line[:-1]))
    return lines


def mark(passed: bool | None) -> Line:
    """The verdict's character in its colour."""
    character = mark_of(passed)
    return ((character, _COLOURS[character]),)


def number(value: float | None) -> Line:
    """An error in two digits."""
    return (("" if value is None else f"{value:.1e}" if value else "0", ""),)


def limit(row: ParityRow | WalkStep) -> str:
    """The tolerance and its direction."""
    return f"{'≥' if row.measure in ('matched', 'iou') else '≤'} {row.tolerance:g}"


def _cells(row: ParityRow) -> list[Line]:
    counted = row.measure in ("matched", "iou")
    matched = f"{row.matched}/{row.total}" if counted and row.matched is not None else ""
    if row.passed is None:
        matched = "nothing"
    # Tensors are held to their relative error; say so where it is the other one.
    allowed = limit(row) + (" abs" if row.measure == "absolute" else "")
    return [
        number(row.max_abs_error),
        number(row.max_rel_error),
        ((matched, ""),),
        ((allowed, ""),),
        mark(row.passed),
    ]


def _shown(rows: Sequence[ParityRow]) -> Iterator[tuple[str, str, ParityRow]]:
    """Label, place among others, and row of each line."""
    stages = [row for row in rows if row.level == "stages"]
    kinds: dict[str, list[ParityRow]] = {}
    if len(stages) > _MANY:
        by_name = {stage.name: stage.kind for stage in describe_stages(row.name for row in stages)}
        for row in stages:
            kinds.setdefault(by_name[row.name], []).append(row)
    done = False
    for row in rows:
        if row.level != "stages" or not kinds:
            yield row.name, "", row
        elif not done:
            done = True
            yield from (_summary(kind, of_kind) for kind, of_kind in kinds.items())


def _summary(kind: str, rows: Sequence[ParityRow]) -> tuple[str, str, ParityRow]:
    """The first that failed, else the first that compared nothing, else the worst."""
    failed = [row for row in rows if row.passed is False]
    empty = [row for row in rows if row.passed is None]
    row = (failed or empty or [max(rows, key=lambda row: row.max_rel_error or 0.0)])[0]
    if len(rows) == 1:
        return row.name, "", row
    place = f"worst of {len(rows)} in {kind}"
    if len(failed) > 1:
        place = f"first of {len(failed)} outside in {kind}"
    elif empty and not failed:
        place = f"first of {len(empty)} in {kind}" if len(empty) > 1 else f"in {kind}"
    return row.name, place, row


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
