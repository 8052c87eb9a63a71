"""``carafe-deploy doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carafe_deploy.cli.common import (
    Command,
    JsonOption,
    Steps,
    examples,
    line,
    plural,
    print_json,
    results_console,
)

if TYPE_CHECKING:
    from carafe_deploy.doctor import Diagnosis, Finding, Purpose

_MARKS = {"ok": "[green]✓[/green]", "missing": "[dim]–[/dim]", "wrong": "[red]✗[/red]"}


def doctor(
    artefacts: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARTEFACT...", help="Files to open, to see how they would be run."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Tell what this machine is ready for, and how to mend the rest.

    Looks at Python, its packages, the GPU and its driver, TensorRT and the
    libraries of this package, sorted by what they are needed for: nothing is
    built or run. Artefacts that are named are opened. ✓ is there, – is missing,
    ✗ is there but wrong; each comes with the command that mends it. The exit
    status is 1 if anything is wrong.
    """
    with Steps() as steps:
        steps("look")
        from carafe_deploy.doctor import diagnose

        diagnosis = diagnose([Path(name) for name in artefacts or ()])
    if json_output:
        print_json(diagnosis.to_dict())
    else:
        _show(results_console(json_output), diagnosis)
    if diagnosis.wrong:
        raise typer.Exit(1)


def _show(console: Console, diagnosis: Diagnosis) -> None:
    for purpose in diagnosis.purposes:
        _show_purpose(console, purpose)
    if diagnosis.wrong:
        names = ", ".join(finding.name for finding in diagnosis.wrong)
        console.print(f"[bold red]FAIL[/bold red] {plural(len(diagnosis.wrong), 'fault')}: {names}")
        return
    console.print("[bold green]PASS[/bold green] nothing is wrong")


def _show_purpose(console: Console, purpose: Purpose) -> None:
    state = "[green]ready[/green]" if purpose.ready else f"lacks {', '.join(purpose.lacks)}"
    console.print(f"[bold]{purpose.name}[/bold]: {state}", soft_wrap=True)
    width = max(len(finding.name) for finding in purpose.findings)
    for finding in purpose.findings:
        _show_finding(console, finding, width)
    console.print()


def _show_finding(console: Console, finding: Finding, width: int) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    table.add_row(f"  {_MARKS[finding.status]}", finding.name, Text(finding.fact))
    console.print(table)
    if finding.remedy:
        line(console, f"{'':{width + 5}}{finding.remedy}", style="cyan")


COMMAND = Command(
    "doctor",
    doctor,
    examples(
        "carafe-deploy doctor", "carafe-deploy doctor detector.onnx", "carafe-deploy doctor --json"
    ),
    needs_arguments=False,
)
