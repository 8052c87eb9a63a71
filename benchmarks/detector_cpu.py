"""R-50 detectors on the CPU: export time and memory, ONNX Runtime against PyTorch eager.

    python benchmarks/detector_cpu.py [--runs 5]

Weights are seeded (see carafe_deploy/models/seeded.py); speed does not depend on training. Every
measurement runs in a process of its own, so that peak memory is that measurement's alone; the two
backends' runs are interleaved in one more process, so that drift hits both alike.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _environment import RESULTS, write_result

HEIGHT, WIDTH = 832, 1216
SIZE = f"{HEIGHT}x{WIDTH}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="timed runs a backend")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments.folder, arguments.runs)))
        return
    result: dict[str, Any] = {"input": SIZE, "model": "Mask R-CNN R-50, seeded weights"}
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--folder", folder]
            done = subprocess.run(
                [*command, "--runs", str(arguments.runs)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result[step] = json.loads(done.stdout.splitlines()[-1])
            print(f"{step}: {json.dumps(result[step])}", flush=True)
    write_result(RESULTS / "detector_cpu.json", result)


def _peak_mb() -> float:
    """Peak resident memory of this process so far, in MB (10^6 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def _batch() -> Any:
    import cv2

    from carafe_deploy.data import data_path
    from carafe_deploy.preprocess import Preprocessor
    from carafe_deploy.types import InputFormat, ModelInfo

    bounds = InputFormat(batch=(1, 1), height=(HEIGHT, HEIGHT), width=(WIDTH, WIDTH))
    info = ModelInfo(name="", architecture="mask_rcnn", classes=(), input=bounds)
    return Preprocessor(info)([cv2.imread(str(data_path("chelsea.png")))])


def _detector(folder: Path) -> Any:
    import torch

    from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
    from carafe_deploy.models.detector import build_detector

    detector = build_detector(DetectorConfig(mask=MaskHeadConfig()))
    detector.load_state_dict(torch.load(folder / "seeded.pth", weights_only=True))
    return detector


def step_seed(folder: Path, runs: int) -> dict[str, Any]:
    """Make the weights that all other steps use."""
    import torch

    from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
    from carafe_deploy.models.seeded import seeded_detector

    batch = _batch()
    start = time.perf_counter()
    detector = seeded_detector(
        DetectorConfig(mask=MaskHeadConfig()),
        torch.from_numpy(batch.images),
        torch.from_numpy(batch.image_sizes),
    )
    torch.save(detector.state_dict(), folder / "seeded.pth")
    return {"seconds": round(time.perf_counter() - start, 2)}


def step_export(folder: Path, runs: int) -> dict[str, Any]:
    """Dynamo export, dynamic batch, height and width."""
    from carafe_deploy.graph.onnx_export import export_onnx
    from carafe_deploy.graph.options import ExportOptions

    detector = _detector(folder)
    start = time.perf_counter()
    export_onnx(detector, folder / "dynamic.onnx", ExportOptions(), name="r50", source={})
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_memory_mb": _peak_mb(),
        "file_mb": round((folder / "dynamic.onnx").stat().st_size / 1e6, 1),
    }


def step_onnxruntime_memory(folder: Path, runs: int) -> dict[str, Any]:
    """One run of the dynamic file alone."""
    from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner

    batch = _batch()
    with OnnxRuntimeRunner(folder / "dynamic.onnx") as runner:
        found = runner.run({"images": batch.images, "image_sizes": batch.image_sizes})
    return {"peak_memory_mb": _peak_mb(), "detections": int(found["num_dets"][0, 0])}


def step_latency(folder: Path, runs: int) -> dict[str, Any]:
    """PyTorch eager with the reference operators and ONNX Runtime, runs interleaved."""
    import torch

    from carafe_deploy.graph.options import ExportOptions, deployable
    from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner

    batch = _batch()
    detector = deployable(_detector(folder), ExportOptions())
    tensors = (torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes))
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}

    def eager() -> None:
        with torch.inference_mode():
            detector(*tensors)

    with OnnxRuntimeRunner(folder / "dynamic.onnx") as runner:
        calls: dict[str, Callable[[], Any]] = {
            "pytorch_eager": eager,
            "onnxruntime": lambda: runner.run(feeds),
        }
        for call in calls.values():
            call()
        times = defaultdict(list)
        for _ in range(runs):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times["pytorch_eager"], times["onnxruntime"], strict=True)]
    return {
        **{
            name: {
                "median_s": round(statistics.median(values), 3),
                "fastest_s": round(min(values), 3),
                "slowest_s": round(max(values), 3),
            }
            for name, values in times.items()
        },
        "onnxruntime_over_pytorch": {
            "median": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        },
    }


def step_operator_share(folder: Path, runs: int) -> dict[str, Any]:
    """ONNX Runtime's own profile, nodes of function bodies attributed to their operator."""
    import onnxruntime

    batch = _batch()
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        str(folder / "dynamic.onnx"), options, ["CPUExecutionProvider"]
    )
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    for _ in range(3):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            operator = next((op for op in OPERATORS if op in name), "standard operators")
            spent[operator] += event["dur"]
    total = sum(spent.values())
    return {operator: round(time / total, 4) for operator, time in sorted(spent.items())}


OPERATORS = ("Carafe", "MultilevelRoiAlign", "BatchedNms")
STEPS = {
    "seed": step_seed,
    "export": step_export,
    "onnxruntime_memory": step_onnxruntime_memory,
    "latency": step_latency,
    "operator_share": step_operator_share,
}

if __name__ == "__main__":
    main()
