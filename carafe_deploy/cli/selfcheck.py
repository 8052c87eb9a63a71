"""``carafe-deploy selfcheck``."""

from __future__ import annotations

import json
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
    facts,
    line,
    print_json,
    results_console,
)

if TYPE_CHECKING:
    from carafe_deploy.selfcheck import SelfCheck

_MARKS = {"passed": "[green]✓[/green]", "failed": "[red]✗[/red]", "skipped": "[dim]–[/dim]"}


def selfcheck(
    output: Annotated[
        Path, typer.Option("-o", "--out", "--output", metavar="FOLDER", help="Folder to write to.")
    ] = Path("out/selfcheck"),
    json_output: JsonOption = False,
) -> None:
    """Check every backend on this machine.

    Builds and runs PyTorch, TorchScript, ONNX Runtime and TensorRT, on the
    CPU and on the GPU, as far as they are installed, on the two small
    detectors that come with the package, and compares operators, stages,
    detections and average precision with plain PyTorch. A backend that breaks
    is one row; the others are checked all the same. FOLDER/report.md is what a
    bug report should hold. The exit status is 1 if anything fails.
    """
    with Steps("[dim]·[/dim]") as steps:  # the table says what passed
        steps("load packages")
        from carafe_deploy.files import atomic_write_text
        from carafe_deploy.report import selfcheck_report
        from carafe_deploy.selfcheck import run_selfcheck

        result = run_selfcheck(
            output, step=steps, progress=lambda done, total: steps.update(f"{done}/{total}")
        )
        data = result.to_dict()
        atomic_write_text(output / "report.md", selfcheck_report(result))
        atomic_write_text(output / "report.json", json.dumps(data, indent=2) + "\n")
    if json_output:
        print_json(data)
    else:
        _show(results_console(json_output), result, output)
    if not result.passed:
        raise typer.Exit(1)


def _show(console: Console, result: SelfCheck, output: Path) -> None:
    console.print()
    facts(console, list(result.environment.items()))
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("", "detector", "backend", "seconds", ""):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for check in result.checks:
        detector = check.detector.partition("-")[0]
        mark, seconds = _MARKS[check.status], f"{check.seconds:.1f}"
        table.add_row(mark, detector, check.backend, seconds, Text(check.reason))
    console.print(table)
    console.print()
    line(console, str(output / "report.md"))
    if not result.passed:
        console.print("\n[bold red]FAIL[/bold red] see ✗")
        if any(check.status == "failed" and check.traceback for check in result.checks):
            line(console, "report.md and carafe-deploy --debug selfcheck have the tracebacks")
        return
    seconds = f"{result.seconds:.0f} s"
    console.print(f"\n[bold green]PASS[/bold green] what runs here agrees ({seconds})")


COMMAND = Command(
    "selfcheck",
    selfcheck,
    examples("carafe-deploy selfcheck", "carafe-deploy selfcheck --out /tmp/check --json"),
    needs_arguments=False,
)
