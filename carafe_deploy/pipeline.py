"""Images in, detections out, over any runner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carafe_deploy.errors import InputShapeError
from carafe_deploy.images import Image, load_image
from carafe_deploy.postprocess import postprocess
from carafe_deploy.preprocess import Batch, Preprocessor
from carafe_deploy.runners.base import Array, Runner, RunTimes
from carafe_deploy.types import Detections

__all__ = ["Pipeline", "PipelineTimes", "Progress"]

#: Called with the number of images done and their total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PipelineTimes:
    """Milliseconds that one batch took.

    Attributes:
        total: from images in memory to detections, by the host's clock.
        preprocess: resize, normalise, pad.
        run: the parts of the run.
        postprocess: scale boxes, paste and encode masks.
    """

    total: float
    preprocess: float
    run: RunTimes
    postprocess: float


class Pipeline:
    """Preprocess, run, postprocess.

    Args:
        runner: stays the caller's to close.
        batch_size: images a run. An artefact whose smallest batch is larger gets its smallest; a
            batch that is not full is filled up by repeating its last image.

    Raises:
        InputShapeError: ``batch_size`` is below 1 or above what the artefact accepts.
    """

    def __init__(self, runner: Runner, batch_size: int = 1) -> None:
        smallest, largest = runner.info.input.batch
        if not 1 <= batch_size <= largest:
            raise InputShapeError(
                f"batch size {batch_size} is not within 1 to {largest}, which this artefact "
                "accepts: choose another, or export with a dynamic batch"
            )
        self._runner = runner
        self._preprocess = Preprocessor(runner.info)
        self._smallest = smallest
        self._batch_size = max(batch_size, smallest)

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Detect in any number of images.

        Args:
            images: [H, W, 3] uint8 each, BGR, sizes may differ.

        Returns:
            One :class:`Detections` an image, in order.

        Raises:
            InputShapeError: an image has another shape or dtype.
            ArtefactError: the outputs are not those of a detector.
        """
        return [
            detections
            for start in range(0, len(images), self._batch_size)
            for detections in self._detect_batch(images[start : start + self._batch_size])
        ]

    def detect_paths(
        self, paths: Sequence[str | os.PathLike[str]], progress: Progress | None = None
    ) -> Iterator[tuple[Path, Detections]]:
        """Detect in image files, holding no more than one batch of images at a time.

        Raises:
            ImageError: a file cannot be read; detections of earlier batches are out by then.
        """
        for start in range(0, len(paths), self._batch_size):
            chunk = [Path(path) for path in paths[start : start + self._batch_size]]
            found = self._detect_batch([load_image(path) for path in chunk])
            for done, item in enumerate(zip(chunk, found, strict=True), start + 1):
                if progress is not None:
                    progress(done, len(paths))
                yield item

    def detect_timed(self, images: Sequence[Image]) -> tuple[list[Detections], PipelineTimes]:
        """Detect in one batch, and tell how long its parts took.

        Args:
            images: [H, W, 3] uint8 each, BGR, as many as the artefact accepts in one run.

        Raises:
            InputShapeError: see :meth:`detect`.
        """
        marks = [time.perf_counter()]
        batch = self._preprocess(images)
        inputs = self._inputs(batch)
        marks.append(time.perf_counter())
        outputs, run = self._runner.run_timed(inputs)
        marks.append(time.perf_counter())
        found = self._postprocess(outputs, batch)
        marks.append(time.perf_counter())
        begin, prepared, finished, end = (1e3 * mark for mark in marks)
        return found, PipelineTimes(end - begin, prepared - begin, run, end - finished)

    def inputs(self, images: Sequence[Image]) -> dict[str, Array]:
        """What the runner is given for one batch of images; see :meth:`detect_timed`."""
        return self._inputs(self._preprocess(images))

    def _detect_batch(self, images: Sequence[Image]) -> list[Detections]:
        batch = self._preprocess(images)
        return self._postprocess(self._runner.run(self._inputs(batch)), batch)

    def _inputs(self, batch: Batch) -> dict[str, Array]:
        missing = self._smallest - len(batch)
        return _filled(batch.inputs, missing) if missing > 0 else batch.inputs

    def _postprocess(self, outputs: dict[str, Array], batch: Batch) -> list[Detections]:
        info = self._runner.info
        return postprocess(
            outputs, batch, mask_threshold=info.mask_threshold, with_masks=info.has_masks
        )


def _filled(inputs: dict[str, Array], missing: int) -> dict[str, Array]:
    return {
        name: np.concatenate((array, np.repeat(array[-1:], missing, axis=0)))
        for name, array in inputs.items()
    }
