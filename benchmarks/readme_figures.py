"""Write the tables of README.md from benchmarks/results/.

    python benchmarks/readme_figures.py [--check]

With --check nothing is written; the exit status is 1 if README.md is not what the results say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"

_BACKENDS = {
    "pytorch": "PyTorch",
    "torchscript": "TorchScript",
    "onnxruntime": "ONNX Runtime",
}


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
            lines.append(f"| | {_BACKENDS[name]} | {_ap(backend['numbers'])} | {found} |")
    return "\n".join(lines)


def _ap(numbers: dict[str, dict[str, float]]) -> str:
    masks = f"{numbers['segm']['AP']:.5f}" if "segm" in numbers else ""
    return f"{numbers['bbox']['AP']:.5f} | {masks}"


def detector_cpu(result: dict[str, Any]) -> str:
    """Export cost, and ONNX Runtime beside PyTorch."""
    export, latency = result["export"], result["latency"]
    ratio, share = latency["onnxruntime_over_pytorch"], result["operator_share"]
    eager = _seconds(latency["pytorch_eager"])
    onnxruntime = _seconds(latency["onnxruntime"])
    memory = result["onnxruntime_memory"]["peak_memory_mb"]
    spread = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f}"
    rows = {
        "export to ONNX, dynamic": f"{export['seconds']:.0f} s",
        "… peak memory": f"{export['peak_memory_mb'] / 1000:.1f} GB",
        "PyTorch eager, one image": eager,
        "ONNX Runtime, one image": onnxruntime,
        "ONNX Runtime over PyTorch": f"{ratio['median']:.2f} ({spread})",
        "ONNX Runtime, peak memory": f"{memory / 1000:.2f} GB",
        "CARAFE's share of ONNX Runtime's time": f"{share['Carafe']:.1%}",
    }
    title = f"| {result['model']}, {result['input']}, {_machine(result)} | |"
    return "\n".join([title, "|---|---:|", *(f"| {k} | {v} |" for k, v in rows.items())])


def engines(result: dict[str, Any]) -> str:
    """What building each engine took, and whether every custom node became a plugin."""
    lines = [
        f"| {result['weights']}, {_machine(result)}, no GPU | build | peak memory | engine "
        "| plugin layers of custom nodes |",
        "|---|---:|---:|---:|---:|",
    ]
    for engine in result["engines"]:
        build = engine["build"]
        model = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN"}[engine["model"]]
        cells = (
            f"{model}, {engine['precision']}, {engine['shape']}",
            f"{build['seconds']:.1f} s",
            f"{build['peak_memory_mb'] / 1000:.1f} GB",
            f"{build['engine_mb']:.0f} MB",
            f"{build['plugin_layers']} of {build['custom_nodes']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def carafe_cpu(result: dict[str, Any]) -> str:
    """CARAFE's CPU kernel beside plain PyTorch and the machine's floor."""
    lines = [
        f"| CARAFE, k 5, s 2, {result['threads']} threads of {result['environment']['cpu']} "
        "| kernel | PyTorch | kernel over floor |",
        "|---|---:|---:|---:|",
    ]
    for name, case in result["cases"].items():
        kernel, pytorch = case["kernel"]["median_ms"], case["pytorch"]["median_ms"]
        ratio = case["median_over_floor"]
        lines.append(f"| {name} | {kernel:.1f} ms | {pytorch:.0f} ms | {ratio:.1f} |")
    return "\n".join(lines)


def _seconds(times: dict[str, float]) -> str:
    return f"{times['median_s']:.2f} s ({times['fastest_s']:.2f} to {times['slowest_s']:.2f})"


def _machine(result: dict[str, Any]) -> str:
    environment = result["environment"]
    return f"{environment['cores']} cores of {environment['cpu']}"


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy": accuracy,
    "detector_cpu": detector_cpu,
    "carafe_cpu": carafe_cpu,
    "engines": engines,
}


def rendered(text: str) -> str:
    """README's text with every block between its markers made anew.

    Raises:
        ValueError: a block's markers are missing.
    """
    for name, render in BLOCKS.items():
        begin, end = f"<!-- {name}.json -->\n", f"<!-- /{name}.json -->"
        if begin not in text or end not in text:
            raise ValueError(f"README.md lacks the markers {begin.strip()} and {end}")
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        text = f"{head}{begin}{render(result)}\n{end}{tail}"
    return text


def main() -> int:
    current = README.read_text(encoding="utf-8")
    wanted = rendered(current)
    if sys.argv[1:] == ["--check"]:
        return int(current != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
