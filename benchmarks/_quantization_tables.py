"""Tables of docs/quantization.md."""

from __future__ import annotations

import statistics
from typing import Any

from _markdown import machine

from carafe_deploy.backends import title_of
from carafe_deploy.types import ARCHITECTURES

_TARGETS = {"cpu": f"{title_of('onnxruntime')}, CPU", "tensorrt": title_of("tensorrt")}


def quantized(result: dict[str, Any]) -> str:
    """All that results/quantization.json says."""
    return "\n\n".join(part(result) for part in (precisions, layers, engines))


def precisions(result: dict[str, Any]) -> str:
    """AP in every precision, and how much of the detections changes."""
    lines = [
        "| detector | computes in | box AP | mask AP | largest loss of a set | detections change |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in result["small"]:
        rows, title = one["rows"], ARCHITECTURES[one["model"]]
        for precision in ("fp32", "fp16"):
            [row] = [row for row in rows if row["precision"] == precision]
            lines.append(
                f"| {title} | {precision} | {_ap([row])} | – | {max(row['change'], 0):.1%} |"
            )
        for precision, target in (("int8", "cpu"), ("int8", "tensorrt"), ("fp8", "tensorrt")):
            sets = [
                row
                for row in rows
                if (row["precision"], row.get("target")) == (precision, target)
                and "kept_float" not in row
            ]
            change = statistics.mean(row["change"] for row in sets)
            name = f"{precision} for {_TARGETS[target]}, mean of {len(sets)} sets"
            lines.append(
                f"| {title} | {name} | {_ap(sets)} | {_loss(rows[0], sets):.4f} | {change:.1%} |"
            )
        for row in rows:
            if "kept_float" in row:
                count = len(row["kept_float"])
                kept = f"{count or 'no'} layer{'s' * (count != 1)} in float"
                name = f"int8 for {_TARGETS[row['target']]}, first set, {kept}"
                lines.append(f"| {title} | {name} | {_ap([row])} | {_loss(rows[0], [row]):.4f} | |")
    return "\n".join(lines)


def _ap(rows: list[dict[str, Any]]) -> str:
    mean = {kind: statistics.mean(row["ap"][kind] for row in rows) for kind in rows[0]["ap"]}
    return " | ".join(f"{mean[kind]:.4f}" if kind in mean else "" for kind in ("bbox", "segm"))


def _loss(reference: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    return max(reference["ap"][kind] - row["ap"][kind] for row in rows for kind in row["ap"])


def time(result: dict[str, Any]) -> str:
    """The R-50 detector on a CPU, float and quantized."""
    ms, made = result["median_ms"], result["quantize"]
    rounds = len(result["speedups"])
    products = ", ".join(result["dot_products"]) or "none for 8-bit products"
    return "\n".join(
        [
            f"| Mask R-CNN R-50, 832x1216, {machine(result)} | |",
            "|---|---:|",
            f"| instructions | {products} |",
            f"| fp32 | {ms['fp32']:.0f} ms |",
            f"| int8 | {ms['int8']:.0f} ms |",
            f"| fp32 over int8, median of {rounds} rounds | {result['speedup']:.2f} |",
            f"| size of the file, of fp32's | {result['file_share']:.1%} |",
            f"| to quantize it, {made['images']} images | {made['seconds']:.0f} s, "
            f"{made['peak_mb'] / 1000:.1f} GB |",
        ]
    )


def layers(result: dict[str, Any]) -> str:
    """The layers of the small Mask R-CNN that suffer most."""
    [rows] = [one["sensitivity"] for one in result["small"] if "sensitivity" in one]
    lines = ["| layer | detections change | error of its output |", "|---|---:|---:|"]
    for row in rows[:12]:
        lines.append(f"| `{row['layer']}` | {row['change']:.1%} | {row['error']:.1%} |")
    return "\n".join(lines)


def engines(result: dict[str, Any]) -> str:
    """What TensorRT-RTX builds of the quantized files."""
    lines = ["| detector | layers | plugin layers of custom nodes |", "|---|---:|---:|"]
    for one in result["small"]:
        for row in filter(None, one.get("engines", [])):
            lines.append(
                f"| {ARCHITECTURES[one['model']]}, {row['precision']} | {row['layers']} "
                f"| {row['plugin_layers']} of {row['custom_nodes']} |"
            )
    return "\n".join(lines)
