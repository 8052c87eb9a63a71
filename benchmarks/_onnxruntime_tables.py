"""Tables of docs/onnxruntime.md."""

from __future__ import annotations

from typing import Any

from _markdown import machine, table


def releases(result: dict[str, Any]) -> str:
    """Kernels and function bodies in each release of ONNX Runtime, on the CPU."""
    times = {(row["onnxruntime"], row["operators"]): row for row in result["rows"]}
    rows = []
    for release in dict.fromkeys(release for release, _ in times):
        kernels, bodies = times[release, True], times[release, False]
        cells = (f"{row['median_ms']:.0f}" for row in (kernels, bodies))
        rows.append((release, *cells, f"{bodies['over_first']:.2f}"))
    heads = (
        f"Mask R-CNN R-50, fp32, 832x1344, {machine(result)}",
        "kernels, ms",
        "bodies, ms",
        "bodies over kernels",
    )
    return table(heads, rows)


def ways(result: dict[str, Any]) -> str:
    """What the provider can be told, on a GPU."""
    lines = [
        "| Mask R-CNN R-50, 832x1344 | computed by | mode | told besides | ms | images/s | MB |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in result["rows"]:
        told = ", ".join(
            f"{name}={value}" for name, value in (row["provider_options"] or {}).items()
        )
        by = "kernels" if row["operators"] else "bodies"
        cells = [row["file"], by, row["mode"], told]
        if "error" in row:
            cells += ["failed", "", ""]
        else:
            cells += [f"{row['median_ms']:.2f}", f"{row['images_per_second']:.0f}"]
            cells.append(str(row.get("device_memory_mb", "")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
