"""What the commands share: options, artefacts by name, tables, steps, hints, JSON."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from carafe_deploy.backends import backend_of
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import CarafeDeployError, OptionError

if TYPE_CHECKING:
    from rich.status import Status

    from carafe_deploy.images import Image
    from carafe_deploy.runners.base import Runner

#: Images used when none are named.
_SAMPLES = 8
#: Columns of a table in a pipe or log file.
_LOG_WIDTH = 120


class Layout(StrEnum):
    """Memory format of weights and feature maps."""

    channels_last = "channels-last"
    nchw = "nchw"


class Mode(StrEnum):
    """How a checkpoint or an engine is run."""

    eager = "eager"
    compile = "compile"
    cuda_graph = "cuda-graph"
    compile_graph = "compile-graph"


ArtefactArgument = Annotated[
    str,
    typer.Argument(
        metavar="ARTEFACT",
        help="An .onnx, .ts or .engine file, a .pth checkpoint, or the name of a published model.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.py",
        help="mmdetection config of a checkpoint that has none inside. It is never executed.",
    ),
]
AnnotationsOption = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="COCO annotations, to compare AP.")
]
ImageDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="That their file names are relative to; by default their own."
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use the first so many images only.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu, cuda or cuda:N; by default cpu, for an engine the first GPU."
    ),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images a run; those of one padded size are gathered, so it changes no result.",
    ),
]


def _number_or_auto(text: str) -> str:
    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text
    raise typer.BadParameter(f"{text!r} is neither a number from 1 on nor auto")


AutoBatchSizeOption = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="NUMBER|auto",
        callback=_number_or_auto,
        help="Images a run; those of one padded size are gathered, so it changes no result. auto "
        "times runs of 1, 2, 4, ... images first and takes the fastest.",
    ),
]
MixedSizesOption = Annotated[
    bool,
    typer.Option(
        "--mixed-sizes",
        help="Pad the images of a batch to the largest of them instead, as mmdetection does: fewer "
        "runs, but what is found in an image depends on the others.",
    ),
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="Of a checkpoint's weights and feature maps: channels-last (default), or nchw.",
    ),
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="Of all but TorchScript: eager (default), compile (checkpoints), cuda-graph, which "
        "captures the whole detector once for each input size (GPU), or compile-graph, both "
        "(checkpoints, GPU).",
    ),
]
BodiesOption = Annotated[
    bool,
    typer.Option(
        "--bodies",
        help="Run an ONNX file by the function bodies in it, as an ONNX Runtime without our "
        "kernels does.",
    ),
]
Tf32Option = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Let fp32 round to 10 bits of mantissa inside convolutions and matrix products (GPU); "
        "faster. An engine has it inside.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON only; everything else goes to stderr.")
]


class UsageError(CarafeDeployError):
    """Options that contradict each other, or a value that cannot be read."""


@dataclass(frozen=True, repr=False)
class Command(OneLine):
    """One command of the program.

    Attributes:
        name: as typed.
        function: its parameters are the command's arguments, its docstring the help.
        epilog: examples below the help.
        needs_arguments: without any, show the help.
    """

    name: str
    function: Callable[..., None]
    epilog: str
    needs_arguments: bool = True


def examples(*lines: str) -> str:
    """An epilog of command lines; each is a paragraph, or typer would join them."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


def results_console(json_output: bool) -> Console:
    """Where results go: stdout, unless that is to hold JSON only."""
    console = Console(stderr=json_output, highlight=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def print_json(data: Any) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def shell(*words: str | Path) -> str:
    """A command line as one would type it."""
    return " ".join(shlex.quote(str(word)) for word in words)


def evaluation(artefact: str | Path, *options: str) -> str:
    """The command line that measures the AP of an artefact."""
    coco = ("--annotations", "instances.json", "--images", "IMAGES")
    return shell("carafe-deploy", "eval", artefact, *coco, *options)


def hint(console: Console, *lines: str) -> None:
    """Say what can be done next, unwrapped so that it can be copied."""
    line(console, "\nnext", style="dim")
    for text in lines:
        line(console, f"  {text}", style="cyan")


def hint_debug(console: Console, command: str) -> None:
    """Say how to see the rest of an error that a row gives the first line of."""
    line(console, f"carafe-deploy --debug {command} ... shows the tracebacks", style="dim")


def gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None where none can be opened."""
    from carafe_deploy.engine.device import open_device

    try:
        with open_device() as device:
            return device.capability()
    except CarafeDeployError:
        return None


def line(console: Console, text: str, style: str | None = None) -> None:
    """One line as it is: not wrapped, so that it can be copied, and without markup."""
    console.print(text, style=style, soft_wrap=True, markup=False)


def facts(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Two columns, name and value; values are folded, never cut."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table, markup=False)


def plural(count: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class Steps:
    """Steps of a job on stderr: a spinner while one runs, a line with its time when it is done.

    Call it with the name of the step that begins, which ends the one before.

    Args:
        mark: before the name of a step that is done.
    """

    def __init__(self, mark: str = "[green]✓[/green]") -> None:
        self._mark = mark
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._name: str | None = None
        self._begun = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Begin a step."""
        self._end(done=True)
        self._name, self._begun = name, time.perf_counter()
        if self._console.is_terminal:
            self._status = self._console.status(name)
            self._status.start()

    def update(self, text: str) -> None:
        """Say how far the running step is; terminals only."""
        if self._status is not None:
            self._status.update(f"{self._name}  [dim]{text}[/dim]")

    def _end(self, done: bool) -> None:
        if self._status is not None:
            self._status.stop()
        if self._name is not None and done:
            seconds = time.perf_counter() - self._begun
            self._console.print(
                f"{self._mark} {self._name} [dim]{seconds:.1f} s[/dim]", soft_wrap=True
            )
        self._status = self._name = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._end(done=kind is None)


@contextmanager
def image_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that disappears when done; call the result with (images done, total)."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def output_path(output: Path | None, default: str) -> Path:
    """Where a file goes: as typed, else under its default name, in the folder that was typed."""
    if output is None or output.is_dir():
        return (output or Path()) / default
    return output


def artefact_path(name: str) -> Path:
    """A file as named, or a published checkpoint fetched by its name.

    Raises:
        DownloadError: there is neither; or the download failed.
    """
    path = Path(name)
    is_file_name = backend_of(path) not in (None, "pytorch") or len(path.parts) > 1
    if is_file_name or path.exists():
        return path
    from carafe_deploy.models import zoo

    return zoo.fetch(name, progress=sys.stderr.isatty())


def open_artefact(
    name: str,
    device: str | None,
    config: Path | None,
    *,
    mode: Mode | None = None,
    layout: Layout | None = None,
    tf32: bool = False,
    bodies: bool = False,
) -> Runner:
    """Open a file or published model.

    Raises:
        UsageError: an option does not fit the artefact.
        CarafeDeployError: see :func:`carafe_deploy.artefacts.open_runner`.
    """
    from carafe_deploy.artefacts import open_runner

    path = artefact_path(name)
    with options_as_typed():
        return open_runner(
            path,
            device=device,
            config=config,
            mode=None if mode is None else mode.value,
            channels_last=None if layout is None else layout is Layout.channels_last,
            tf32=tf32 or None,
            operators=False if bodies else None,
        )


def batch_size_of(text: str, runner: Runner, paths: Sequence[Path], label: str) -> int:
    """A batch size as typed; ``auto`` is measured on the first image that can be read, and told.

    Args:
        text: see :data:`AutoBatchSizeOption`.
        runner: that is to run them.
        paths: of all images.
        label: of the progress.
    """
    if text != "auto":
        return int(text)
    from carafe_deploy.batch_size import choose_batch_size
    from carafe_deploy.errors import ImageError
    from carafe_deploy.images import load_image

    for path in paths:
        with suppress(ImageError, ValueError):  # the latter of a zero byte in the name
            found = choose_batch_size(runner, load_image(path), len(paths))
            line(Console(stderr=True, highlight=False), f"{label}: {found}", style="dim")
            return found.chosen
    return 1


@contextmanager
def options_as_typed() -> Iterator[None]:
    """Inside, an option that does not fit is named as the command line names it.

    Raises:
        UsageError: in place of an OptionError.
    """
    try:
        yield
    except OptionError as error:
        option, value = error.option, error.value
        if option == "channels_last":
            option, value = "layout", (Layout.channels_last if value else Layout.nchw).value
        if option == "operators":
            option, value = "bodies", True
        typed = f"--{option}" if value is True else f"--{option} {value}"
        raise UsageError(f"{typed} does not fit: {error.reason}") from error


def default_images(
    runner: Runner, count: int, annotations: Path | None = None, image_dir: Path | None = None
) -> Mapping[str, Image]:
    """The first annotated images; else those in the package that show the model's classes, or in
    which it finds something.

    Args:
        runner: of the model.
        count: of images where there are no annotations of its classes.
        annotations: COCO file.
        image_dir: that its file names are relative to; None for its own folder.

    Returns:
        By name.

    Raises:
        AnnotationError: the annotations cannot be read.
        ImageError: an annotated image cannot be read.
    """
    from carafe_deploy.images import load_image
    from carafe_deploy.samples import shapes_image, telling_images

    if annotations is not None:
        from carafe_deploy.coco import load_annotations

        folder = annotations.parent if image_dir is None else image_dir
        entries = load_annotations(annotations)["images"][:_SAMPLES]
        paths = [folder / entry["file_name"] for entry in entries]
        return {str(path): load_image(path) for path in paths}
    if runner.info.classes == ("circle", "square", "triangle"):
        return dict(map(shapes_image, range(1, _SAMPLES + 1)))
    return telling_images(runner, count)
