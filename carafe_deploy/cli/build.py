"""``carafe-deploy build``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from carafe_deploy.backends import BACKENDS
from carafe_deploy.cli.common import (
    Command,
    JsonOption,
    UsageError,
    examples,
    facts,
    gpu_capability,
    hint,
    output_path,
    print_json,
    results_console,
    shell,
)

if TYPE_CHECKING:
    from carafe_deploy.engine.profiles import Size
    from carafe_deploy.engine.sidecar import Sidecar

_MIB = 1 << 20
_SUFFIXES = BACKENDS["tensorrt"].suffixes
_SHAPE = "Shape"
_BUILDER = "Builder"


class FlavourName(StrEnum):
    """Which of NVIDIA's packages builds it, and runs it later."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt_rtx"


def build(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="A file written by carafe-deploy export.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.engine",
            help="Engine to write; by default the model's name, in this folder. "
            "FILE.engine.json, its sidecar, comes with it.",
        ),
    ] = None,
    flavour: Annotated[
        FlavourName | None,
        typer.Option(help="By default tensorrt where it is installed, else tensorrt_rtx."),
    ] = None,
    smallest: Annotated[
        str | None,
        typer.Option(
            "--min",
            metavar="BxHxW",
            help="Smallest batch and padded size; by default the model's.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    usual: Annotated[
        str | None,
        typer.Option(
            "--opt",
            metavar="BxHxW",
            help="Usual one, which is to be fastest; by default one image as in training.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    largest: Annotated[
        str | None,
        typer.Option(
            "--max",
            metavar="BxHxW",
            help="Largest one; by default the model's. Memory is set aside for it.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            metavar="A,B",
            help="GPUs to build for ahead of time, e.g. 8.6,8.9,12.0; by default tensorrt_rtx "
            "builds for all from 8.0 on that it supports. tensorrt builds for the GPU at hand.",
            rich_help_panel=_BUILDER,
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Most scratch memory of a layer; by default TensorRT decides.",
            rich_help_panel=_BUILDER,
        ),
    ] = None,
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32",
            help="Let fp32 models round to 10 bits of mantissa inside convolutions; faster.",
            rich_help_panel=_BUILDER,
        ),
    ] = False,
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            help="Make intermediate tensors outputs, so that parity can compare them; slower.",
            rich_help_panel=_BUILDER,
        ),
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of tensorrt: what was measured before, read and written.",
            rich_help_panel=_BUILDER,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write everything that TensorRT says.", rich_help_panel=_BUILDER
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Build a TensorRT engine of an exported ONNX file.

    tensorrt_rtx needs no GPU for it. The engine runs under the version of
    TensorRT that built it only, and with the same plugin library; its
    sidecar says which, and carries what the model's metadata says.
    """
    if model.is_dir():
        raise UsageError(f"{model} is a folder: name an .onnx file")
    target = _target(output, model)
    sizes = [
        None if text is None else parse_shape(text, option)
        for text, option in ((smallest, "--min"), (usual, "--opt"), (largest, "--max"))
    ]
    capabilities = () if compute_capability is None else parse_capabilities(compute_capability)
    from carafe_deploy.engine.build import BuildOptions, build_engine

    options = BuildOptions(
        flavour=None if flavour is None else flavour.value,
        min=sizes[0],
        opt=sizes[1],
        max=sizes[2],
        workspace=None if workspace is None else workspace * _MIB,
        compute_capabilities=capabilities,
        tf32=tf32,
        stages=stages,
        timing_cache=timing_cache,
        log=log,
    )
    with _bar() as progress:
        sidecar = build_engine(model, target, options, progress=progress)
    result = _result(target, sidecar)
    if json_output:
        print_json(result)
    else:
        _show(results_console(json_output), result, model, runs_here(sidecar, gpu_capability()))


def parse_shape(text: str, option: str) -> Size:
    """``"4x832x1344"`` as (batch, height, width).

    Raises:
        UsageError: it is something else; the message names `option`.
    """
    match = re.fullmatch(r"(\d+)[xX×](\d+)[xX×](\d+)", text.strip())
    if match is None:
        raise UsageError(
            f"{option} is {text!r}: give batch x height x width in pixels, e.g. 1x832x1344"
        )
    return int(match[1]), int(match[2]), int(match[3])


def parse_capabilities(text: str) -> tuple[str, ...]:
    """``"8.6,12.0"`` as its parts, each once.

    Raises:
        UsageError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+\.\d", part) for part in parts):
        raise UsageError(
            f"--compute-capability is {text!r}: give numbers with one decimal, e.g. 8.6,12.0"
        )
    return tuple(dict.fromkeys(parts))


def _target(output: Path | None, model: Path) -> Path:
    target = output_path(output, model.with_suffix(_SUFFIXES[0]).name)
    if not target.suffix:
        return target.with_name(target.name + _SUFFIXES[0])
    if target.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--output is {output}: let its name end in {' or '.join(_SUFFIXES)}")
    return target


@contextmanager
def _bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr, with the phase; terminals only."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[phase]}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("build", total=1.0, phase="read model")
        yield lambda fraction, phase: bar.update(task, completed=fraction, phase=phase)


def _result(target: Path, sidecar: Sidecar) -> dict[str, Any]:
    model, (profile, *_) = sidecar.model, sidecar.profiles
    return {
        "file": str(target),
        "sidecar": f"{target}.json",
        "bytes": sidecar.bytes,
        "flavour": sidecar.flavour,
        "version": sidecar.version,
        "compute_capabilities": list(sidecar.compute_capabilities),
        "profile": asdict(profile),
        "plugin_layers": sidecar.layers.get("PLUGIN_V3", 0),
        "layers": sum(sidecar.layers.values()),
        "stages": sidecar.stages,
        "model": model.name,
        "architecture": model.architecture,
        "precision": model.precision,
        "classes": list(model.classes),
        "source": dict(sidecar.source),
        "seconds": sidecar.build["seconds"],
        "peak_memory_bytes": sidecar.build["peak_memory_bytes"],
    }


def runs_here(sidecar: Sidecar, capability: tuple[int, int] | None) -> bool:
    """The engine was built for the GPU of this machine, and what built it supports that.

    Args:
        sidecar: of the engine.
        capability: of the GPU; None for none.
    """
    from carafe_deploy.engine.flavours import find_flavour

    if capability is None or not sidecar.runs_on(capability):
        return False
    flavour = find_flavour(sidecar.flavour)
    return not flavour.ahead_of_time or ".".join(map(str, capability)) in flavour.targets


def _show(console: Console, result: dict[str, Any], model: Path, runnable: bool) -> None:
    sizes = [f"{name} {'×'.join(map(str, size))}" for name, size in result["profile"].items()]
    facts(
        console,
        [
            ("file", f"{result['file']} ({result['bytes'] / 1e6:.1f} MB)"),
            ("sidecar", result["sidecar"]),
            (
                "model",
                f"{result['architecture']}, {len(result['classes'])} classes, "
                f"{result['precision']}",
            ),
            ("built by", f"{result['flavour']} {result['version']}"),
            ("for GPUs", ", ".join(result["compute_capabilities"])),
            ("sizes", ", ".join(sizes)),
            ("layers", f"{result['layers']}, {result['plugin_layers']} of them plugins"),
            (
                "build",
                f"{result['seconds']:.1f} s, {result['peak_memory_bytes'] / 1e9:.1f} GB at most",
            ),
        ],
    )
    file = result["file"]
    hint(
        console,
        shell("carafe-deploy", "inspect", file),
        *(() if runnable else ("on a machine with a supported GPU:",)),
        shell("carafe-deploy", "detect", file, "IMAGES"),
        shell("carafe-deploy", "parity", model, file),
    )


COMMAND = Command(
    "build",
    build,
    examples(
        "carafe-deploy build detector.onnx",
        "carafe-deploy build detector.onnx --min 1x320x320 --opt 1x832x1344 --max 4x1344x1344",
        "carafe-deploy build detector.onnx --compute-capability 8.6,8.9,12.0 --log build.log",
        "carafe-deploy build detector.onnx -o stages.engine --stages",
    ),
)
