"""Measure what a stream leaves of the speed of its slowest stage: JPEG files to detections.

    python benchmarks/stream.py

The detector is a stand-in, so that this needs no GPU: it sleeps 3 ms an image in batches of 8 and
returns nothing found, as a GPU leaves the host alone. It takes uint8 images of the files' size, so
that resizing, which belongs to the device, is no part of it; what is left on the host is reading,
decoding, gathering, padding, postprocessing and the stream itself. On two cores, to which this
process binds itself, it is compared with what these allow to decode, by as many threads and nothing
else, and with what the detector allows. The aim is 85 % of the lower one.

Files are made from seeded noise of low frequency, 640x480 and 480x640, quality 90. Each round takes
decoding alone and the stream in turn; figures are medians. Writes benchmarks/results/stream.json.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _common import RESULTS, argument_parser, write_result

from carafe_deploy.images import load_image
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.runners._lifetime import Lifetime
from carafe_deploy.runners.base import Array, check_inputs
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing

CORES = 2
BATCH = 8
MILLISECONDS_AN_IMAGE = 3.0
SIZES = ((480, 640), (640, 480))
FILES = 400
ROUNDS = 5
SEED = 0
AIM = 0.85


class Sleeper(Lifetime):
    """Finds nothing, and takes its time for it."""

    backend = "stand-in"

    def __init__(self) -> None:
        self.info = ModelInfo(
            "sleeper",
            "faster_rcnn",
            ("nothing",),
            preprocessing=Preprocessing(scale=(640, 480), pad_size_divisor=32),
            input=InputFormat(layout="nhwc_uint8", batch=(1, BATCH)),
        )
        self.device = "cpu"
        self._begin("sleeper")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Sleep."""
        check_inputs(self.info, inputs)
        batch = len(inputs["images"])
        time.sleep(1e-3 * MILLISECONDS_AN_IMAGE * batch)
        return {
            "num_dets": np.zeros((batch, 1), np.int32),
            "det_boxes": np.zeros((batch, 100, 4), np.float32),
            "det_scores": np.zeros((batch, 100), np.float32),
            "det_classes": np.zeros((batch, 100), np.int32),
        }

    def _free(self) -> None:
        pass


def make_files(folder: Path, count: int) -> list[Path]:
    """JPEG files; each another picture."""
    generator = np.random.default_rng(SEED)
    paths = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        fine = generator.normal(0, 6, (height, width, 3))
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + fine
        paths.append(folder / f"{number:04}.jpg")
        content = np.clip(image, 0, 255).astype(np.uint8)
        cv2.imwrite(str(paths[-1]), content, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def decode(paths: Sequence[Path]) -> None:
    """As many threads as cores, and nothing besides."""
    with ThreadPoolExecutor(CORES) as pool:
        for _ in pool.map(lambda path: load_image(path) is None, paths):
            pass


def stream(paths: Sequence[Path]) -> None:
    """Files to detections."""
    with Sleeper() as runner:
        for number, (path, _) in enumerate(Pipeline(runner, BATCH).detect_paths(paths)):
            assert path == paths[number]
    assert number + 1 == len(paths)


def images_per_second(function: Callable[[Sequence[Path]], None], paths: Sequence[Path]) -> float:
    """By the wall clock."""
    begun = time.perf_counter()
    function(paths)
    return len(paths) / (time.perf_counter() - begun)


def measure(rounds: int, count: int) -> dict[str, Any]:
    """Images a second of each way."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), count)
        decode(paths)
        stream(paths[: 4 * BATCH])
        taken = [
            {
                "decoding": images_per_second(decode, paths),
                "stream": images_per_second(stream, paths),
            }
            for _ in range(rounds)
        ]
        size = sum(path.stat().st_size for path in paths) / count
    decoding, streamed = (
        statistics.median(one[name] for one in taken) for name in ("decoding", "stream")
    )
    detector = 1e3 / MILLISECONDS_AN_IMAGE
    shares = [one["stream"] / min(one["decoding"], detector) for one in taken]
    return {
        "cores": CORES,
        "batch": BATCH,
        "files": {"count": count, "mean_bytes": round(size), "sizes": SIZES, "quality": 90},
        "images_per_second": {
            "decoding": round(decoding, 1),
            "detector": round(detector, 1),
            "stream": round(streamed, 1),
        },
        "share": round(statistics.median(shares), 3),
        "aim": AIM,
        "rounds": [{name: round(rate, 1) for name, rate in one.items()} for one in taken],
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--files", type=int, default=FILES)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    result = measure(arguments.rounds, arguments.files)
    write_result(arguments.results / "stream.json", result)
    rates = result["images_per_second"]
    print(", ".join(f"{name} {rate:g}/s" for name, rate in rates.items()))
    print(f"the stream has {result['share']:.1%} of the slower one, the aim is {AIM:.0%}")


if __name__ == "__main__":
    main()
