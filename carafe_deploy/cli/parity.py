"""``carafe-deploy parity``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carafe_deploy.backends import BACKENDS, backend_of
from carafe_deploy.cli.common import (
    AnnotationsOption,
    BatchSizeOption,
    Command,
    ConfigOption,
    DeviceOption,
    ImageDirOption,
    JsonOption,
    LimitOption,
    MixedSizesOption,
    Steps,
    UsageError,
    artefact_path,
    default_images,
    evaluation,
    examples,
    hint,
    line,
    options_as_typed,
    results_console,
    shell,
)
from carafe_deploy.cli.parity_several import artefacts_among, compare_several
from carafe_deploy.cli.parity_tables import show_report, show_walk

if TYPE_CHECKING:
    from rich.console import Console

    from carafe_deploy.images import Image
    from carafe_deploy.parity import ParityReport
    from carafe_deploy.runners.base import Runner

#: Images used when none are named: large detectors take seconds for one on a CPU.
_DEFAULTS = 4


def parity(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="What is right: a .pth checkpoint, a published model's name, .ts, .onnx, .engine.",
        ),
    ],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="What is checked.")],
    # So that --images photos/*.jpg works when a shell has expanded it.
    more_images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MORE",
            help="More candidates, each of which is a row; or images, the same as --images.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="IMAGES",
            help="File, folder or glob, repeatable; by default the first annotated images, "
            "else images of the package in which REFERENCE finds something.",
        ),
    ] = None,
    annotations: AnnotationsOption = None,
    image_dir: ImageDirOption = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Some of operators, stages, detections, ap; by default all that there is data for "
            "and both artefacts can be looked into for.",
        ),
    ] = None,
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            help="Walk through the intermediate tensors alone: a histogram of each one's errors, "
            "and where the difference first grows.",
        ),
    ] = False,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect",
            help="Name the first tensor outside its tolerance, and what lies between it and those "
            "before, in one line.",
        ),
    ] = False,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 1,
    mixed_sizes: MixedSizesOption = False,
    device: DeviceOption = None,
    config: ConfigOption = None,
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32",
            help="Let the candidate's fp32 round to 10 bits of mantissa inside convolutions and "
            "matrix products (GPU), and hold it to the tolerances of that; the reference stays "
            "exact.",
        ),
    ] = False,
    bodies: Annotated[
        bool,
        typer.Option(
            "--bodies",
            help="Run the candidate, an ONNX file, by the function bodies in it; the reference "
            "runs as usual, so a file can be compared with itself.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write the report.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Compare two artefacts of one model, level by level.

    Levels are operators, stages (intermediate tensors), detections, and AP
    on a COCO set. A checkpoint is run in PyTorch with the precision,
    thresholds and sizes of the other artefact. Several candidates are compared
    one after the other; one that breaks is a failed row. The exit status is 1
    if anything differs by more than its tolerance, fails, or had nothing to
    compare: give images in which the detector finds something.
    """
    from carafe_deploy.files import atomic_write_text
    from carafe_deploy.images import find_images, load_image
    from carafe_deploy.parity import StageWalk, run_parity, walk_stages

    walk_only = stages or bisect
    if walk_only and levels is not None:
        raise UsageError(
            f"{'--stages' if stages else '--bisect'} looks at intermediate tensors alone, so "
            f"--levels {levels} contradicts it: drop one of them"
        )
    chosen = None if levels is None else [name.strip() for name in levels.split(",")]
    settings: dict[str, Any] = {
        "levels": chosen,
        "batch_size": batch_size,
        "mixed_sizes": mixed_sizes,
        "annotations": annotations,
        "image_dir": image_dir,
        "limit": limit,
    }
    others = artefacts_among(more_images or ())
    named = [*(images or ()), *(word for word in more_images or () if word not in others)]

    def pictures(first: Runner) -> Mapping[str, Image]:
        if named:
            return {str(path): load_image(path) for path in find_images(named)[:limit]}
        if not walk_only and chosen is not None and not {"stages", "detections"} & set(chosen):
            return {}
        given = default_images(first, _DEFAULTS, annotations, image_dir)
        return dict(list(given.items())[:limit])

    if others:
        if walk_only:
            raise UsageError(f"--{'stages' if stages else 'bisect'} takes one candidate: name one")
        with Steps() as steps:

            def compare(name: str) -> ParityReport:
                steps(name)
                with ExitStack() as stack:
                    first, second = open_pair(
                        reference, name, device, config, stack, tf32=tf32, bodies=bodies
                    )
                    return run_parity(
                        first,
                        second,
                        images=pictures(first),
                        progress=lambda level, done, total: steps.update(f"{level} {done}/{total}"),
                        **settings,
                    )

            compare_several(
                [candidate, *others],
                compare,
                reference=reference,
                output=output,
                json_output=json_output,
            )
        return
    console = results_console(json_output)
    with ExitStack() as stack, Steps() as steps:
        steps("open")
        first, second = open_pair(
            reference, candidate, device, config, stack, tf32=tf32, bodies=bodies
        )
        steps("read images" if named else "choose images")
        loaded = pictures(first)
        current = ""

        def progress(level: str, done: int, total: int) -> None:
            nonlocal current
            if level != current:
                steps(level)
                current = level
            steps.update(f"{done}/{total}")

        if walk_only:
            found: ParityReport | StageWalk = walk_stages(
                first,
                second,
                loaded,
                batch_size=batch_size,
                mixed_sizes=mixed_sizes,
                progress=lambda done, total: progress("stages", done, total),
            )
        else:
            found = run_parity(first, second, images=loaded, progress=progress, **settings)
    text = found.to_json() + "\n"
    if output is not None:
        atomic_write_text(output, text)
    if json_output:
        typer.echo(text, nl=False)
    elif isinstance(found, StageWalk):
        if stages:
            show_walk(console, found)
        else:
            line(console, found.verdict())
    else:
        show_report(console, found)
        _show_next(console, found, reference, candidate)
    if not found.passed:
        raise typer.Exit(1)


def open_pair(
    reference: str,
    candidate: str,
    device: str | None,
    config: Path | None,
    stack: ExitStack,
    *,
    tf32: bool = False,
    bodies: bool = False,
) -> tuple[Runner, Runner]:
    """Open two artefacts; a checkpoint takes precision and settings from the other one.

    With ``tf32`` the candidate computes float32 with it, with ``bodies`` it runs by its function
    bodies. An engine takes its GPU whatever the
    device of the other.

    Raises:
        UsageError: an option fits neither artefact.
        CarafeDeployError: see :func:`carafe_deploy.artefacts.open_runner`.
    """
    from carafe_deploy.artefacts import open_runner

    paths = artefact_path(reference), artefact_path(candidate)
    backends = [BACKENDS.get(backend_of(path) or "") for path in paths]
    is_checkpoint = [backend is not None and backend.is_model for backend in backends]
    runners: list[Runner | None] = [None, None]
    # An exported file first: it says what a checkpoint is to be run with.
    for index in sorted((0, 1), key=is_checkpoint.__getitem__):
        other = runners[1 - index]
        options = None
        if is_checkpoint[index] and other is not None:
            from carafe_deploy.graph.options import ExportOptions

            options = ExportOptions.like(other.info)
        backend = backends[index]
        on_gpu_only = backend is not None and backend.needs_gpu
        with options_as_typed():
            opened = open_runner(
                paths[index],
                device=None if device == "cpu" and on_gpu_only else device,
                # Where there is no checkpoint, an artefact says that it takes none.
                config=config if is_checkpoint[index] or not any(is_checkpoint) else None,
                options=options,
                tf32=(tf32 and index == 1) or None,
                operators=False if bodies and index == 1 else None,
            )
        runners[index] = stack.enter_context(opened)
    first, second = runners
    assert first is not None
    assert second is not None
    if bodies and paths[0] == paths[1] and first.implementations == second.implementations:
        raise UsageError(
            f"--bodies compares {reference} by our kernels with itself by its function bodies, and "
            "the kernels cannot be had here: name another reference"
        )
    return first, second


def _show_next(console: Console, report: ParityReport, reference: str, candidate: str) -> None:
    if report.passed:
        hint(
            console,
            shell("carafe-deploy", "detect", candidate, "IMAGES"),
            evaluation(candidate),
        )
    elif report.state == "nothing compared":
        hint(console, shell("carafe-deploy", "parity", reference, candidate) + " --images IMAGES")
    elif any(row.level == "stages" for row in report.failures):
        hint(console, shell("carafe-deploy", "parity", reference, candidate, "--bisect"))


COMMAND = Command(
    "parity",
    parity,
    examples(
        "carafe-deploy parity epoch_12.pth detector.onnx",
        "carafe-deploy parity epoch_12.pth detector.onnx detector.ts detector.engine",
        "carafe-deploy parity detector.onnx detector.ts --images photos/*.jpg --levels detections",
        "carafe-deploy parity detector.onnx stages.engine --stages -o walk.json",
        "carafe-deploy parity fp32.onnx fp16.onnx --bisect",
        "carafe-deploy parity detector.onnx detector.onnx --bodies",
        "carafe-deploy parity epoch_12.pth detector.onnx --annotations val.json --image-dir val "
        "--limit 200 -o parity.json",
    ),
)
