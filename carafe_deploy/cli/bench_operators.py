"""``carafe-deploy bench --op NAME``: single operators on an R-50 detector's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carafe_deploy.cli.common import (
    Steps,
    UsageError,
    facts,
    hint,
    hint_debug,
    line,
    results_console,
    shell,
)

if TYPE_CHECKING:
    from carafe_deploy.bench.record import OperatorRow, OperatorsResult

__all__ = ["bench_operators"]

_INTERRUPTED = 130
_ALL = "all"


def bench_operators(
    operators: Sequence[str],
    *,
    device: str = "cpu",
    rounds: int | None = None,
    iterations: int | None = None,
    threads: int | None = None,
    full: bool = False,
    output: Path | None = None,
    html: Path | None = None,
    json_output: bool = False,
) -> None:
    """Measure operators, write and show what was found.

    Interrupted, it writes and shows what was measured by then.

    Args:
        operators: families of :data:`~carafe_deploy.operators.FAMILIES`, or ``"all"``.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        rounds: in each, every implementation has its turn; None for the default.
        iterations: timed calls a turn at most; None for the default.
        threads: of an operator on the CPU; None for as many as PyTorch uses.
        full: all types and layouts of all workloads.
        output: JSON file to write.
        html: report to write.
        json_output: print JSON in place of tables.

    Raises:
        UsageError: an operator is unknown, or a number below 1.
        BackendUnavailableError: there is no such device.
        typer.Exit: 1 if an implementation broke or is wrong, 130 if interrupted.
    """
    for option, value in (
        ("--rounds", rounds),
        ("--iterations", iterations),
        ("--threads", threads),
    ):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}: give at least 1")
    with Steps() as steps:
        steps("load packages")
        from carafe_deploy.bench.operator_bench import (
            OperatorOptions,
            is_failure,
            measure_operators,
        )
        from carafe_deploy.bench.result_file import to_json
        from carafe_deploy.files import atomic_write_text
        from carafe_deploy.operators import FAMILIES

        default = OperatorOptions()
        options = OperatorOptions(
            operators=_chosen(operators, tuple(FAMILIES)),
            device=device,
            rounds=default.rounds if rounds is None else rounds,
            iterations=default.iterations if iterations is None else iterations,
            threads=threads,
            full=full,
        )
        result = measure_operators(
            options,
            step=steps,
            progress=lambda done, total: steps.update(f"{done}/{total}"),
        )
        text = to_json(result)
        if output is not None:
            atomic_write_text(output, text)
        if html is not None:
            steps("report")
            from carafe_deploy.report.html import write_report

            write_report([result], html)
    failures = [row for row in result.rows if is_failure(row)]
    if json_output:
        typer.echo(text, nl=False)
    else:
        _show(results_console(json_output), result, failures, output, html)
    if result.partial:
        raise typer.Exit(_INTERRUPTED)
    if failures:
        raise typer.Exit(1)


def _chosen(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Without repetition; ``all`` stands for all of them."""
    for name in names:
        if name not in (*known, _ALL):
            raise UsageError(f"--op is {name!r}: give {', '.join(known)} or {_ALL}")
    return tuple(known) if _ALL in names else tuple(dict.fromkeys(names))


def _show(
    console: Console,
    result: OperatorsResult,
    failures: Sequence[OperatorRow],
    output: Path | None,
    html: Path | None,
) -> None:
    for operator in dict.fromkeys(row.operator for row in result.rows):
        rows = [row for row in result.rows if row.operator == operator]
        measured = [row for row in rows if row.median_us is not None]
        console.print()
        if measured:
            console.print(_table(operator, result, measured))
        lacking = {row.implementation: row.reason for row in rows if row not in failures}
        for name, reason in lacking.items():
            if reason:
                line(console, f"  {name}: {reason}", style="yellow")
        for row in rows:
            if row in failures:
                kind = f"{row.dtype} {row.layout}".strip()
                where = ", ".join(filter(None, (row.workload, kind)))
                line(console, f"  {row.implementation}, {where}: {row.reason}", style="red")
    console.print()
    facts(
        console,
        [
            ("device", result.device),
            ("copy", f"{result.copy_bytes_per_second / 1e9:.1f} GB/s, read and written"),
            ("float32 products", f"{result.flops_per_second / 1e9:.0f} GFLOP/s"),
            *((name, text) for name, text in result.settings.items() if name in _SHOWN),
        ],
    )
    console.print(_LEGEND, style="dim")
    if "doubt" in result.settings:
        line(console, result.settings["doubt"], style="yellow")
    for path in (output, html):
        if path is not None:
            line(console, str(path))
    if result.partial:
        line(console, "interrupted: this is what was measured by then", style="yellow")
    elif failures:
        console.print(f"\n[bold red]FAIL[/bold red] {len(failures)} of {len(result.rows)} rows")
        hint_debug(console, "bench")
    elif output is not None and html is None:
        hint(console, shell("carafe-deploy", "report", str(output), "-o", "report.html"))


_SHOWN = ("turns", "caches", "threads")
_LEGEND = (
    "GB/s: inputs and results once each. Copy: what the fastest copy of as many bytes takes, over "
    "the median. Floor: likewise for the longer of that copy and the operations at the rate of "
    "float32 products. Error: over the reference's largest value."
)


def _table(operator: str, result: OperatorsResult, rows: Sequence[OperatorRow]) -> Table:
    """A line an implementation, below a line a workload; columns that say something."""
    from carafe_deploy.bench.statistics import summary

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    has_entries = len({row.entry for row in rows}) > 1
    has_flops = any(row.flops for row in rows)
    has_errors = any(row.max_error is not None for row in rows)
    for name in (operator, *["entry"] * has_entries, "type"):
        table.add_column(name, no_wrap=True)
    numbers = ("median µs", "p90", "GB/s", *["GFLOP/s"] * has_flops, "copy")
    for name in (*numbers, *["floor"] * has_flops, *["error"] * has_errors):
        table.add_column(name, justify="right", no_wrap=True)
    workload = ""
    for row in rows:
        if row.workload != workload:
            workload = row.workload
            table.add_row(Text(workload), style="bold")
        times = summary(row.samples_us)
        table.add_row(
            f"  {row.implementation}",
            *[row.entry] * has_entries,
            f"{row.dtype} {row.layout}".rstrip(),
            _microseconds(times.median),
            _microseconds(times.p90),
            f"{row.num_bytes / times.median / 1e3:.1f}",
            *[f"{row.flops / times.median / 1e3:.1f}"] * has_flops,
            _share(row.copy_us, times.median),
            *[_share(row.copy_us and result.floor_us(row), times.median)] * has_flops,
            *[f"{row.max_error:.0e}" if row.max_error else "0"] * has_errors,
        )
    return table


def _microseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _share(part: float, whole: float) -> str:
    """Empty where the part was not measured."""
    share = part / whole
    return "" if not part else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
