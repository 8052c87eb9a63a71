"""Measure both R-50 detectors, both small ones and the operators, with `carafe-deploy bench`.

    python benchmarks/bench.py [--device cuda] [--results FOLDER] [NAME ...]

Names are those of DETECTORS, and "operators"; all by default. Every detector is measured twice in a
row: the first run becomes bench_NAME.json, and repeat.json says how far the ratios between backends
differ in the second, of which only latency is measured. On a GPU, checkpoints run in fp32 and fp16,
eagerly and as CUDA graphs, once. Weights of the R-50 detectors are seeded (see
carafe_deploy/models/seeded.py); speed does not depend on training. Their image becomes 832x1344,
the usual size for COCO.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from _common import RESULTS, argument_parser, write_result

from carafe_deploy.bench.record import BenchResult, read_result
from carafe_deploy.data import data_path
from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.graph.torchscript_export import export_torchscript
from carafe_deploy.images import Image, load_image
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.coco_classes import COCO_CLASSES
from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
from carafe_deploy.models.config_text import read_config
from carafe_deploy.models.seeded import seeded_detector
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.types import InputFormat, ModelInfo

CONFIGS = Path(__file__).parent.parent / "tests" / "data"
SHAPES = data_path("shapes")
OPERATORS = "operators"


@dataclass(frozen=True)
class Job:
    """One detector: its checkpoint, or the config that seeded weights are made for."""

    checkpoint: str = ""
    config: str = ""
    #: Of both runs.
    options: tuple[str, ...] = ()
    #: Of the first run only.
    more: tuple[str, ...] = ()


#: Of all on a GPU.
_CUDA = ("--device", "cuda", "--precision", "fp32,fp16", "--layout", "nchw,channels-last")
_SMALL = ("--threads", "1", "--layout", "nchw,channels-last", "--rounds", "30")
_SMALL_MORE = (
    *("--annotations", str(SHAPES / "val.json"), "--image-dir", str(SHAPES / "val")),
    "--layers",
)
_R50 = ("--layout", "nchw,channels-last", "--rounds", "10")
_R50_MORE = ("--batch-sizes", "1", "--layers")
DETECTORS = {
    "faster_r50": Job("", "faster-rcnn_r50_fpn-carafe_1x_coco.resolved.py", _R50, _R50_MORE),
    "mask_r50": Job("", "mask-rcnn_r50_fpn-carafe_1x_coco.resolved.py", _R50, _R50_MORE),
    "faster_shapes": Job("shapes_faster_rcnn_carafe-2a9d7f44.pth", "", _SMALL, _SMALL_MORE),
    "mask_shapes": Job("shapes_mask_rcnn_carafe-fbec7e06.pth", "", _SMALL, _SMALL_MORE),
}


def photograph() -> Image:
    """270x451 of Chelsea the cat: 798x1333 after resizing, 832x1344 with padding."""
    return load_image(data_path("chelsea.png"))[:270]


def seeded_checkpoint(config_file: str, path: Path) -> Path:
    """A checkpoint as mmdetection would save it, weights seeded for the photograph."""
    is_mask = config_file.startswith("mask")
    config = DetectorConfig(mask=MaskHeadConfig() if is_mask else None)
    info = ModelInfo("", config.architecture, config.classes, input=InputFormat(batch=(1, 1)))
    batch = Preprocessor(info)([photograph()])
    detector = seeded_detector(
        config, torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)
    )
    meta = {
        "cfg": read_config(CONFIGS / config_file),
        "dataset_meta": {"classes": COCO_CLASSES},
    }
    torch.save({"meta": meta, "state_dict": detector.state_dict()}, path)
    return path


def artefacts(name: str, folder: Path, device: str = "cpu") -> list[Path]:
    """Checkpoint, TorchScript file and, but for a GPU, ONNX file."""
    job = DETECTORS[name]
    checkpoint = (
        SHAPES / job.checkpoint
        if job.checkpoint
        else seeded_checkpoint(job.config, folder / f"{name}.pth")
    )
    detector, loaded = load_detector(checkpoint)
    paths = [checkpoint]
    kinds = ((".ts", export_torchscript), (".onnx", export_onnx))
    for suffix, write in kinds[: 2 if device == "cpu" else 1]:
        paths.append(folder / f"{name}{suffix}")
        write(detector, paths[-1], ExportOptions(), name=loaded.name, source=loaded.source)
    return paths


def image_options(name: str, folder: Path) -> tuple[str, ...]:
    """The photograph for R-50, what comes with the package for the small ones."""
    if DETECTORS[name].checkpoint:
        return ()
    path = folder / "photograph.png"
    cv2.imwrite(str(path), photograph())
    return ("--images", str(path))


def bench(*arguments: object) -> None:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "carafe_deploy", "bench", *map(str, arguments)]
    subprocess.run(command, check=True)


def ratios(path: Path) -> dict[str, dict[str, float]]:
    """Of every subject over the first, with the ends of the interval."""
    result = read_result(path)
    assert isinstance(result, BenchResult)
    first, *others = result.measured
    assert first.samples is not None
    found = {}
    for subject in others:
        assert subject.samples is not None
        ratio = subject.samples.over(first.samples)
        found[subject.name] = {
            name: round(getattr(ratio, name), 4) for name in ("value", "low", "high")
        }
    return found


def measure_on_gpu(name: str, results: Path) -> None:
    """One run of every way to run PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        paths = artefacts(name, Path(folder), "cuda")
        images = image_options(name, Path(folder))
        bench(*paths, *_CUDA, *images, "--layers", "-o", results / f"bench_{name}_gpu.json")


def measure(name: str, results: Path) -> dict[str, Any]:
    """Both runs; what the second says of the first."""
    job = DETECTORS[name]
    output = results / f"bench_{name}.json"
    with tempfile.TemporaryDirectory() as folder:
        paths = artefacts(name, Path(folder))
        images = image_options(name, Path(folder))
        bench(*paths, *job.options, *images, *job.more, "-o", output)
        again = Path(folder) / "again.json"
        only_latency = ("--no-memory", "--samples", "0", "--batch-sizes", "0")
        bench(*paths, *job.options, *images, *only_latency, "-o", again)
        first, second = ratios(output), ratios(again)
    change = {
        subject: round(abs(second[subject]["value"] / ratio["value"] - 1), 4)
        for subject, ratio in first.items()
    }
    return {"first": first, "second": second, "change": change}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*DETECTORS, OPERATORS]))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    names = arguments.names or [*DETECTORS, OPERATORS]
    unknown = set(names) - {*DETECTORS, OPERATORS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    repeat = arguments.results / "repeat.json"
    detectors: dict[str, Any] = {}
    if repeat.exists():
        detectors = json.loads(repeat.read_text(encoding="utf-8"))["detectors"]
    device = "gpu" if arguments.device == "cuda" else "cpu"
    for name in names:
        if name == OPERATORS:
            output = arguments.results / f"operators_{device}.json"
            bench("--op", "all", "--device", arguments.device, "-o", output)
        elif device == "gpu":
            measure_on_gpu(name, arguments.results)
        else:
            detectors[name] = measure(name, arguments.results)
            changes = [change for one in detectors.values() for change in one["change"].values()]
            write_result(repeat, {"largest_change": max(changes), "detectors": detectors})
            print(f"{name}: ratios differ by {detectors[name]['change']}", flush=True)


if __name__ == "__main__":
    main()
