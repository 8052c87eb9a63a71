"""``carafe-deploy quantize``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.cli.common import (
    AnnotationsOption,
    Command,
    ImageDirOption,
    JsonOption,
    LimitOption,
    Steps,
    UsageError,
    evaluation,
    examples,
    facts,
    hint,
    line,
    output_path,
    plural,
    print_json,
    results_console,
    shell,
)
from carafe_deploy.cli.eight_bits import CalibrationOption, ForOption, Values, default_target
from carafe_deploy.errors import ArtefactError

if TYPE_CHECKING:
    from carafe_deploy.quantize.job import Quantizer, Trial
    from carafe_deploy.quantize.sensitivity import Sensitivity
    from carafe_deploy.types import ModelInfo

_RANGES, _FLOAT = "Ranges", "Layers kept in float"

#: Of AP, and of the detections, what --keep-float auto may lose unless told otherwise.
_MOST_AP, _MOST_CHANGE = 0.002, 0.15


class Method(StrEnum):
    """Of choosing a range."""

    minmax = "minmax"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class Measure(StrEnum):
    """Of what a layer suffers."""

    error = "error"
    detections = "detections"


def quantize(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx",
            help="A float file of carafe-deploy export: fp32, or fp16.",
        ),
    ],
    calibration: CalibrationOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.onnx",
            help="By default MODEL.int8.onnx in this folder; with --sensitivity alone, none.",
        ),
    ] = None,
    target: ForOption = None,
    precision: Annotated[
        Values,
        typer.Option(help="int8, or fp8 (E4M3) for TensorRT on GPUs of capability 8.9 and newer."),
    ] = Values.int8,
    limit: LimitOption = None,
    method: Annotated[
        Method,
        typer.Option(
            help="minmax keeps all values seen; percentile most of them; entropy and mse what "
            "costs least.",
            rich_help_panel=_RANGES,
        ),
    ] = Method.minmax,
    percentile: Annotated[
        float | None,
        typer.Option(
            min=50,
            max=100,
            help="Percent of values that --method percentile keeps; by default 99.99.",
            rich_help_panel=_RANGES,
        ),
    ] = None,
    ranges: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Ranges to read, or to write where there are none; by default a file beside the "
            "model that is named after images and settings.",
            rich_help_panel=_RANGES,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of ONNX Runtime; by default it chooses.", rich_help_panel=_RANGES
        ),
    ] = None,
    sensitivity: Annotated[
        Measure | None,
        typer.Option(
            help="Print how much each layer suffers: error of its own output (one pass), or "
            "detections that change with it alone quantized (a run for each layer).",
            rich_help_panel=_FLOAT,
        ),
    ] = None,
    keep_float: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Keep the N layers that suffer most in float; auto: as many as --max-loss needs.",
            rich_help_panel=_FLOAT,
        ),
    ] = None,
    float_layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Keep this layer in float, repeatable; --sensitivity prints the names.",
            rich_help_panel=_FLOAT,
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --keep-float auto: largest loss of AP (default 0.002) where there are "
            "--annotations, else largest share of the detections that may change (default 0.15).",
            rich_help_panel=_FLOAT,
        ),
    ] = None,
    annotations: AnnotationsOption = None,
    image_dir: ImageDirOption = None,
    sensitivity_images: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Calibration images on which layers are judged.",
            rich_help_panel=_FLOAT,
        ),
    ] = 8,
    json_output: JsonOption = False,
) -> None:
    """Make an ONNX file whose convolutions and linear layers compute in 8 bits.

    Ranges of activations are found from images, and kept in a file, so that a
    second run is quick. Weights are quantized by output channel. Check the
    result with parity and eval: what 8 bits cost depends on the detector.
    """
    from carafe_deploy.images import find_images
    from carafe_deploy.quantize.calibration import Calibration
    from carafe_deploy.quantize.job import Quantizer
    from carafe_deploy.quantize.ranges import PERCENTILE

    if not calibration:
        raise UsageError("ranges come from images: give --calibration FOLDER")
    name = default_target(target, precision.value)
    count = _count(keep_float)
    if percentile is not None and method is not Method.percentile:
        raise UsageError(f"--percentile {percentile:g} belongs to --method percentile: add that")
    if max_loss is not None and keep_float != "auto":
        raise UsageError(f"--max-loss {max_loss:g} belongs to --keep-float auto: add that")
    if float_layer and keep_float:
        raise UsageError("--float-layer and --keep-float both choose: drop one of them")
    if annotations is not None and keep_float != "auto":
        raise UsageError(f"--annotations {annotations} belongs to --keep-float auto: add that")
    if image_dir is not None and annotations is None:
        raise UsageError(f"--image-dir {image_dir} belongs to --annotations: add those")
    files = find_images(calibration)[:limit]
    console = results_console(json_output)
    written = _target(model, output, precision.value)
    wants_file = output is not None or not sensitivity or bool(keep_float or float_layer)
    with Steps() as steps:
        steps("read the model")
        notes: list[str] = []
        quantizer = Quantizer(
            model,
            Calibration(files, method.value, percentile or PERCENTILE, ranges, threads),
            target=name,
            values=precision.value,
            progress=lambda done, total: steps.update(f"{done}/{total} images"),
            note=notes.append,
        )
        kept, trials = tuple(float_layer or ()), list[Any]()
        # All that can be refused, before what takes long.
        quantizer.check(written, kept)
        if count is not None and count >= len(quantizer.layers):
            raise UsageError(
                f"--keep-float is {keep_float} of {len(quantizer.layers)} layers: at most "
                f"{len(quantizer.layers) - 1} can stay in float"
            )
        goal = None
        if keep_float == "auto":
            steps("run the float model")
            goal = _goal(quantizer, annotations, image_dir, sensitivity_images, max_loss)
        steps("calibrate")
        _ = quantizer.ranges
        order: Sequence[Sensitivity] = ()
        if sensitivity or keep_float:
            measure = (sensitivity or Measure.error).value
            steps(f"sensitivity by {measure}")
            order = quantizer.sensitivity(
                measure, sensitivity_images, lambda done, total: steps.update(f"{done}/{total}")
            )
        if count is not None:
            kept = tuple(row.layer for row in order[:count])
        elif goal is not None:
            steps("choose layers to keep in float")

            def tried(trial: Trial) -> None:
                trials.append(trial)
                steps.update(_trial(len(trial.kept_float), trial.loss, goal))

            kept = quantizer.keep_float(order, goal.loss, goal.most, tried).kept_float
        info = None
        if wants_file:
            steps("write")
            info = quantizer.write(written, kept)
    result = _result(quantizer, info, written, model, order, trials, notes, goal)
    if json_output:
        print_json(result)
        return
    if sensitivity:
        _show_order(console, order, kept, sensitivity)
    if info is not None:
        _show(console, result, info, name, goal)


def _count(keep_float: str | None) -> int | None:
    if keep_float in (None, "auto"):
        return None
    if not keep_float.isdecimal() or len(keep_float) > 9:
        raise UsageError(f"--keep-float is {keep_float!r}: give a number of layers, or auto")
    return int(keep_float)


def _target(model: Path, output: Path | None, values: str) -> Path:
    target = output_path(output, f"{model.stem}.{values}.onnx")
    if target.suffix.lower() != ".onnx":
        raise UsageError(f"--output is {output}: let its name end in .onnx")
    return target


@dataclass(frozen=True)
class _Goal:
    """What --keep-float auto is after.

    Attributes:
        loss: of keeping some layers in float.
        most: that is wanted.
        what: is lost, for people.
    """

    loss: Callable[[Sequence[str]], float]
    most: float
    what: str


def _goal(
    quantizer: Quantizer,
    annotations: Path | None,
    image_dir: Path | None,
    images: int,
    most: float | None,
) -> _Goal:
    """Of AP, the worse of boxes and masks, where it can be measured; else of the detections."""
    if annotations is None:
        change = quantizer.change(images)
        return _Goal(change, _MOST_CHANGE if most is None else most, "change of detections")
    loss = _ap_loss(quantizer, annotations, image_dir)
    return _Goal(loss, _MOST_AP if most is None else most, "loss of AP")


def _ap_loss(
    quantizer: Quantizer, annotations: Path, image_dir: Path | None
) -> Callable[[Sequence[str]], float]:
    from carafe_deploy.evaluate import evaluate_runner

    folder = annotations.parent if image_dir is None else image_dir

    def ap(runner: Any) -> list[float]:
        result, _ = evaluate_runner(runner, annotations, folder)
        found = [numbers["AP"] for numbers in result.numbers.values()]
        if None in found:
            raise ArtefactError(
                f"AP cannot be measured by {annotations}, which annotates no object that counts: "
                "give others"
            )
        return [float(number) for number in found if number is not None]

    with quantizer.opened_float() as runner:
        reference = ap(runner)

    def loss(float_layers: Sequence[str]) -> float:
        with quantizer.opened(float_layers) as runner:
            return max(ours - theirs for ours, theirs in zip(reference, ap(runner), strict=True))

    return loss


def _result(
    quantizer: Quantizer,
    info: ModelInfo | None,
    written: Path,
    model: Path,
    order: Sequence[Sensitivity],
    trials: Sequence[Trial],
    notes: Sequence[str],
    goal: _Goal | None,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "source": str(model),
        "layers": [layer.name for layer in quantizer.layers],
        "sensitivity": [{"layer": row.layer, "harm": row.harm} for row in order],
        "goal": None if goal is None else {"what": goal.what, "most": goal.most},
        "trials": [{"kept_float": list(one.kept_float), "loss": one.loss} for one in trials],
        "images": quantizer.ranges.images,
        "method": quantizer.ranges.method,
        "notes": list(notes),
        "file": None,
    }
    if info is None or info.quantization is None:
        return result
    return result | {
        "file": str(written),
        "bytes": written.stat().st_size,
        "source_bytes": model.stat().st_size,
        "precision": info.precision,
        "target": info.quantization.target,
        "quantized": list(info.quantization.layers),
        "kept_float": list(info.quantization.kept_float),
    }


_MEASURED = {Measure.error: "error of its output", Measure.detections: "change of detections"}


def _show_order(
    console: Console, order: Sequence[Sensitivity], kept: Sequence[str], measure: Measure
) -> None:
    table = Table("", "layer", _MEASURED[measure], *(("stays in",) if kept else ()))
    for number, row in enumerate(order, 1):
        stays = ("float" if row.layer in kept else "",) if kept else ()
        table.add_row(str(number), row.layer, f"{row.harm:.2%}", *stays)
    console.print(table)


def _trial(kept: int, loss: float, goal: _Goal) -> str:
    return f"{kept} in float: {goal.what} {loss:.4f}, wanted {goal.most:g}"


def _show(
    console: Console, result: dict[str, Any], info: ModelInfo, target: str, goal: _Goal | None
) -> None:
    kept = result["kept_float"]
    share = result["bytes"] / result["source_bytes"]
    console.print()
    facts(
        console,
        [
            ("file", f"{result['file']} ({result['bytes'] / 1e6:.1f} MB, {share:.0%})"),
            (
                "quantized",
                f"{plural(len(result['quantized']), 'layer')} to {info.precision} for {target}, "
                f"ranges by {result['method']} of {plural(result['images'], 'image')}",
            ),
            ("in float", ", ".join(kept) or "everything else"),
            *(
                (
                    "" if index else "tried",
                    _trial(len(trial["kept_float"]), trial["loss"], goal),
                )
                for index, trial in enumerate(result["trials"])
                if goal is not None
            ),
            *(("note", note) for note in result["notes"]),
        ],
    )
    file, source = result["file"], result["source"]
    lines = [shell("carafe-deploy", "parity", source, file), evaluation(file)]
    if target == "tensorrt":
        lines.append(shell("carafe-deploy", "build", file))
    line(console, "")
    hint(console, *lines)


COMMAND = Command(
    "quantize",
    quantize,
    examples(
        "carafe-deploy quantize detector.onnx --calibration images/",
        "carafe-deploy quantize detector.onnx --calibration images/ --for tensorrt -o trt.onnx",
        "carafe-deploy quantize detector.onnx --calibration images/ --sensitivity detections",
        "carafe-deploy quantize detector.onnx --calibration images/ --keep-float auto "
        "--annotations val.json --image-dir val",
    ),
)
