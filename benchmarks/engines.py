"""TensorRT-RTX engines of R-50 detectors, built ahead of time on this machine.

    python benchmarks/engines.py

Faster and Mask R-CNN in fp32 and fp16, static and dynamic. Weights are seeded (see
carafe_deploy/models/seeded.py); building does not depend on training. Every step runs in a process
of its own, so that peak memory is that step's alone. The same ONNX files are run by stock ONNX
Runtime on the CPU beside PyTorch in float32. Seeded weights amplify the rounding of fp16 as trained
ones do not, so in fp16 some detections may differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import RESULTS, argument_parser, write_result

MODELS = ("faster_rcnn", "mask_rcnn")
PRECISIONS = ("fp32", "fp16")
#: Batch, height, width.
SHAPES = {
    "static": ((1, 1), (832, 832), (1216, 1216)),
    "dynamic": ((1, 4), (320, 1344), (320, 1344)),
}
LIMIT_SECONDS, LIMIT_MB = 60, 4000
#: Names that TensorRT writes into a plan with every plugin of these types.
FIELDS = {
    "CarafeEncoded": ("kernel_size", "group_size", "scale_factor"),
    "MultilevelRoiAlign": ("output_size", "sampling_ratio", "strides", "finest_scale"),
    "BatchedNms": ("iou_threshold", "score_threshold", "max_output"),
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    engines = []
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            _run("seed", folder, model=model)
            for precision in PRECISIONS:
                for shape in SHAPES:
                    engines.append(_engine(folder, model, precision, shape))
                    print(json.dumps(engines[-1]), flush=True)
    result = {
        "weights": "R-50, seeded",
        "limits": {"build_seconds": LIMIT_SECONDS, "build_peak_memory_mb": LIMIT_MB},
        "engines": engines,
    }
    write_result(RESULTS / "engines.json", result)
    slow = [
        engine
        for engine in engines
        if engine["build"]["process_seconds"] > LIMIT_SECONDS
        or engine["build"]["peak_memory_mb"] > LIMIT_MB
    ]
    if slow:
        sys.exit(f"over the limits: {json.dumps(slow)}")


def _engine(folder: str, model: str, precision: str, shape: str) -> dict[str, Any]:
    chosen = {"model": model, "precision": precision, "shape": shape}
    steps = ("export", "build", "onnxruntime", "parity")
    result = {**chosen, **{step: _run(step, folder, **chosen) for step in steps}}
    for file in Path(folder).glob("detector.*"):
        file.unlink()
    return result


def _run(step: str, folder: str, **chosen: str) -> dict[str, Any]:
    """Run one step in a process of its own; adds what it took from start to end."""
    options = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--step", step, "--folder", folder, *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "process_seconds": round(time.perf_counter() - start, 2)}


def _peak_mb() -> float:
    """Peak resident memory of this process so far, in MB (10^6 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def _config(model: str) -> Any:
    from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig

    return DetectorConfig(mask=MaskHeadConfig() if model == "mask_rcnn" else None)


def _options(arguments: argparse.Namespace) -> Any:
    from carafe_deploy.graph.options import ExportOptions

    return ExportOptions(*SHAPES[arguments.shape], precision=arguments.precision)


def _photograph() -> Any:
    from carafe_deploy.data import data_path
    from carafe_deploy.images import load_image

    return load_image(data_path("chelsea.png"))


def _detector(arguments: argparse.Namespace) -> Any:
    import torch

    from carafe_deploy.models.detector import build_detector

    detector = build_detector(_config(arguments.model))
    detector.load_state_dict(torch.load(arguments.folder / "seeded.pth", weights_only=True))
    return detector


def step_seed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the weights that all engines of a model use."""
    import torch

    from carafe_deploy.models.seeded import seeded_detector
    from carafe_deploy.preprocess import Preprocessor
    from carafe_deploy.types import InputFormat, ModelInfo

    bounds = InputFormat("nchw_float32", *SHAPES["static"])
    info = ModelInfo(name="", architecture=arguments.model, classes=(), input=bounds)
    batch = Preprocessor(info)([_photograph()])
    tensors = (torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes))
    detector = seeded_detector(_config(arguments.model), *tensors)
    torch.save(detector.state_dict(), arguments.folder / "seeded.pth")
    return {}


def step_export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write detector.onnx with the dynamo exporter."""
    from carafe_deploy.graph.onnx_export import export_onnx

    path = arguments.folder / "detector.onnx"
    options = _options(arguments)
    info = export_onnx(_detector(arguments), path, options, name="r50", source={})
    return {
        "custom_nodes": len(info.operators),
        "peak_memory_mb": _peak_mb(),
        "file_mb": round(path.stat().st_size / 1e6, 1),
    }


def step_build(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build detector.engine and look for the plugins in its bytes."""
    from carafe_deploy.engine.build import BuildOptions, build_engine

    path = arguments.folder / "detector.engine"
    options = BuildOptions(flavour="tensorrt_rtx")
    sidecar = build_engine(arguments.folder / "detector.onnx", path, options)
    plan = path.read_bytes()
    fields = {
        plugin: all(name.encode() in plan for name in (plugin, *names))
        for plugin, names in FIELDS.items()
    }
    return {
        "tensorrt_rtx": sidecar.version,
        "seconds": sidecar.build["seconds"],
        "peak_memory_mb": round(sidecar.build["peak_memory_bytes"] / 1e6, 1),
        "engine_mb": round(len(plan) / 1e6, 1),
        "custom_nodes": 0 if sidecar.plugin is None else len(sidecar.plugin.layers),
        "plugin_layers": sidecar.layers.get("PLUGIN_V3", 0),
        "plan_holds_fields": fields,
    }


def step_onnxruntime(arguments: argparse.Namespace) -> dict[str, Any]:
    """Open the same file in stock ONNX Runtime, which takes the function bodies."""
    from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner

    with OnnxRuntimeRunner(arguments.folder / "detector.onnx") as runner:
        return {"opened": runner.info.architecture == arguments.model}


def step_parity(arguments: argparse.Namespace) -> dict[str, Any]:
    """Detections of the same file in ONNX Runtime against PyTorch in float32."""
    import torch

    from carafe_deploy.graph.metadata import model_info
    from carafe_deploy.graph.options import deployable
    from carafe_deploy.models.detector import StagedDetector
    from carafe_deploy.parity import run_parity
    from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
    from carafe_deploy.runners.pytorch import PyTorchRunner

    # PyTorch takes minutes for half convolutions on a CPU.
    options = dataclasses.replace(_options(arguments), precision="fp32")
    detector = _detector(arguments)
    deployed = deployable(detector, options)
    info = model_info(detector.config, options, name="r50", source={})
    reference = PyTorchRunner(info, torch.device("cpu"), deployed, StagedDetector(deployed))
    with reference, OnnxRuntimeRunner(arguments.folder / "detector.onnx") as candidate:
        report = run_parity(reference, candidate, images=[_photograph()], levels=["detections"])
    (row,) = report.rows
    return {
        "passed": report.passed,
        "matched": row.matched,
        "total": row.total,
        "max_score_error": row.details["max_score_error"],
    }


STEPS = {
    "seed": step_seed,
    "export": step_export,
    "build": step_build,
    "onnxruntime": step_onnxruntime,
    "parity": step_parity,
}

if __name__ == "__main__":
    main()
