"""``carafe-deploy parity``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.cli.common import (
    BatchSizeOption,
    Command,
    ConfigOption,
    DeviceOption,
    JsonOption,
    Steps,
    UsageError,
    artefact_path,
    examples,
    hint,
    line,
    plural,
    results_console,
    shell,
)

if TYPE_CHECKING:
    from carafe_deploy.graph.options import ExportOptions
    from carafe_deploy.parity import ParityReport, ParityRow
    from carafe_deploy.runners.base import Runner
    from carafe_deploy.types import ModelInfo

__all__ = ["COMMAND", "open_pair", "parity"]

#: Images used when none are named.
_SAMPLES = 8


ReferenceArgument = Annotated[
    str,
    typer.Argument(
        metavar="REFERENCE",
        help="What is right: a .pth checkpoint, a published model's name, .ts, .onnx, .engine.",
        show_default=False,
    ),
]
CandidateArgument = Annotated[
    str,
    typer.Argument(metavar="CANDIDATE", help="What is checked.", show_default=False),
]
ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGES", help="The same as --images.", show_default=False),
]
ImagesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--images",
        metavar="IMAGES",
        help="File, folder or glob, repeatable; by default the first annotated images, "
        "else images that come with the package.",
        show_default=False,
    ),
]
AnnotationsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", help="COCO annotations, to compare AP.", show_default=False),
]
ImageDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="That their file names are relative to; by default their own.",
        show_default=False,
    ),
]
LevelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Some of operators, stages, detections, ap; by default all that there is data for "
        "and both artefacts can be looked into for.",
        show_default=False,
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use the first so many images only.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FILE.json", help="Write the report.", show_default=False
    ),
]


def parity(
    reference: ReferenceArgument,
    candidate: CandidateArgument,
    # So that --images photos/*.jpg works when a shell has expanded it.
    more_images: ImagesArgument = None,
    images: ImagesOption = None,
    annotations: AnnotationsOption = None,
    image_dir: ImageDirOption = None,
    levels: LevelsOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 1,
    device: DeviceOption = "cpu",
    config: ConfigOption = None,
    output: OutputOption = None,
    json_output: JsonOption = False,
) -> None:
    """Compare two artefacts of one model, level by level.

    Levels are operators, stages (intermediate tensors), detections, and AP
    on a COCO set. A checkpoint is run in PyTorch with the precision,
    thresholds and sizes of the other artefact. The exit status is 1 if
    anything differs by more than its tolerance.
    """
    from carafe_deploy.files import atomic_write_text
    from carafe_deploy.images import find_images, load_image
    from carafe_deploy.parity import run_parity

    console = results_console(json_output)
    with ExitStack() as stack, Steps() as steps:
        steps("open")
        first, second = open_pair(reference, candidate, device, config, stack)
        named = [*(images or ()), *(more_images or ())]
        paths = (
            find_images(named) if named else _default_images(first.info, annotations, image_dir)
        )[:limit]
        current = ""

        def progress(level: str, done: int, total: int) -> None:
            nonlocal current
            if level != current:
                steps(level)
                current = level
            steps.update(f"{done}/{total}")

        report = run_parity(
            first,
            second,
            images=[load_image(path) for path in paths],
            levels=None if levels is None else [name.strip() for name in levels.split(",")],
            batch_size=batch_size,
            annotations=annotations,
            image_dir=image_dir,
            limit=limit,
            progress=progress,
        )
    text = report.to_json() + "\n"
    if output is not None:
        atomic_write_text(output, text)
    if json_output:
        typer.echo(text, nl=False)
    else:
        _show(console, report, paths, candidate)
    if not report.passed:
        raise typer.Exit(1)


def open_pair(
    reference: str, candidate: str, device: str, config: Path | None, stack: ExitStack
) -> tuple[Runner, Runner]:
    """Open two artefacts; a checkpoint takes precision and settings from the other one.

    Raises:
        UsageError: a config was given and neither is a checkpoint.
        CarafeDeployError: see :func:`carafe_deploy.artefacts.open_runner`.
    """
    from carafe_deploy.artefacts import SUFFIXES, open_runner

    paths = artefact_path(reference), artefact_path(candidate)
    is_checkpoint = [SUFFIXES.get(path.suffix.lower()) == "pytorch" for path in paths]
    if config is not None and not any(is_checkpoint):
        raise UsageError(f"--config {config} belongs to a .pth checkpoint, and there is none")
    runners: list[Runner | None] = [None, None]
    # An exported file first: it says what a checkpoint is to be run with.
    for index in sorted((0, 1), key=is_checkpoint.__getitem__):
        other = runners[1 - index]
        options = None
        if is_checkpoint[index] and other is not None:
            options = _options_of(other.info)
        runners[index] = stack.enter_context(
            open_runner(
                paths[index],
                device=device,
                config=config if is_checkpoint[index] else None,
                options=options,
            )
        )
    first, second = runners
    assert first is not None
    assert second is not None
    return first, second


def _options_of(info: ModelInfo) -> ExportOptions:
    from carafe_deploy.graph.options import ExportOptions

    return ExportOptions(
        batch=info.input.batch,
        height=info.input.height,
        width=info.input.width,
        precision=info.precision,
        uint8_input=info.input.layout == "nhwc_uint8",
        score_threshold=info.score_threshold,
        nms_iou_threshold=info.nms_iou_threshold,
        max_detections=info.max_detections,
    )


def _default_images(
    info: ModelInfo, annotations: Path | None, image_dir: Path | None
) -> list[Path]:
    """Annotated images; else those that come with the package and show the model's classes."""
    from carafe_deploy.data import data_path

    if annotations is None and info.classes != ("circle", "square", "triangle"):
        return [data_path("chelsea.png")]
    from carafe_deploy.coco import load_annotations

    if annotations is None:
        annotations, image_dir = data_path("shapes", "val.json"), data_path("shapes", "val")
    folder = annotations.parent if image_dir is None else image_dir
    entries = load_annotations(annotations)["images"][:_SAMPLES]
    return [folder / entry["file_name"] for entry in entries]


def _show(console: Console, report: ParityReport, paths: list[Path], candidate: str) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    for name in ("error", "relative", "matched", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    level = ""
    for row in report.rows:
        if row.level != level:
            table.add_row(row.level, style="bold")
            level = row.level
        verdict = "[green]✓[/green]" if row.passed else "[red]✗[/red]"
        name, *numbers = _cells(row)
        table.add_row(f"  {name}", *numbers, verdict)
    console.print()
    console.print(table)
    console.print()
    for row in report.rows:
        if row.note and (not row.passed or row.level in ("detections", "ap")):
            line(console, f"{row.name}: {row.note}", style="dim")
    for level, reason in report.skipped.items():
        line(console, f"{level} not compared: {reason}", style="yellow")
    names = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    line(
        console,
        f"{report.candidate} against {report.reference}, {plural(report.images, 'image')}: {names}",
    )
    if report.passed:
        console.print(f"[bold green]PASS[/bold green] all {len(report.rows)} rows")
        hint(
            console,
            shell("carafe-deploy", "detect", candidate, "IMAGES"),
            shell("carafe-deploy", "eval", candidate, "--annotations", "instances.json")
            + " --images IMAGES",
        )
    else:
        failed = plural(len(report.failures), "row")
        console.print(f"[bold red]FAIL[/bold red] {failed} of {len(report.rows)}")


def _cells(row: ParityRow) -> tuple[str, str, str, str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1e}" if value else "0"

    counted = row.measure in ("matched", "iou")
    matched = f"{row.matched}/{row.total}" if counted and row.matched is not None else ""
    limit = f"≥ {row.tolerance:g}" if counted else f"≤ {row.tolerance:g}"
    # Tensors are held to their relative error; say so where it is the other one.
    limit += " abs" if row.measure == "absolute" else ""
    return row.name, number(row.max_abs_error), number(row.max_rel_error), matched, limit


COMMAND = Command(
    "parity",
    parity,
    examples(
        "carafe-deploy parity epoch_12.pth detector.onnx",
        "carafe-deploy parity detector.onnx detector.ts --images photos/*.jpg --levels detections",
        "carafe-deploy parity epoch_12.pth detector.onnx --annotations val.json --image-dir val "
        "--limit 200 -o parity.json",
    ),
)
