"""Time the R-50 detectors in every way that PyTorch runs them on a GPU, in one run.

    python benchmarks/torch_modes.py [--results FOLDER] [--rounds N] [--seconds N]

Checkpoints in fp16 and fp32, one image of 832x1344 and eight, channels-last: by PyTorch's usual
operators and with fused convolutions (carafe_deploy/ops/convolutions.py), eagerly, as one CUDA
graph, compiled, and compiled and captured; the TorchScript file in both ways. A row says what a
forward pass takes by device events, how many kernels it launches by PyTorch's profiler, and whether
it detects what the first way of its detector, precision and batch does. (Half types round elsewhere
in fused convolutions, and seeded weights make much of that: some detections may differ.) What takes
a compiler half a minute comes last; what is not begun within the seconds is left out and says so.
Weights are seeded; speed does not depend on training. Writes torch_modes.json, anew after each row.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import RESULTS, argument_parser, write_result
from bench import DETECTORS, photograph, seeded_checkpoint
from torch.profiler import ProfilerActivity, profile

from carafe_deploy.artefacts import open_runner
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.graph.torchscript_export import export_torchscript
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.types import ModelInfo

#: Runs before anything is timed.
WARMUP = 5
#: Share of the detections that has to be found again, to so many pixels and so much of the score.
SAME = {"fp32": 0.98, "fp16": 0.8}
PIXELS, SCORE = 4.0, 0.05


@dataclass(frozen=True)
class Way:
    """How one forward pass is run; the first of its model, precision and batch is the usual."""

    model: str
    precision: str
    batch: int
    mode: str
    fused: bool
    torchscript: bool = False

    @property
    def name(self) -> str:
        """For people."""
        words = [self.model, self.precision, f"batch {self.batch}"]
        words += ["TorchScript" if self.torchscript else self.mode]
        return ", ".join([*words, "fused" if self.fused else "usual"])


MASK, FASTER = "mask_r50", "faster_r50"
WAYS = (
    *(
        Way(MASK, "fp16", 1, mode, fused)
        for mode in ("eager", "cuda-graph")
        for fused in (False, True)
    ),
    *(Way(MASK, "fp16", 1, "eager", fused, torchscript=True) for fused in (False, True)),
    *(Way(MASK, "fp16", 8, "cuda-graph", fused) for fused in (False, True)),
    *(Way(MASK, "fp32", 1, "cuda-graph", fused) for fused in (False, True)),
    *(Way(FASTER, "fp16", 1, "cuda-graph", fused) for fused in (False, True)),
    # Half a minute each, but where a graph was compiled before.
    *(Way(MASK, "fp16", 1, "compile-graph", fused) for fused in (True, False)),
    Way(MASK, "fp16", 1, "compile", fused=False),
    Way(MASK, "fp16", 8, "compile-graph", fused=True),
    Way(FASTER, "fp16", 1, "compile-graph", fused=True),
    Way(MASK, "fp16", 8, "compile-graph", fused=False),
)


def files(folder: Path) -> dict[tuple[str, bool], Path]:
    """By detector, and whether it is TorchScript."""
    found: dict[tuple[str, bool], Path] = {}
    for model in (MASK, FASTER):
        path = found[model, False] = folder / f"{model}.pth"
        seeded_checkpoint(DETECTORS[model].config, path)
    detector, loaded = load_detector(found[MASK, False])
    found[MASK, True] = folder / f"{MASK}.ts"
    options = ExportOptions(precision="fp16")
    about = {"name": loaded.name, "source": loaded.source}
    export_torchscript(detector, found[MASK, True], options, **about)
    return found


def measure(
    way: Way, path: Path, rounds: int, first: dict[tuple[str, str, int], Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """A row; what cannot be opened or fails says why."""
    batch = Preprocessor(ModelInfo("", "", ("",)))([photograph()] * way.batch)
    given = {"images": batch.images, "image_sizes": batch.image_sizes}
    row: dict[str, Any] = {"way": way.name, **asdict(way)}
    settings: dict[str, Any] = {"device": "cuda", "fused": way.fused}
    if not way.torchscript:
        settings |= {"mode": way.mode, "precision": way.precision}
    begun = time.perf_counter()
    try:
        with open_runner(path, **settings) as runner:
            found = runner.run(given)
            row["first_call_s"] = round(time.perf_counter() - begun, 1)
            taken = [runner.run_timed(given)[1].compute for _ in range(WARMUP + rounds)][WARMUP:]
            row["launches"] = launches(runner.prepared(given))
    except Exception as error:  # any of them may not do on this machine; the others do
        return {**row, "error": f"{type(error).__name__}: {error}"}
    usual = first.setdefault((way.model, way.precision, way.batch), found)
    median = statistics.median(taken)
    again, total = found_again(usual, found)
    return {
        **row,
        "median_ms": round(median, 3),
        "fastest_ms": round(min(taken), 3),
        "images_per_second": round(1e3 * way.batch / median, 1),
        "found_again": again,
        "of": total,
        "agrees": total > 0 and again >= SAME[way.precision] * total,
    }


def found_again(
    usual: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> tuple[int, int]:
    """How many detections of the first image there are again, and of how many."""
    total = int(usual["num_dets"][0, 0])
    again = 0
    for box, score, label in zip(
        usual["det_boxes"][0, :total], usual["det_scores"][0], usual["det_classes"][0], strict=False
    ):
        near = np.abs(found["det_boxes"][0] - box).max(axis=1) < PIXELS
        near &= np.abs(found["det_scores"][0] - score) < SCORE
        again += bool((near & (found["det_classes"][0] == label)).any())
    return again, total


def launches(forward: Any) -> int:
    """Kernels of one call."""
    forward()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        forward()
        torch.cuda.synchronize()
    copies = ("Memcpy", "Memset")
    return sum(
        event.device_type.name == "CUDA" and not event.name.startswith(copies)
        for event in profiler.events()
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    rows: list[dict[str, Any]] = []
    first: dict[tuple[str, str, int], Mapping[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = files(Path(folder))
        for way in WAYS:
            if time.monotonic() > deadline:
                rows.append({"way": way.name, **asdict(way), "left_out": "for want of time"})
            else:
                path = paths[way.model, way.torchscript]
                rows.append(measure(way, path, arguments.rounds, first))
            print(rows[-1], flush=True)
            content = {"device": torch.cuda.get_device_name(), "rows": rows}
            write_result(arguments.results / "torch_modes.json", content)


if __name__ == "__main__":
    main()
