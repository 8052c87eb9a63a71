"""A stream whose runner is our kernels, for ThreadSanitizer: ``_threads.py LIBRARY``.

Images are loaded in one thread, run in another, their masks pasted in a third, and meanwhile other
threads call the same library. What is found must be what one thread finds.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carafe_deploy.data import data_path
from carafe_deploy.images import load_image
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.runners.base import Array, RunTimes
from carafe_deploy.types import Detections, InputFormat, ModelInfo, Preprocessing
from tests.fuzz._calls import CALLS, api

IMAGES, ROWS, THREADS = 40, 8, 3


class KernelRunner:
    """Upsamples the image by CARAFE, pools it by RoIAlign, and keeps boxes by NMS."""

    backend, device, preprocesses, implementations = "kernels", "cpu", False, ("",)
    info = ModelInfo(
        "threads",
        "mask_rcnn",
        ("thing",),
        preprocessing=Preprocessing(scale=(128, 64)),
        input=InputFormat(batch=(1, 4)),
        max_detections=ROWS,
        mask_size=14,
    )

    def __init__(self, library: Any) -> None:
        self._library = library
        self.inputs, self.outputs = self.info.input_specs, self.info.output_specs
        generator = np.random.default_rng(0)
        low = generator.uniform(0, 60, (1, 1, 200, 2))
        self._boxes = np.concatenate((low, low + 30), axis=-1).astype(np.float32)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        images = np.ascontiguousarray(inputs["images"])
        batch, _, height, width = images.shape
        encoded = np.tile(images[:, :1], (1, 36, 1, 1)) * np.arange(36)[:, None, None]
        encoded = np.ascontiguousarray(encoded, np.float32)
        large = np.empty((batch, 3, 2 * height, 2 * width), np.float32)
        self._library.carafe(
            api.CarafeParams(
                source=1, batch=batch, channels=3, height=height, width=width, kernel_size=3,
                groups=1, scale=2,
            ),
            images.ctypes.data, encoded.ctypes.data, large.ctypes.data, threads=THREADS,
        )  # fmt: skip
        scores = np.ascontiguousarray(np.abs(large[:, 0]).reshape(batch, 1, -1)[..., :200])
        boxes = np.repeat(self._boxes, batch, axis=0)
        counts, indices = np.empty((batch, 1), np.int32), np.empty((batch, ROWS), np.int64)
        self._library.batched_nms(
            api.NmsParams(
                batch=batch, labels=1, candidates=200, max_output=ROWS, iou_threshold=0.5,
                score_threshold=0.0,
            ),
            boxes.ctypes.data, scores.ctypes.data, counts.ctypes.data, indices.ctypes.data,
            threads=THREADS,
        )  # fmt: skip
        rows = np.maximum(indices, 0)
        rois = np.take_along_axis(boxes[:, 0], rows[..., None], axis=1)
        masks = np.empty((batch, ROWS, 3, 14, 14), np.float32)
        self._library.multilevel_roi_align(
            api.RoiAlignParams(
                batch=batch, rois=ROWS, channels=3, levels=1, output_size=14, finest_scale=56,
                heights=(2 * height,), widths=(2 * width,), strides=(1,),
            ),
            rois.ctypes.data, [large.ctypes.data], masks.ctypes.data, threads=THREADS,
        )  # fmt: skip
        return {
            "num_dets": counts,
            "det_boxes": rois,
            "det_scores": np.take_along_axis(scores[:, 0], rows, axis=1),
            "det_classes": np.zeros((batch, ROWS), np.int32),
            "det_masks": 1 / (1 + np.exp(-masks[:, :, 0])),
        }

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        results = self.run(inputs)
        return lambda: results

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        return self.run(inputs), RunTimes(0.0, 0.0, 0.0)


def _same(first: Detections, second: Detections) -> bool:
    return (
        np.array_equal(first.boxes, second.boxes)
        and np.array_equal(first.scores, second.scores)
        and first.masks == second.masks
    )


def main(path: str) -> None:
    library = api.KernelLibrary(path)
    paths = sorted(data_path("shapes", "val").glob("*.png"))[:IMAGES]
    pipeline = Pipeline(KernelRunner(library), batch_size=2)  # type: ignore[arg-type]
    expected = pipeline.detect([load_image(path) for path in paths])
    assert any(len(found) for found in expected)
    done = threading.Event()

    def disturb(seed: int) -> None:
        generator = np.random.default_rng(seed)
        while not done.is_set():
            CALLS[int(generator.integers(len(CALLS)))](library, generator)

    others = [threading.Thread(target=disturb, args=(seed,)) for seed in range(2)]
    for other in others:
        other.start()
    try:
        streamed = [found for _, found in pipeline.detect_paths(paths)]
    finally:
        done.set()
        for other in others:
            other.join()
    assert len(streamed) == len(expected)
    assert all(map(_same, streamed, expected)), "a stream finds something else"
    print(f"{len(streamed)} images streamed beside two other threads: the same detections")


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
