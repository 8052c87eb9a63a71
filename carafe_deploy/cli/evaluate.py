"""``carafe-deploy eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.cli.common import (
    ArtefactArgument,
    AutoBatchSizeOption,
    BodiesOption,
    Command,
    ConfigOption,
    DeviceOption,
    JsonOption,
    LayoutOption,
    MixedSizesOption,
    ModeOption,
    Tf32Option,
    batch_size_of,
    examples,
    hint,
    image_progress,
    line,
    open_artefact,
    plural,
    print_json,
    results_console,
    shell,
)

if TYPE_CHECKING:
    from carafe_deploy.evaluate import EvalResult

_KINDS = {"bbox": "box", "segm": "mask"}


def evaluate(
    artefact: ArtefactArgument,
    annotations: Annotated[
        Path,
        typer.Option(
            metavar="FILE.json",
            help="COCO annotations; of a test set without any, results.json is for submission.",
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Folder that the annotations' file names are relative to."
        ),
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on the first so many images only.")
    ] = None,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken",
            help="Leave out images that are missing, unreadable or of another size than annotated.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write to.")
    ] = Path("out/eval"),
    batch_size: AutoBatchSizeOption = "1",
    mixed_sizes: MixedSizesOption = False,
    device: DeviceOption = None,
    config: ConfigOption = None,
    mode: ModeOption = None,
    layout: LayoutOption = None,
    tf32: Tf32Option = False,
    bodies: BodiesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Score an artefact: COCO's twelve numbers for boxes and masks.

    Writes metrics.json (the numbers, and AP by class) and results.json
    (COCO's result format, as for a submission). All images are checked
    before the first one is run.
    """
    from carafe_deploy.coco import category_ids, load_annotations, to_results, write_results
    from carafe_deploy.evaluate import evaluate_runner
    from carafe_deploy.files import atomic_write_text

    opened = open_artefact(
        artefact, device, config, mode=mode, layout=layout, tf32=tf32, bodies=bodies
    )
    with opened as runner:
        content = load_annotations(annotations)
        paths = [images / image["file_name"] for image in content["images"][:limit]]
        size = batch_size_of(batch_size, runner, paths, "eval")
        ids = category_ids(content, runner.info.classes)
        with image_progress("eval") as progress:
            result, found = evaluate_runner(
                runner,
                annotations,
                images,
                limit=limit,
                batch_size=size,
                mixed_sizes=mixed_sizes,
                skip_broken=skip_broken,
                progress=progress,
            )
    metrics = {
        "artefact": artefact,
        "annotations": str(annotations),
        "implementation": runner.implementations[0],
        **result.to_dict(),
    }
    atomic_write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_results(
        output / "results.json",
        [row for key, detections in found.items() for row in to_results(key, detections, ids)],
    )
    if json_output:
        print_json(metrics)
    else:
        console = results_console(json_output)
        _show(console, result, output)
        if by := runner.implementations[0]:
            line(console, f"operators computed by {by}")
        if result.skipped or not result.objects:
            return  # parity could not compare AP on these
        data = ("--annotations", annotations, "--image-dir", images)
        hint(console, shell("carafe-deploy", "parity", "CHECKPOINT.pth", artefact, *data))


def _show(console: Console, result: EvalResult, output: Path) -> None:
    if result.objects:
        console.print(_table(result))
    line(
        console,
        f"\n{plural(result.detections, 'detection')} in {plural(result.images, 'image')}; "
        f"metrics.json and results.json are in {output}/",
    )
    for note in result.notes:
        line(console, f"note: {note}")
    if result.ignored_categories:
        line(console, f"note: not a class of the detector: {', '.join(result.ignored_categories)}")
    if result.skipped:
        line(console, f"note: {plural(len(result.skipped), 'image')} left out:")
        for reason in result.skipped:
            line(console, f"  {reason}")


def _table(result: EvalResult) -> Table:
    def cells(values: list[float | None]) -> list[str]:
        return ["–" if value is None else f"{value:.4f}" for value in values]

    kinds = list(result.numbers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for kind in kinds:
        table.add_column(_KINDS[kind], justify="right", no_wrap=True)
    for name in result.numbers[kinds[0]]:
        style = "bold" if name == "AP" else None
        table.add_row(name, *cells([result.numbers[kind][name] for kind in kinds]), style=style)
    names = list(result.per_class[kinds[0]])
    if 1 < len(names) <= 10:
        table.add_section()
        for name in names:
            values = cells([result.per_class[kind][name] for kind in kinds])
            table.add_row(f"AP {name}", *values, style="dim")
    return table


COMMAND = Command(
    "eval",
    evaluate,
    examples(
        "carafe-deploy eval detector.onnx --annotations instances_val2017.json --images val2017",
        "carafe-deploy eval epoch_12.pth --config config.py --annotations val.json --images val "
        "--limit 500",
    ),
)
