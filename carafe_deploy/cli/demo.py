"""``carafe-deploy demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.backends import title_of
from carafe_deploy.cli.common import (
    Command,
    JsonOption,
    Steps,
    examples,
    hint,
    line,
    print_json,
    results_console,
)

if TYPE_CHECKING:
    from carafe_deploy.demo import DemoResult, Numbers


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--out", "--output", metavar="FOLDER", help="Folder to write to.")
    ] = Path("out/demo"),
    json_output: JsonOption = False,
) -> None:
    """Show the whole way on two small trained detectors.

    Exports them to ONNX and TorchScript, builds TensorRT engines, detects,
    draws, compares PyTorch, TorchScript, ONNX Runtime and, on a GPU, the
    engines, sets their AP beside mmdetection's, and measures them.
    FOLDER/report.html shows it all. Takes about two minutes on two cores.
    A backend that breaks is a failed row beside the others. The exit status
    is 1 if anything deviates or fails.
    """
    with Steps() as steps:
        steps("load packages")
        from carafe_deploy.bench.record import write_result
        from carafe_deploy.demo import run_demo
        from carafe_deploy.files import atomic_write_text
        from carafe_deploy.report import write_demo_report, write_report

        result = run_demo(
            output, step=steps, progress=lambda done, total: steps.update(f"{done}/{total}")
        )
        steps("report")
        write_demo_report(result, output / "report.md")
        data = result.to_dict()
        atomic_write_text(output / "report.json", json.dumps(data, indent=2) + "\n")
        measured = [(d.bench, d) for d in result.detectors if d.bench is not None]
        for bench, detector in measured:
            write_result(output / f"{detector.checkpoint.stem}.bench.json", bench)
        parity = [report for detector in result.detectors for report in detector.parity]
        if measured or parity:
            write_report([*(bench for bench, _ in measured), *parity], output / "report.html")
    if json_output:
        print_json(data)
    else:
        _show(results_console(json_output), result, output)
    if not result.passed:
        raise typer.Exit(1)


def _show(console: Console, result: DemoResult, output: Path) -> None:
    from carafe_deploy.report import NEXT, engine_summary

    console.print()
    console.print(_ap(result))
    console.print()
    console.print(_parity(result))
    console.print()
    for detector in result.detectors:
        line(console, f"{detector.title}, engine: {engine_summary(detector.engine)}")
        for step, failure in detector.failed.items():
            line(console, f"✗ {detector.title}, {step}: {failure.reason}", style="red")
    console.print()
    written = [output / "report.html", output / "report.md", result.sheet]
    written = [path for path in written if path.is_file()]
    for detector in result.detectors:
        written += [b.file for b in detector.backends if b.backend != "pytorch"]
        if detector.engine.file is not None and detector.engine.file not in written:
            written.append(detector.engine.file)
    for path in written:
        line(console, str(path))
    if not result.passed:
        console.print("\n[bold red]FAIL[/bold red] something deviates: see ✗")
        if any(detector.failed for detector in result.detectors):
            line(console, "report.json and carafe-deploy --debug demo have the tracebacks")
        return
    console.print(f"\n[bold green]PASS[/bold green] everything agrees ({result.seconds:.0f} s)")
    hint(console, *NEXT)


def _table(*columns: str) -> Table:
    """Two columns of names, then numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    return table


def _ap(result: DemoResult) -> Table:
    def cells(numbers: Numbers) -> list[str]:
        return [
            f"{numbers[kind]['AP']:.4f}" if kind in numbers else "" for kind in ("bbox", "segm")
        ]

    images = f"AP on {result.images} images"
    table = _table(images, "", "box", "mask", "found again", "ms/image", "")
    for detector in result.detectors:
        recorded = [f"[dim]{cell}[/dim]" for cell in cells(detector.recorded)]
        table.add_row(detector.title, "[dim]mmdetection[/dim]", *recorded)
        for backend in detector.backends:
            table.add_row(
                "",
                title_of(backend.backend),
                *cells(backend.numbers),
                f"{backend.matched}/{backend.recorded}",
                f"{backend.seconds * 1e3:.0f}",
                _mark(detector.agrees(backend)),
            )
    return table


def _parity(result: DemoResult) -> Table:
    from carafe_deploy.report import level_summary

    levels = ("operators", "stages", "detections")
    table = _table("parity with PyTorch", "", *levels, "")
    for detector in result.detectors:
        title = detector.title
        for backend in detector.backends:
            if backend.parity is not None:
                cells = [level_summary(backend.parity, level) for level in levels]
                passed = _mark(backend.parity.passed)
                table.add_row(title, title_of(backend.backend), *cells, passed)
                title = ""
    return table


def _mark(passed: bool) -> str:
    return "[green]✓[/green]" if passed else "[red]✗[/red]"


COMMAND = Command(
    "demo",
    demo,
    examples("carafe-deploy demo", "carafe-deploy demo --out /tmp/demo --json"),
    needs_arguments=False,
)
