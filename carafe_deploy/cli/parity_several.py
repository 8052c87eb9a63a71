"""``carafe-deploy parity`` of several candidates: one row each, whatever becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from carafe_deploy.backends import backend_of
from carafe_deploy.cli.common import hint, hint_debug, line, print_json, results_console, shell

if TYPE_CHECKING:
    from carafe_deploy.failures import Failure
    from carafe_deploy.parity import ParityReport

_MARKS = {"passed": "[green]✓[/green]", "failed": "[red]✗[/red]", "skipped": "[dim]–[/dim]"}


@dataclass(frozen=True)
class _Row:
    """One candidate: its report, or why there is none."""

    candidate: str
    report: ParityReport | None
    failure: Failure | None

    @property
    def status(self) -> str:
        if self.report is not None and self.failure is None:
            return "passed" if self.report.passed else "failed"
        return "skipped" if self.failure is not None and self.failure.lacking else "failed"

    @property
    def reason(self) -> str:
        reasons = []
        if self.report is not None:
            told = (*self.report.failures, *self.report.uncompared)[:1]
            reasons += [f"{row.level} {row.name}: {row.note or row.state}" for row in told]
            reasons += [f"{level}: {one.reason}" for level, one in self.report.failed.items()]
        return "; ".join([*reasons, *([self.failure.reason] if self.failure else [])])

    def to_dict(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate,
            "status": self.status,
            "reason": self.reason,
            "traceback": self.failure.traceback if self.failure else "",
            "report": json.loads(self.report.to_json()) if self.report else None,
        }


def artefacts_among(words: Sequence[str]) -> list[str]:
    """Those of the words that name artefacts by their suffix; the others are images."""
    return [word for word in words if backend_of(word)]


def compare_several(
    candidates: Sequence[str],
    compare: Callable[[str], ParityReport],
    *,
    reference: str,
    output: Path | None,
    json_output: bool,
) -> None:
    """Compare every candidate, write and show a row each.

    Args:
        candidates: as named.
        compare: opens, compares and closes one; may raise anything.
        reference: as named.
        output: JSON file to write.
        json_output: print JSON in place of the table.

    Raises:
        typer.Exit: 1 if a candidate failed, or none could be compared.
    """
    from carafe_deploy.failures import caught
    from carafe_deploy.files import atomic_write_text

    rows = []
    for name in candidates:
        report = None
        with caught() as attempt:
            report = compare(name)
        rows.append(_Row(name, report, attempt.failure))
    data = [row.to_dict() for row in rows]
    if output is not None:
        atomic_write_text(output, json.dumps(data, indent=2) + "\n")
    if json_output:
        print_json(data)
    else:
        _show(rows, reference)
    statuses = {row.status for row in rows}
    if "failed" in statuses or "passed" not in statuses:
        raise typer.Exit(1)


def _show(rows: Sequence[_Row], reference: str) -> None:
    from carafe_deploy.parity import LEVELS
    from carafe_deploy.report.parity import level_summary

    console = results_console(False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column(f"against {reference}", overflow="fold")
    for level in (*LEVELS, ""):
        table.add_column(level)
    for row in rows:
        cells = [level_summary(row.report, level) if row.report else "" for level in LEVELS]
        table.add_row(_MARKS[row.status], Text(row.candidate), *cells, Text(row.reason))
    console.print()
    console.print(table)
    console.print()
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        console.print(f"[bold red]FAIL[/bold red] {len(failed)} of {len(rows)} candidates")
        if any(row.failure or (row.report and row.report.failed) for row in failed):
            hint_debug(console, "parity")
        hint(console, shell("carafe-deploy", "parity", reference, failed[0].candidate))
    elif any(row.status == "passed" for row in rows):
        console.print("[bold green]PASS[/bold green] what runs here agrees")
    else:
        line(console, "nothing was compared: see –", style="yellow")
