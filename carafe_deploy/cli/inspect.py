"""``carafe-deploy inspect``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.backends import BACKENDS, backend_of, load, suffixes, title_of
from carafe_deploy.cli.common import (
    Command,
    ConfigOption,
    JsonOption,
    UsageError,
    examples,
    facts,
    hint,
    line,
    plural,
    print_json,
    results_console,
    shell,
)

#: Attributes that every custom node has alike.
_ALIKE = ("plugin_namespace", "plugin_version")


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An .onnx, .engine, .ts or .pth file.")
    ],
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show what a file is: inputs, outputs, layers, plugins, metadata.

    Of an engine, the sidecar tells what it was built from and for; its
    fused layers can be read only where TensorRT and a GPU it was built for
    are at hand. Of a checkpoint, its architecture, classes and settings.
    """
    name = backend_of(file)
    takes_config = name is not None and "config" in BACKENDS[name].options
    if config is not None and not takes_config:
        raise UsageError(f"--config {config} belongs to a .pth checkpoint, not to {file}: drop it")
    if name is None:
        raise UsageError(
            f"{file} has the suffix {file.suffix!r}: give one of {', '.join(suffixes())}"
        )
    result = load(BACKENDS[name].describe)(file, *(config,) * takes_config)
    if json_output:
        print_json(result)
    else:
        _show(results_console(json_output), result)


def _show(console: Console, result: dict[str, Any]) -> None:
    if result["kind"] == "checkpoint":
        facts(console, _checkpoint_facts(result))
        hint(console, shell("carafe-deploy", "export", result["file"]))
        return
    facts(console, [*_file_facts(result), *_tensor_facts(result), *_model_facts(result["model"])])
    if result.get("operators"):
        counts = Counter(call["name"] for call in result["operators"])
        _counts(console, plural(counts.total(), "custom operator"), counts)
    if "layers" in result:
        total = sum(result["layers"].values())
        _counts(console, f"{plural(total, 'layer')} by type", result["layers"])
        _plugins(console, result["plugins"])
    if result["kind"] == "engine":
        _details(console, result)


def _file_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("file", f"{result['file']} ({result['bytes'] / 1e6:.1f} MB)")]
    if result["kind"] in BACKENDS:
        return [*rows, ("format", title_of(result["kind"]))]
    if result["kind"] == "onnx":
        opsets = ", ".join(f"{domain} {version}" for domain, version in result["opsets"].items())
        bodies = plural(result["functions"], "function")
        return [*rows, ("format", f"ONNX, IR {result['ir_version']}, opset {opsets}, {bodies}")]
    profiles = [
        ", ".join(f"{name} {'×'.join(map(str, size))}" for name, size in profile.items())
        for profile in result["profiles"]
    ]
    library = result["plugin_library"]
    return [
        *rows,
        ("built by", f"{result['flavour']} {result['version']}"),
        ("for GPUs", ", ".join(result["compute_capabilities"])),
        ("from", f"{result['source']['file']}, SHA-256 {result['source']['sha256'][:12]}…"),
        ("plugins", "none" if library is None else f"{library['file']} of {library['version']}"),
        *(("sizes", text) for text in profiles),
        ("stages", "outputs, too" if result["stages"] else "inside"),
    ]


def _checkpoint_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    config = result["config"]
    box, mask, data = config["box"], config["mask"], config["preprocessing"]
    long, short = data["scale"]
    return [
        ("file", f"{result['file']} ({result['bytes'] / 1e6:.1f} MB)"),
        ("format", f"checkpoint of mmdetection, SHA-256 {result['sha256'][:12]}…"),
        ("model", f"{result['name']}: {result['architecture']}"),
        (
            "network",
            f"ResNet-{config['backbone']['depth']}, FPN_CARAFE with "
            f"{config['neck']['out_channels']} channels, {result['parameters'] / 1e6:.1f} M "
            "parameters",
        ),
        ("classes", f"{len(result['classes'])}: {', '.join(result['classes'])}"),
        (
            "images",
            f"resized to within {long}×{short}, padded to multiples of {data['pad_size_divisor']}",
        ),
        (
            "keeps",
            f"score > {box['score_threshold']:g}, NMS IoU {box['nms_iou_threshold']:g}, at most "
            f"{box['max_detections']}"
            + ("" if mask is None else f", masks at {mask['mask_threshold']:g}"),
        ),
        *(("note", note) for note in result["notes"]),
    ]


def _tensor_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "" if index else kind,
            f"{tensor['name']} {tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]",
        )
        for kind in ("inputs", "outputs")
        for index, tensor in enumerate(result[kind])
    ]


def _model_facts(model: dict[str, Any] | None) -> list[tuple[str, str]]:
    if model is None:
        return [("model", "no carafe_deploy metadata: exported by something else")]
    bounds = [
        f"{name} {low}" if low == high else f"{name} {low}–{high}"
        for name in ("batch", "height", "width")
        for low, high in [model["input"][name]]
    ]
    return [
        ("model", f"{model['name']}: {model['architecture']}, {model['precision']}"),
        ("classes", f"{len(model['classes'])}: {', '.join(model['classes'])}"),
        ("accepts", ", ".join(bounds)),
        (
            "keeps",
            f"score > {model['score_threshold']:g}, NMS IoU {model['nms_iou_threshold']:g}, "
            f"at most {model['max_detections']}",
        ),
        *_quantization_facts(model["precision"], model.get("quantization")),
    ]


def _quantization_facts(precision: str, found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    kept, method = found["kept_float"], found["method"]
    if found["percentile"] is not None:
        method += f" {found['percentile']:g}"
    return [
        (
            "quantized",
            f"{plural(len(found['layers']), 'layer')} to {precision} for {found['target']}, ranges "
            f"by {method} of {plural(found['images'], 'image')} "
            f"(SHA-256 {found['images_sha256'][:12]}…); the rest is {found['base']}",
        ),
        *([("in float", ", ".join(kept))] if kept else []),
    ]


def _counts(console: Console, title: str, counts: dict[str, int]) -> None:
    line(console, f"\n{title}", style="bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    for name, count in counts.items():
        table.add_row(str(count), name)
    console.print(table)


def _plugins(console: Console, plugins: list[dict[str, Any]]) -> None:
    line(console, f"\n{plural(len(plugins), 'custom node')}", style="bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", style="dim")
    for plugin in plugins:
        own = [
            f"{name}={_text(value)}"
            for name, value in sorted(plugin["attributes"].items())
            if name not in _ALIKE
        ]
        table.add_row(plugin["operator"], " ".join(own), plugin["name"])
    console.print(table)
    unmarked = [p["name"] for p in plugins if not all(name in p["attributes"] for name in _ALIKE)]
    if unmarked:
        names = ", ".join(unmarked)
        line(console, f"{names}: no plugin is named, TensorRT takes the function body", "yellow")


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _details(console: Console, result: dict[str, Any]) -> None:
    details = result["details"]
    if details is None:
        line(console, f"\nThe engine itself was not opened: {result['why_no_details']}")
        return
    line(console, f"\n{len(details['layers'])} layers after fusion", style="bold")
    for layer in details["layers"]:
        name = layer.get("Name", "?") if isinstance(layer, dict) else layer
        kind = layer.get("LayerType", "") if isinstance(layer, dict) else ""
        line(console, f"  {name} {kind}".rstrip())
    line(console, f"\n{details['device_memory_bytes'] / 1e6:.0f} MB of scratch memory on the GPU")


COMMAND = Command(
    "inspect",
    inspect,
    examples(
        "carafe-deploy inspect detector.onnx",
        "carafe-deploy inspect detector.engine",
        "carafe-deploy inspect detector.engine --json",
        "carafe-deploy inspect epoch_12.pth",
    ),
)
