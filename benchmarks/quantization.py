"""What 8 bits cost and gain: AP of the small detectors, time of the R-50 Mask R-CNN.

    python benchmarks/quantization.py [--only ap|time] [--rounds N]

The small trained detectors are quantized with ranges of four disjoint sets of 25 of their
validation images, for a CPU and for TensorRT, and evaluated on all 100 in ONNX Runtime: AP of 100
images moves by several thousandths with any change of rounding, so that one set would say little.
Once more layers stay in float until AP is within 0.002 (--keep-float auto). The R-50 Mask R-CNN has
seeded weights; its calibration is timed in a process of its own, and float and quantized files take
turns. Engines are built where TensorRT-RTX is installed. AP goes to results/quantization.json,
times to results/quantization_time.json, in about 20 minutes.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESULTS, argument_parser, in_process, write_result
from bench import DETECTORS, seeded_checkpoint

from carafe_deploy.data import CHECKPOINTS, data_path
from carafe_deploy.evaluate import evaluate_runner
from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import find_images, save_image
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.quantize.calibration import Calibration
from carafe_deploy.quantize.job import Quantizer, Trial
from carafe_deploy.quantize.sensitivity import detections_change
from carafe_deploy.requirements import is_installed
from carafe_deploy.runners.base import Runner
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
from carafe_deploy.samples import scene
from carafe_deploy.types import ARCHITECTURES, Detections

SHAPES = data_path("shapes")
IMAGES = find_images(SHAPES / "val")
SETS = 4
#: Loss of AP that --keep-float auto is asked for.
WANTED = 0.002
#: Calibration images of the R-50 detector.
SCENES = 32
#: Bits of a CPU that make 8-bit products fast.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni")


def exported(checkpoint: Path, precision: str, folder: Path) -> Path:
    """The ONNX file of a checkpoint."""
    path = folder / f"{checkpoint.stem}.{precision}.onnx"
    detector, loaded = load_detector(checkpoint)
    options = ExportOptions(precision=precision)
    export_onnx(detector, path, options, name=loaded.name, source=loaded.source)
    return path


def average_precision(runner: Runner) -> tuple[dict[str, float], list[Detections]]:
    """AP by kind over the validation images, and what was found in them."""
    result, found = evaluate_runner(runner, SHAPES / "val.json", SHAPES / "val")
    numbers = {kind: round(row["AP"] or 0.0, 5) for kind, row in result.numbers.items()}
    return numbers, [found[number] for number in sorted(found)]


def small(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """One small detector in all precisions."""
    files = {precision: exported(checkpoint, precision, folder) for precision in ("fp32", "fp16")}
    rows: list[dict[str, Any]] = []
    reference: list[Detections] = []
    for precision, path in files.items():
        with OnnxRuntimeRunner(path) as runner:
            ap, found = average_precision(runner)
        reference = reference or found
        rows.append(
            {"precision": precision, "ap": ap, "change": detections_change(reference, found)}
        )
    result: dict[str, Any] = {"model": "mask_rcnn" if "mask" in checkpoint.name else "faster_rcnn"}
    for target, values, base in (
        ("cpu", "int8", "fp32"),
        ("tensorrt", "int8", "fp32"),
        ("tensorrt", "fp8", "fp32"),
    ):
        for number in range(SETS):
            images = IMAGES[number::SETS]
            quantizer = Quantizer(files[base], Calibration(images), target=target, values=values)
            with quantizer.opened(()) as runner:
                ap, found = average_precision(runner)
            change = detections_change(reference, found)
            rows.append(
                {"precision": values, "target": target, "set": number, "ap": ap, "change": change}
            )
            if number == 0 and values == "int8":
                rows.append(auto(quantizer, rows[0]["ap"], target))
                if target == "cpu" and "segm" in ap:
                    order = quantizer.sensitivity("detections", 4)
                    errors = {row.layer: row.harm for row in quantizer.sensitivity("error", 8)}
                    result["sensitivity"] = [
                        {"layer": row.layer, "change": row.harm, "error": errors[row.layer]}
                        for row in order
                    ]
            if number == 0 and target == "tensorrt":
                result.setdefault("engines", []).append(engine(quantizer, values, folder))
    return {**result, "rows": rows}


def auto(quantizer: Quantizer, reference: dict[str, float], target: str) -> dict[str, Any]:
    """As many layers in float as bring AP near enough."""
    numbers: dict[int, dict[str, float]] = {}

    def loss(float_layers: Sequence[str]) -> float:
        with quantizer.opened(float_layers) as runner:
            ap, _ = average_precision(runner)
        numbers[len(float_layers)] = ap
        return max(reference[kind] - ap[kind] for kind in ap)

    trial: Trial = quantizer.keep_float(quantizer.sensitivity(), loss, WANTED)
    count = len(trial.kept_float)
    return {
        "precision": "int8",
        "target": target,
        "set": 0,
        "kept_float": list(trial.kept_float),
        "ap": numbers[count],
    }


def engine(quantizer: Quantizer, values: str, folder: Path) -> dict[str, Any] | None:
    """What TensorRT-RTX makes of it ahead of time."""
    if not is_installed("tensorrt_rtx"):
        return None
    from carafe_deploy.engine.build import BuildOptions, build_engine

    path = folder / f"{values}.onnx"
    quantizer.write(path)
    options = BuildOptions(flavour="tensorrt_rtx")
    sidecar = build_engine(path, path.with_suffix(".engine"), options)
    return {
        "precision": values,
        "plugin_layers": 0 if sidecar.plugin is None else len(sidecar.plugin.layers),
        "custom_nodes": len(quantizer.info.operators),
        "layers": sum(sidecar.layers.values()),
    }


def calibrated(path: str, output: str) -> dict[str, float]:
    """Seconds and memory of quantizing the R-50 detector; in a process of its own."""
    begun = time.perf_counter()
    folder = Path(path).parent
    images = []
    for seed in range(SCENES):
        images.append(folder / f"{seed}.png")
        save_image(images[-1], scene(seed))
    Quantizer(path, Calibration(images)).write(output)
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "images": SCENES,
    }


def large(folder: Path, rounds: int) -> dict[str, Any]:
    """The R-50 Mask R-CNN on a CPU, float and quantized by turns."""
    checkpoint = seeded_checkpoint(DETECTORS["mask_r50"].config, folder / "mask_r50.pth")
    path, quantized = exported(checkpoint, "fp32", folder), folder / "int8.onnx"
    taken = in_process(__file__, str(path), str(quantized))
    images = np.random.default_rng(0).normal(size=(1, 3, 832, 1216)).astype(np.float32)
    inputs = {"images": images, "image_sizes": np.array([[800, 1216]], np.float32)}
    times: dict[str, list[float]] = {}
    with OnnxRuntimeRunner(path) as first, OnnxRuntimeRunner(quantized) as second:
        for turn in range(rounds + 1):
            for name, runner in (("fp32", first), ("int8", second)):
                begun = time.perf_counter()
                runner.run(inputs)
                if turn:
                    times.setdefault(name, []).append(1e3 * (time.perf_counter() - begun))
        found = Pipeline(second).detect([scene(0)])
    ratios = [a / b for a, b in zip(times["fp32"], times["int8"], strict=True)]
    return {
        "quantize": taken,
        "median_ms": {name: round(statistics.median(row), 1) for name, row in times.items()},
        "speedup": round(statistics.median(ratios), 3),
        "speedups": [round(ratio, 3) for ratio in ratios],
        "file_share": round(quantized.stat().st_size / path.stat().st_size, 4),
        "detections": len(found[0]),
    }


def dot_products() -> list[str]:
    """Which of the CPU's instructions for 8-bit products there are."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    return [name for name in _DOT_PRODUCTS if name in text.split()]


def main() -> None:
    """Measure, and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=("ap", "time"), help="one of the two")
    parser.add_argument("--rounds", type=int, default=7, help="of the R-50 detector's runs")
    parser.add_argument(
        "--measure", nargs=2, help="quantize one file into another, for this script"
    )
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(calibrated(*given.measure)))
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if given.only != "ap":
            times = {"dot_products": dot_products(), **large(folder, given.rounds)}
            print(times)
            write_result(RESULTS / "quantization_time.json", times)
        if given.only != "time":
            rows = [small(SHAPES / name, folder) for name in CHECKPOINTS]
            for one in rows:
                print(ARCHITECTURES[one["model"]], *one["rows"], sep="\n  ")
            write_result(RESULTS / "quantization.json", {"small": rows})


if __name__ == "__main__":
    main()
