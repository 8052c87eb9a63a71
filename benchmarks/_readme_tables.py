"""Tables of README.md but those of a GPU."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from _markdown import machine, table

from carafe_deploy.backends import title_of
from carafe_deploy.operators import BY_ONNX_NAME
from carafe_deploy.types import ARCHITECTURES

if TYPE_CHECKING:
    from carafe_deploy.bench.record import BenchResult, OperatorsResult
    from carafe_deploy.report.document import Table

#: Kinds of layers, as the profilers name them, that are convolutions or matrix products.
_PRODUCTS = {"Conv2d", "Linear", "aten::_convolution", "aten::linear", "Conv", "MatMul", "Gemm"}


def accuracy(result: dict[str, Any]) -> str:
    """AP, AP50 and AP75 on the validation images, mmdetection's first."""
    lines = [
        "| detector | | box AP | mask AP | mmdetection's detections found again |",
        "|---|---|---:|---:|---:|",
    ]
    for title, detector in result["detectors"].items():
        recorded = detector["mmdetection"]
        lines.append(f"| {title} | mmdetection 3.3 | {_ap(recorded)} | |")
        for name, backend in detector["backends"].items():
            found = f"{backend['matched']} of {backend['recorded']}"
            lines.append(f"| | {title_of(name)} | {_ap(backend['numbers'])} | {found} |")
    return "\n".join(lines)


def _ap(numbers: dict[str, dict[str, float]]) -> str:
    masks = f"{numbers['segm']['AP']:.5f}" if "segm" in numbers else ""
    return f"{numbers['bbox']['AP']:.5f} | {masks}"


def engines(result: dict[str, Any]) -> str:
    """What building each engine took, and whether every custom node became a plugin."""
    rows = []
    for engine in result["engines"]:
        build = engine["build"]
        rows.append(
            (
                f"{ARCHITECTURES[engine['model']]}, {engine['precision']}, {engine['shape']}",
                f"{build['seconds']:.1f} s",
                f"{build['peak_memory_mb'] / 1000:.1f} GB",
                f"{build['engine_mb']:.0f} MB",
                f"{build['plugin_layers']} of {build['custom_nodes']}",
                f"{engine['parity']['matched']} of {engine['parity']['total']}",
            )
        )
    heads = (
        f"{result['weights']}, {machine(result)}, no GPU",
        "build",
        "peak memory",
        "engine",
        "plugin layers of custom nodes",
        "detections found in ONNX Runtime",
    )
    return table(heads, rows)


def bench(*results: BenchResult) -> str:
    """All backends of one detector, or of several, in a few columns."""
    from carafe_deploy.report.bench_tables import comparison_table

    first = results[0]
    processor = first.environment.get("GPU", "none")
    if processor.startswith("none"):
        processor = first.environment["processor"]
    title = "" if len(results) > 1 else f"{ARCHITECTURES[first.architecture]}, "
    return _markdown(comparison_table(results, f"{title}{processor}"))


def shares(*results: BenchResult) -> str:
    """How the time of a run, without pre- and postprocessing, divides among operators."""
    subjects = [
        (f"{ARCHITECTURES[result.architecture]}, {subject.name}", subject.layers.rows)
        for result in results
        for subject in result.measured
        if subject.layers is not None
    ]
    named = {row.operator for _, layers in subjects for row in layers}
    ours = {name: each.title for name, each in BY_ONNX_NAME.items() if name in named}
    rows = []
    for title, layers in subjects:
        times = dict.fromkeys(("products", *ours, "rest"), 0.0)
        for row in layers:
            kind = "products" if row.kind in _PRODUCTS else "rest"
            times[row.operator or kind] += row.milliseconds
        total = sum(times.values())
        rows.append((title, *(f"{100 * time / total:.1f} %" for time in times.values())))
    heads = ("share of a run", "convolutions, linear layers", *ours.values(), "rest")
    return table(heads, rows)


def operators(result: OperatorsResult) -> str:
    """The operators as the detectors call them, implementations side by side."""
    from carafe_deploy.report.operator_tables import pivot_table

    # Detectors take the fused entry; other sizes and groups than theirs are in the results.
    rows = [
        row for row in result.rows if row.entry != "carafe" and not row.workload.startswith("k ")
    ]
    chosen = dataclasses.replace(result, rows=tuple(rows))
    return _markdown(pivot_table(chosen, f"ms, float32, {result.environment['processor']}"))


def _markdown(table: Table) -> str:
    from carafe_deploy.report.markdown import table_markdown

    return table_markdown(table)
