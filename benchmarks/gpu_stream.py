"""Measure a stream on a GPU: JPEG files of 640x480 to encoded masks, against the detector alone.

    python benchmarks/gpu_stream.py [--results FOLDER] [--images N] [--device DEVICE]

The R-50 Mask R-CNN in fp16, as CUDA graphs, with seeded weights, on pictures
made of the photograph in the package. The batch size is the one that `--batch-size auto` takes. A
first part of the files, which is not timed, fills caches and captures graphs. The detector alone is
the compute of a batch by device events, of both orientations by their share. "share" is what the
stream has of its images a second: so much of the time the device computes the detector. Writes
stream_gpu.json; --device cpu tries the script itself, in fp32 and with no graphs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _common import RESULTS, argument_parser, write_result
from bench import DETECTORS, photograph, seeded_checkpoint

from carafe_deploy import pipeline
from carafe_deploy.artefacts import open_runner
from carafe_deploy.batch_size import choose_batch_size
from carafe_deploy.environment import cores
from carafe_deploy.images import load_image
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.runners.base import Runner

SIZES = ((480, 640), (640, 480))
#: Different files; the others are the same ones again.
FILES = 64
ROUNDS = 3
#: Timed runs of the detector alone.
RUNS = 20
#: Of the detector's images a second, and images a second.
AIM, LEAST = 0.9, 250.0


def make_files(folder: Path) -> list[Path]:
    """Views of the photograph, half of them upright."""
    source, generator = photograph(), np.random.default_rng(0)
    paths = []
    for number in range(FILES):
        height, width = SIZES[number % len(SIZES)]
        top, left = generator.integers(0, 40, 2).tolist()
        image = cv2.resize(source[top:, left:], (width, height), interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"{number:03}.jpg")
        cv2.imwrite(str(paths[-1]), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return paths


def alone_ms(runner: Runner, paths: Sequence[Path], batch: int) -> float:
    """Milliseconds that the detector computes for a batch."""
    taken = []
    for path in paths[: len(SIZES)]:
        inputs = Pipeline(runner, batch).inputs([load_image(path)] * batch)
        times = [runner.run_timed(inputs)[1].compute for _ in range(RUNS)]
        taken.append(statistics.median(times[RUNS // 4 :]))
    return statistics.mean(taken)


def streamed(runner: Runner, paths: Sequence[Path], batch: int) -> tuple[float, int]:
    """Seconds for all files, and the number of encoded masks."""
    begun = time.perf_counter()
    found = Pipeline(runner, batch).stream(
        paths, load_image, lambda path, _, detections: len(detections.masks or ())
    )
    masks = sum(found)
    return time.perf_counter() - begun, masks


def measure(device: str, count: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "mask_r50.pth"
        seeded_checkpoint(DETECTORS["mask_r50"].config, checkpoint)
        files = make_files(Path(folder))
        paths = [files[number % FILES] for number in range(count)]
        settings = {"mode": "cuda-graph", "precision": "fp16"} if device != "cpu" else {}
        with open_runner(checkpoint, device=device, **settings) as runner:
            size = choose_batch_size(runner, load_image(paths[0]), count)
            streamed(runner, paths[: 12 * size.chosen], size.chosen)
            compute = alone_ms(runner, paths, size.chosen)
            rounds = [streamed(runner, paths, size.chosen) for _ in range(ROUNDS)]
    seconds = statistics.median(taken for taken, _ in rounds)
    alone = 1e3 * size.chosen / compute
    return {
        "device": device,
        "cores": cores(),
        "loaders": pipeline.LOADERS,
        "finishers": pipeline.FINISHERS,
        "images": count,
        "masks_an_image": round(rounds[0][1] / count, 1),
        "batch": size.chosen,
        "tried": {str(tried): round(rate, 1) for tried, rate in size.tried.items()},
        "detector_ms_a_batch": round(compute, 2),
        "images_per_second": {"detector": round(alone, 1), "stream": round(count / seconds, 1)},
        "rounds_s": [round(taken, 2) for taken, _ in rounds],
        "share": round(count / seconds / alone, 3),
        "aim": {"share": AIM, "images_per_second": LEAST},
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    result = measure(arguments.device, arguments.images)
    name = "cpu" if arguments.device == "cpu" else "gpu"
    write_result(arguments.results / f"stream_{name}.json", result)
    rates = result["images_per_second"]
    print(f"batch {result['batch']}: {rates['stream']}/s of the detector's {rates['detector']}/s")


if __name__ == "__main__":
    main()
