"""Lines of text in columns: what ``carafe-deploy parity`` prints, with styles or without."""

from __future__ import annotations

from collections.abc import Sequence

from carafe_deploy.verdict import mark_of

__all__ = ["Line", "Row", "aligned", "limit", "mark", "number", "plain", "subject"]

#: Pieces of one line: text, and its style in words such as ``"bold red"``.
Line = tuple[tuple[str, str], ...]
#: Cells of one row.
Row = list[Line]

#: All images are named where that takes no more characters.
_NAMES = 160
_COLOURS = {"✓": "green", "✗": "red", "–": "yellow"}


def plain(lines: Sequence[Line]) -> str:
    """Without styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def subject(candidate: str, reference: str, images: int, names: Sequence[str]) -> str:
    """What was compared, and on which images."""
    text = f"{candidate} against {reference}, {images} image{'' if images == 1 else 's'}"
    listed = ", ".join(names)
    if len(listed) > _NAMES:
        listed = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    return f"{text}: {listed}" if names else text


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


def limit(measure: str, tolerance: float) -> str:
    """The tolerance and its direction."""
    # Tensors are held to their relative error; say so where it is the other one.
    absolute = " abs" if measure == "absolute" else ""
    return f"{'≥' if measure in ('matched', 'iou') else '≤'} {tolerance:g}{absolute}"
