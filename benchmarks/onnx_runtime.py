"""Time the R-50 Mask R-CNN in ONNX Runtime, by our kernels and by function bodies, side by side.

    python benchmarks/onnx_runtime.py [--device cuda] [--results FOLDER] [--rounds N]

On a CPU: the float32 file at 832x1344, two threads, in the release that is installed and in every
one that `make test-onnxruntime` has left in build/onnxruntime/. On a GPU: files of one input size
(one image, eight) and of any, in fp16 and fp32, eagerly and as CUDA graphs, with and without what
the provider is told. Ways of one file take turns. Times are of computing alone, inputs and outputs
lying on the device. Every way has to find what the first one of its file does.

Weights are seeded (see carafe_deploy/models/seeded.py); speed does not depend on training.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESULTS, argument_parser, in_process, write_result

SIZE = 832, 1344
MODEL = "mask_r50"
RELEASES = Path(__file__).parents[1] / "build" / "onnxruntime"
#: Of detections that a way must find again, as a share of the first one's scores.
_SAME = {"fp32": 1e-3, "fp16": 2e-2}


@dataclass(frozen=True)
class Way:
    """How a file is run; what is None is the runner's choice."""

    operators: bool = True
    mode: str = "eager"
    provider_options: Mapping[str, str] | None = None


@dataclass(frozen=True)
class File:
    """What is exported, and the ways to run it; the first is what the others are compared with."""

    precision: str
    batch: int
    static: bool
    ways: tuple[Way, ...] = field(default=(Way(), Way(operators=False)))

    @property
    def name(self) -> str:
        """For people and file names."""
        sizes = f"batch {self.batch}" if self.static else "any size"
        return f"{self.precision}, {sizes}"


_GRAPH = Way(mode="cuda-graph")
#: What the runner tells the provider by itself, undone one by one; and what it might tell.
_OTHERS = (
    Way(mode="cuda-graph", provider_options={"prefer_nhwc": "0"}),
    Way(mode="cuda-graph", provider_options={"fuse_conv_bias": "1"}),
    Way(mode="cuda-graph", provider_options={"arena_extend_strategy": "kNextPowerOfTwo"}),
)
ON_CPU = (File("fp32", 1, static=False),)
ON_GPU = (
    File("fp16", 1, static=True, ways=(Way(), Way(operators=False), _GRAPH, *_OTHERS)),
    File("fp16", 8, static=True, ways=(Way(), Way(operators=False), _GRAPH, *_OTHERS)),
    File("fp16", 1, static=False),
    File(
        "fp32",
        1,
        static=True,
        ways=(Way(), Way(operators=False), _GRAPH, Way(provider_options={"prefer_nhwc": "1"})),
    ),
)


def export(files: Sequence[File], folder: Path) -> list[Path]:
    """One ONNX file each, of the detector that benchmarks/bench.py measures."""
    from bench import DETECTORS, seeded_checkpoint

    from carafe_deploy.graph.onnx_export import export_onnx
    from carafe_deploy.graph.options import ExportOptions
    from carafe_deploy.models.checkpoint import load_detector

    checkpoint = seeded_checkpoint(DETECTORS[MODEL].config, folder / f"{MODEL}.pth")
    paths = []
    for index, file in enumerate(files):
        detector, loaded = load_detector(checkpoint)
        height, width = SIZE
        options = ExportOptions(precision=file.precision)
        if file.static:
            batch = (file.batch, file.batch)
            options = ExportOptions(batch, (height, height), (width, width), file.precision)
        paths.append(folder / f"{index}.onnx")
        export_onnx(detector, paths[-1], options, name=loaded.name, source=loaded.source)
    return paths


def inputs(batch: int) -> dict[str, np.ndarray]:
    """Of normalised noise."""
    images = np.random.default_rng(0).standard_normal((batch, 3, *SIZE), np.float32)
    return {"images": images, "image_sizes": np.array([SIZE] * batch, np.float32)}


def measure(path: Path, file: File, device: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each way; one that cannot be opened or fails says why."""
    from carafe_deploy.artefacts import open_runner
    from carafe_deploy.bench.probe import gpu_memory

    given = inputs(file.batch)
    rows: list[dict[str, Any]] = [{"file": file.name, **asdict(way)} for way in file.ways]
    times: dict[int, list[float]] = {}
    first: Mapping[str, np.ndarray] | None = None
    with ExitStack() as stack:
        runners = {}
        for index, way in enumerate(file.ways):
            before = gpu_memory(device)
            threads = {} if device != "cpu" else {"threads": 2}
            try:
                runner = stack.enter_context(
                    open_runner(path, device=device, **threads, **_options(way))
                )
                found = [runner.run(given) for _ in range(3)][-1]
            except Exception as error:  # a provider of some version may refuse an option
                rows[index]["error"] = f"{type(error).__name__}: {error}"
                continue
            after = gpu_memory(device)
            if before is not None and after is not None:
                rows[index]["device_memory_mb"] = round(after - before)
            first = first or found
            rows[index]["agrees"] = _agrees(first, found, file.precision)
            runners[index], times[index] = runner, []
        for _ in range(rounds):
            for index, runner in runners.items():
                times[index].append(runner.run_timed(given)[1].compute)
    for index, taken in times.items():
        median = statistics.median(taken)
        rows[index] |= {
            "median_ms": round(median, 3),
            "fastest_ms": round(min(taken), 3),
            "images_per_second": round(1e3 * file.batch / median, 2),
        }
        if 0 in times:
            pairs = [mine / reference for mine, reference in zip(taken, times[0], strict=True)]
            rows[index]["over_first"] = round(statistics.median(pairs), 4)
    return rows


def _options(way: Way) -> dict[str, Any]:
    return {name: value for name, value in asdict(way).items() if value is not None}


def _agrees(
    first: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], precision: str
) -> bool:
    return np.array_equal(first["num_dets"], found["num_dets"]) and np.allclose(
        first["det_scores"], found["det_scores"], atol=_SAME[precision]
    )


def measure_release(path: Path, release: Path | None, rounds: int) -> list[dict[str, Any]]:
    """On the CPU, in a process of its own; None for the release that is installed."""
    before = [] if release is None else [str(release)]
    search = os.pathsep.join([*before, os.environ.get("PYTHONPATH", "")])
    arguments = (str(path), "--rounds", str(rounds))
    environment = {**os.environ, "PYTHONPATH": search}
    rows: list[dict[str, Any]] = in_process(__file__, *arguments, environment=environment)
    return rows


def _key(release: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in release.name.split("."))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--measure", type=Path, help="print the rows of one file; for this script")
    arguments = parser.parse_args()
    if arguments.measure:
        import onnxruntime

        rows = measure(arguments.measure, ON_CPU[0], "cpu", arguments.rounds)
        print(json.dumps([{"onnxruntime": onnxruntime.__version__, **row} for row in rows]))
        return
    files = ON_CPU if arguments.device == "cpu" else ON_GPU
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = export(files, Path(folder))
        if arguments.device == "cpu":
            releases = sorted((path for path in RELEASES.glob("*.*.*/") if path.is_dir()), key=_key)
            for release in (*releases, None):
                rows += measure_release(paths[0], release, arguments.rounds)
                print(json.dumps(rows[-2:]), flush=True)
        for path, file in zip(paths, files, strict=True):
            if arguments.device == "cuda":
                rows += measure(path, file, "cuda", arguments.rounds)
                print(json.dumps(rows[-len(file.ways) :]), flush=True)
    place = "gpu" if arguments.device == "cuda" else "cpu"
    write_result(arguments.results / f"onnxruntime_{place}.json", {"size": SIZE, "rows": rows})


if __name__ == "__main__":
    main()
