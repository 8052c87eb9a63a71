"""A benchmark of single operators: how fast, and how far from what the machine allows?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from carafe_deploy.bench.record import OperatorRow, OperatorsResult
from carafe_deploy.bench.statistics import summary
from carafe_deploy.operators import TITLES
from carafe_deploy.report.document import (
    Block,
    Figure,
    Fold,
    Heading,
    Items,
    Section,
    Table,
    Text,
)
from carafe_deploy.report.markdown import section_markdown
from carafe_deploy.report.numbers import NONE, column, large, scientific, share, significant
from carafe_deploy.report.timings import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["operators_markdown", "operators_section", "pivot_table"]

#: What has to be equal for two implementations to be compared.
Case = tuple[str, str, str, str, str]


def operators_markdown(result: OperatorsResult) -> str:
    """Verdict, table and rules as GitHub Markdown."""
    return section_markdown(operators_section(result))


def operators_section(result: OperatorsResult) -> Section:
    """Everything that is known of a benchmark of operators."""
    blocks: list[Block] = []
    if any(row.median_us and row.flops and row.num_bytes for row in result.rows):
        blocks += [Heading("Roofline"), Figure(partial(_draw_roofline, result), _ROOFLINE)]
    for operator in dict.fromkeys(row.operator for row in result.rows):
        rows = [row for row in result.rows if row.operator == operator]
        # One explanation is enough.
        explained = any(isinstance(block, Table) for block in blocks)
        blocks += [
            Heading(TITLES.get(operator, operator)),
            *_tables(result, rows, explain=not explained),
            *_missing(rows),
        ]
    limits = (
        ("copying", f"{large(result.copy_bytes_per_second / 1e9)} GB/s, read and written"),
        ("float32 arithmetic", f"{large(result.flops_per_second / 1e9)} GFLOP/s"),
        ("caches before a call", result.cache),
    )
    blocks += [Heading("Rules of measurement"), Items((*limits, *result.settings.items()))]
    return Section(
        title=f"Operators on {'the CPU' if result.device == 'cpu' else result.device}",
        subtitle=machine(result.environment),
        verdict=_verdict(result),
        blocks=tuple(blocks),
        partial=result.partial,
        environment=result.environment,
    )


def _tables(result: OperatorsResult, rows: Sequence[OperatorRow], *, explain: bool) -> list[Block]:
    """The usual type and layout, and folded the others."""
    measured = [row for row in rows if row.median_us is not None]
    if not measured:
        return []
    usual = _kind(measured[0])
    first = [row for row in measured if _kind(row) == usual]
    others = [row for row in measured if _kind(row) != usual]
    blocks: list[Block] = [_table(result, first, usual, _EXPLAINED if explain else "")]
    if others:
        blocks.append(Fold("Other types and layouts", (_table(result, others),)))
    return blocks


_EXPLAINED = (
    "Over floor: median over the longer of copying as many bytes and computing as many float32 "
    "operations on this machine. Error: largest difference from the reference over its largest "
    "magnitude."
)


def _missing(rows: Sequence[OperatorRow]) -> list[Block]:
    """What was not measured; an implementation that never was is named without a case."""
    runs = {row.implementation for row in rows if row.median_us is not None}
    reasons = {
        f"{row.implementation}, {_name(row)}"
        if row.implementation in runs
        else row.implementation: row.reason
        for row in rows
        if row.reason
    }
    return [Items(tuple(reasons.items()), "note", "Not measured")] if reasons else []


_ROOFLINE = (
    "On the slope of the roof copying is the limit, on its flat part float32 arithmetic; what fits "
    "into warm caches can lie above the slope. Colour: implementation; shape: operator; hollow: "
    "half precision; the larger, the more bytes. Operators whose work depends on the data are in "
    "the tables only."
)


def _case(row: OperatorRow) -> Case:
    return row.operator, row.entry, row.workload, row.dtype, row.layout


def _cases(rows: Sequence[OperatorRow]) -> dict[Case, list[OperatorRow]]:
    """What can be compared, in the order measured."""
    cases: dict[Case, list[OperatorRow]] = defaultdict(list)
    for row in rows:
        cases[_case(row)].append(row)
    return cases


def _median(row: OperatorRow) -> float:
    return row.median_us or float("inf")


def _over_floor(result: OperatorsResult, row: OperatorRow) -> float | None:
    """Median over the fastest that the machine allows; None where no floor is known."""
    if row.median_us is None or not row.copy_us or result.flops_per_second <= 0:
        return None
    return row.median_us / result.floor_us(row)


def _verdict(result: OperatorsResult) -> tuple[Text, ...]:
    texts = []
    for operator in dict.fromkeys(row.operator for row in result.rows):
        measured = [row for row in result.rows if row.operator == operator and row.median_us]
        cases = [rows for rows in _cases(measured).values() if rows]
        if not cases:
            continue
        winners = [min(rows, key=_median) for rows in cases]
        names = [row.implementation for row in winners]
        name = max(dict.fromkeys(names), key=names.count)
        won = [
            (row, rows)
            for row, rows in zip(winners, cases, strict=True)
            if row.implementation == name
        ]
        parts = [f"{name} is fastest in {len(won)} of {len(cases)} cases"]
        floors = [over for row, _ in won if (over := _over_floor(result, row)) is not None]
        if floors:
            parts.append(f"{_range(floors)} times the floor")
        plain = [
            _median(other) / _median(row)
            for row, rows in won
            for other in rows
            if other.implementation == _PLAIN != name
        ]
        if plain:
            parts.append(f"{_range(plain)} times as fast as {_PLAIN}")
        texts.append(Text(f"{TITLES.get(operator, operator)}: {', '.join(parts)}."))
    return tuple(texts) or (Text("No operator was measured.", "bad"),)


#: What others are compared with in words.
_PLAIN = "PyTorch"


def _range(values: Sequence[float]) -> str:
    low, high = significant(min(values), 2), significant(max(values), 2)
    return low if low == high else f"{low} to {high}"


def _table(
    result: OperatorsResult, rows: Sequence[OperatorRow], kind: str = "", note: str = ""
) -> Table:
    """Measured implementations of one operator, those of one case below each other.

    Args:
        result: that holds the rows.
        rows: of one operator.
        kind: type and layout of all rows; if empty, the cases name theirs.
        note: below the table.
    """
    with_entry = len({row.entry for row in rows}) > 1
    unit, scale = ("ms", 1e-3) if min(map(_median, rows)) >= _MILLISECONDS else ("µs", 1.0)
    cells: list[tuple[str, ...]] = []
    best = set()
    for of_case in _cases(rows).values():
        fastest = min(of_case, key=_median)
        times = column(scale * _median(row) for row in of_case)
        for row, time in zip(of_case, times, strict=True):
            if row is fastest and len(of_case) > 1:
                best.add(len(cells))
            over = _over_floor(result, row)
            cells.append(
                (
                    _name(row, with_entry, not kind) if row is of_case[0] else "",
                    row.implementation,
                    time,
                    share(summary(row.samples_us).variation),
                    _rate(row.gigabytes_per_second if row.num_bytes else None),
                    _rate(row.gigaflops if row.flops else None),
                    NONE if over is None else significant(over, 2),
                    scientific(row.max_error),
                )
            )
    header = (kind, "implementation", f"{unit}, median", "CV", *_RATES, "over floor", "error")
    table = Table(header, tuple(cells), "llrrrrrr", frozenset(best), key=1, note=note)
    return table.without_empty_columns(NONE)


_RATES = ("GB/s", "GFLOP/s")
#: Microseconds from which on a table is in milliseconds.
_MILLISECONDS = 100.0


def _name(row: OperatorRow, with_entry: bool = True, with_kind: bool = True) -> str:
    entry, kind = (row.entry,) * with_entry, (_kind(row),) * with_kind
    return ", ".join((row.workload, *entry, *kind))


def _kind(row: OperatorRow) -> str:
    """``float32 nchw``."""
    return " ".join(filter(None, (row.dtype, row.layout)))


def _rate(value: float | None) -> str:
    return NONE if value is None else large(value)


def pivot_table(result: OperatorsResult, corner: str = "") -> Table:
    """Medians in each operator's usual type and layout, implementations side by side.

    Short enough for a README, if there are not too many cases.

    Args:
        result: the benchmark.
        corner: heading of the first column.
    """
    measured = [row for row in result.rows if row.median_us is not None]
    usual = {row.operator: _kind(row) for row in reversed(measured)}
    rows = [row for row in measured if _kind(row) == usual[row.operator]]
    names = tuple(dict.fromkeys(row.implementation for row in rows))
    cells = []
    for (operator, *_), of_case in _cases(rows).items():
        entries = {row.entry for row in rows if row.operator == operator}
        by_name = {row.implementation: row for row in of_case}
        ours = by_name.get(names[0])
        floor = None if ours is None else _over_floor(result, ours)
        case = _name(of_case[0], with_entry=len(entries) > 1, with_kind=False)
        cells.append(
            (
                f"{TITLES.get(operator, operator)}, {case}",
                *(_milliseconds(by_name[name]) if name in by_name else NONE for name in names),
                NONE if floor is None else significant(floor, 2),
            )
        )
    header = (corner, *names, *(f"{name} over floor" for name in names[:1]))
    return Table(header, tuple(cells), "l" + "r" * (len(header) - 1))


def _milliseconds(row: OperatorRow) -> str:
    return significant(_median(row) / 1e3)


def _draw_roofline(result: OperatorsResult) -> Drawing:
    from carafe_deploy.report.plots import roofline

    return roofline(result)
