"""``carafe-deploy export``."""

from __future__ import annotations

import functools
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from carafe_deploy.backends import BACKENDS, backend_of, mistaken
from carafe_deploy.cli.bounds import Bounds
from carafe_deploy.cli.common import (
    Command,
    ConfigOption,
    JsonOption,
    Layout,
    Steps,
    UsageError,
    artefact_path,
    evaluation,
    examples,
    facts,
    gpu_capability,
    hint,
    output_path,
    plural,
    print_json,
    results_console,
    shell,
)
from carafe_deploy.cli.eight_bits import CalibrationOption, ForOption, quantized_export

if TYPE_CHECKING:
    from carafe_deploy.graph.options import ExportOptions
    from carafe_deploy.models.checkpoint import Checkpoint
    from carafe_deploy.models.detector import Detector
    from carafe_deploy.types import ModelInfo, TensorSpec


class Format(StrEnum):
    """What is written."""

    onnx = "onnx"
    torchscript = "torchscript"


class Exporter(StrEnum):
    """Which of PyTorch's two ONNX exporters writes it."""

    dynamo = "dynamo"
    torchscript = "torchscript"


class Precision(StrEnum):
    """Of convolutions and matrix products."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"


_SUFFIXES = {
    Format.onnx: BACKENDS["onnxruntime"].suffixes,
    Format.torchscript: BACKENDS["torchscript"].suffixes,
}
_SHAPE = "Shape"
_MODEL = "Model"


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth file of mmdetection, or the name of a published model "
            "(see carafe-deploy models), which is fetched.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File or folder to write; by default named after the checkpoint, in this folder.",
        ),
    ] = None,
    config: ConfigOption = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="By default what --output ends in, else onnx.")
    ] = None,
    exporter: Annotated[
        Exporter | None,
        typer.Option(help="Of ONNX: dynamo (default), or torchscript for static shapes."),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            "--layout",
            help="Of TorchScript's weights and feature maps: channels-last (default), or nchw. "
            "Inputs are the same either way.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Of convolutions and matrix products; boxes, softmaxes and NMS stay fp32. "
            "ONNX Runtime's CPU has no bfloat16 Conv and cannot run bf16 files. int8 and fp8 need "
            "--calibration; `carafe-deploy quantize` has more settings."
        ),
    ] = Precision.fp32,
    calibration: CalibrationOption = None,
    quantize_for: ForOption = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="One static padded size in pixels, e.g. 832x1344.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    min_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Smallest padded size; by default one multiple of the config's divisor (64).",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Largest padded size; by default the config's, in both orientations.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX",
            help="Batch size or bounds; by default 1 with --size, else 1-8.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    uint8_input: Annotated[
        bool,
        typer.Option(
            "--uint8-input",
            help="Take uint8 [B, H, W, 3] BGR images and normalise inside the graph.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            help="Keep detections with a higher score; by default the config's.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(help="IoU of the box head's NMS; likewise.", rich_help_panel=_MODEL),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(help="Most detections an image; likewise.", rich_help_panel=_MODEL)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write a checkpoint as one ONNX file (default) or a TorchScript file."""
    target_format = _choose_format(file_format, output)
    is_onnx = target_format is Format.onnx
    if exporter is not None and not is_onnx:
        raise UsageError("--exporter chooses between ONNX exporters: drop it or use --format onnx")
    if layout is not None and is_onnx:
        raise UsageError(
            f"--layout {layout.value} is of TorchScript, ONNX is NCHW: drop it or use "
            "--format torchscript"
        )
    quantized = quantized_export(precision.value, calibration, quantize_for, is_onnx)
    bounds = Bounds.parse(size, min_size, max_size, batch)
    _check_kind(checkpoint)
    with Steps() as steps:
        path = artefact_path(checkpoint)
        steps("read checkpoint")
        from carafe_deploy.graph.options import ExportOptions
        from carafe_deploy.models import zoo
        from carafe_deploy.models.checkpoint import load_detector

        detector, loaded = load_detector(path, config)
        batch_range, height, width = bounds.ranges(detector.config)
        options = ExportOptions(
            batch=batch_range,
            height=height,
            width=width,
            precision=precision.value if quantized is None else quantized.base,
            uint8_input=uint8_input,
            score_threshold=score_threshold,
            nms_iou_threshold=nms_iou,
            max_detections=max_detections,
        )
        name = loaded.name if path == Path(checkpoint) else zoo.find(checkpoint).name
        values = None if quantized is None else quantized.values
        target = _target(output, name, target_format, values)
        begun = time.perf_counter()
        chosen = (exporter or Exporter.dynamo) if is_onnx else None
        channels_last = layout is not Layout.nchw
        write = functools.partial(
            _write, detector, loaded, options, name, chosen, channels_last, steps
        )
        info = write(target) if quantized is None else quantized.write(write, target, steps)
        seconds = time.perf_counter() - begun
    result = _result(target, target_format, chosen, info, seconds, loaded.notes)
    if json_output:
        print_json(result)
    else:
        _show(results_console(json_output), result, info, checkpoint, config)


def _check_kind(checkpoint: str) -> None:
    """By the suffix, before anything is read."""
    other = mistaken(checkpoint, "pytorch")
    if other is None:
        return
    further = (
        f", or `carafe-deploy build {checkpoint}` to make an engine of it"
        if backend_of(checkpoint) == "onnxruntime"
        else ""
    )
    raise UsageError(f"{other}, which is exported already: give the .pth checkpoint{further}")


def _choose_format(chosen: Format | None, output: Path | None) -> Format:
    suffix = "" if output is None or output.is_dir() else output.suffix.lower()
    if not suffix:
        return chosen or Format.onnx
    implied = next((entry for entry, known in _SUFFIXES.items() if suffix in known), None)
    if implied is None or chosen not in (None, implied):
        known = [name for names in _SUFFIXES.values() for name in names]
        known = list(_SUFFIXES[chosen]) if chosen else known
        raise UsageError(f"--output is {output}: let its name end in {' or '.join(known)}")
    return implied


def _target(output: Path | None, name: str, file_format: Format, values: str | None) -> Path:
    suffix = _SUFFIXES[file_format][0]
    if values is not None:
        name = f"{name}.{values}"
    target = output_path(output, name + suffix)
    return target if target.suffix else target.with_name(target.name + suffix)


def _write(
    detector: Detector,
    loaded: Checkpoint,
    options: ExportOptions,
    name: str,
    exporter: Exporter | None,
    channels_last: bool,
    steps: Steps,
    target: Path,
) -> ModelInfo:
    if exporter is None:
        from carafe_deploy.graph.torchscript_export import export_torchscript

        return export_torchscript(
            detector,
            target,
            options,
            name=name,
            source=loaded.source,
            channels_last=channels_last,
            progress=steps,
        )
    steps("load exporter")
    from carafe_deploy.graph.onnx_export import export_onnx

    return export_onnx(
        detector,
        target,
        options,
        name=name,
        source=loaded.source,
        exporter=exporter.value,
        progress=steps,
    )


def _result(
    target: Path,
    file_format: Format,
    exporter: Exporter | None,
    info: ModelInfo,
    seconds: float,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in specs]

    return {
        "file": str(target),
        "bytes": target.stat().st_size,
        "format": file_format.value,
        "exporter": None if exporter is None else exporter.value,
        "opset": None if exporter is None else _opset(target),
        "precision": info.precision,
        "model": info.name,
        "architecture": info.architecture,
        "classes": list(info.classes),
        "bounds": {
            "batch": list(info.input.batch),
            "height": list(info.input.height),
            "width": list(info.input.width),
        },
        "inputs": tensors(info.input_specs),
        "outputs": tensors(info.output_specs),
        "source": dict(info.source),
        "seconds": round(seconds, 3),
        "quantized": None if info.quantization is None else len(info.quantization.layers),
        "notes": [*notes, *_precision_notes(info, file_format)],
    }


def _opset(path: Path) -> int:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _precision_notes(info: ModelInfo, file_format: Format) -> list[str]:
    precision = info.precision if info.quantization is None else info.quantization.base
    if file_format is not Format.onnx or precision == "fp32":
        return []
    if precision == "bf16":
        return ["ONNX Runtime's CPU has no bfloat16 Conv: it cannot run this file"]
    return ["ONNX Runtime's CPU computes half-precision convolutions in float32"]


def _quantized(info: ModelInfo) -> list[tuple[str, str]]:
    found = info.quantization
    if found is None:
        return []
    layers, images = plural(len(found.layers), "layer"), plural(found.images, "image")
    return [("quantized", f"{layers} for {found.target}, ranges of {images}")]


def _show(
    console: Console, result: dict[str, Any], info: ModelInfo, checkpoint: str, config: Path | None
) -> None:
    def dimensions(spec: TensorSpec) -> str:
        return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"

    bounds = [
        f"{name} {low}" if low == high else f"{name} {low}–{high}"
        for name, (low, high) in result["bounds"].items()
    ]
    how = [result["format"]]
    if result["opset"] is not None:
        how += [f"opset {result['opset']}", f"{result['exporter']} exporter"]
    console.print()
    facts(
        console,
        [
            ("file", f"{result['file']} ({result['bytes'] / 1e6:.1f} MB)"),
            ("model", f"{info.architecture}, {len(info.classes)} classes, {info.precision}"),
            ("format", ", ".join(how)),
            *_quantized(info),
            ("sizes", ", ".join(bounds)),
            *zip(("inputs", ""), map(dimensions, info.input_specs), strict=True),
            *(
                ("" if index else "outputs", dimensions(spec))
                for index, spec in enumerate(info.output_specs)
            ),
            *(("note", note) for note in result["notes"]),
        ],
    )
    needs_gpu = (info.precision, result["format"]) == ("bf16", "onnx")
    device = ("--device", "cuda") if needs_gpu else ()
    given = () if config is None else ("--config", config)
    file = result["file"]
    hint(
        console,
        *(("on a machine with a GPU:",) if needs_gpu and gpu_capability() is None else ()),
        shell("carafe-deploy", "detect", file, "IMAGES", *device),
        shell("carafe-deploy", "parity", checkpoint, file, *given, *device),
        evaluation(file, *device),
    )


COMMAND = Command(
    "export",
    export,
    examples(
        "carafe-deploy export epoch_12.pth",
        "carafe-deploy export mask_rcnn_r50_fpn_carafe_1x_coco -o mask.onnx --precision fp16",
        "carafe-deploy export epoch_12.pth --config config.py --size 832x1344 --batch 4",
        "carafe-deploy export epoch_12.pth --max-size 1344x1344 --batch 1-16 --uint8-input",
        "carafe-deploy export epoch_12.pth -o detector.ts",
        "carafe-deploy export epoch_12.pth --precision int8 --calibration images/ --for tensorrt",
    ),
)
