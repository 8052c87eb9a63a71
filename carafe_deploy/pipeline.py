"""Images in, detections out, over any runner."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from carafe_deploy.errors import InputShapeError
from carafe_deploy.images import Image, load_image
from carafe_deploy.masks import Paste, paste_masks
from carafe_deploy.overlap import overlapped
from carafe_deploy.postprocess import postprocess
from carafe_deploy.preprocess import Batch, Preprocessor
from carafe_deploy.runners.base import Array, Runner, RunTimes
from carafe_deploy.types import Detections

__all__ = ["Pipeline", "PipelineTimes", "Progress"]

_Source = TypeVar("_Source")
_Result = TypeVar("_Result")

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


@dataclass(frozen=True)
class _Prepared(Generic[_Source]):
    """One batch before its run; ``batch`` is None where nothing could be loaded."""

    loaded: list[tuple[_Source, Image]]
    batch: Batch | None


class Pipeline:
    """Preprocess, run, postprocess.

    Masks are pasted where a torch runner computes if that is a GPU, else on the host; see
    :mod:`carafe_deploy.masks_torch`.

    :meth:`detect` does so batch by batch, :meth:`stream` and :meth:`detect_paths` at the same time
    for different batches.

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
        self._paste = _paster(runner)
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
        self,
        paths: Sequence[str | os.PathLike[str]],
        progress: Progress | None = None,
        *,
        overlap: bool = True,
    ) -> Generator[tuple[Path, Detections], None, None]:
        """Detect in image files; see :meth:`stream` for memory, threads and leaving early.

        Args:
            paths: of image files.
            progress: called in the caller's thread.
            overlap: see :meth:`stream`.

        Raises:
            ImageError: a file cannot be read; detections of earlier batches are out by then.
        """
        results = self.stream(
            map(Path, paths), load_image, lambda path, _, found: (path, found), overlap=overlap
        )
        with contextlib.closing(results):
            for done, result in enumerate(results, 1):
                if progress is not None:
                    progress(done, len(paths))
                yield result

    def stream(
        self,
        sources: Iterable[_Source],
        load: Callable[[_Source], Image | None],
        finish: Callable[[_Source, Image, Detections], _Result],
        *,
        overlap: bool = True,
    ) -> Generator[_Result, None, None]:
        """Detect in what comes, as fast as the slowest of three stages is.

        While one batch runs, the next ones are loaded and preprocessed in a second thread, and
        those before are postprocessed and finished in a third. The runner is used in the thread
        that takes the results, and no more than five batches are held; see
        :func:`carafe_deploy.overlap.overlapped`. Detections are those of :meth:`detect`.

        Args:
            sources: of images, in order; taken as there is room.
            load: [H, W, 3] uint8 BGR from a source; None leaves it out. Called in one other thread.
            finish: makes the result of a source, its image and what was found in it. Called in one
                other thread.
            overlap: False does one thing after the other in the caller's thread.

        Yields:
            What ``finish`` returned, in the order of the sources.

        Raises:
            InputShapeError: see :meth:`detect`.
            ArtefactError: see :meth:`detect`.
            Exception: whatever ``load`` and ``finish`` raise. In either case results of earlier
                batches are out by then.
        """

        def prepare(chunk: Sequence[_Source]) -> _Prepared[_Source]:
            loaded = [(source, load(source)) for source in chunk]
            kept = [(source, image) for source, image in loaded if image is not None]
            batch = self._preprocess([image for _, image in kept]) if kept else None
            return _Prepared(kept, batch)

        def run(prepared: _Prepared[_Source]) -> tuple[_Prepared[_Source], dict[str, Array]]:
            if prepared.batch is None:
                return prepared, {}
            return prepared, self._runner.run(self._inputs(prepared.batch))

        def end(ran: tuple[_Prepared[_Source], dict[str, Array]]) -> list[_Result]:
            prepared, outputs = ran
            if prepared.batch is None:
                return []
            found = self._postprocess(outputs, prepared.batch)
            return [
                finish(source, image, detections)
                for (source, image), detections in zip(prepared.loaded, found, strict=True)
            ]

        chunks = _chunks(sources, self._batch_size)
        results = (
            overlapped(chunks, prepare, run, end)
            if overlap
            else (end(run(prepare(chunk))) for chunk in chunks)
        )
        # Closed with this one: a generator that is merely dropped may live on in a traceback.
        with contextlib.closing(results):
            for batch in results:
                yield from batch

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
            outputs,
            batch,
            mask_threshold=info.mask_threshold,
            with_masks=info.has_masks,
            paste=self._paste,
        )


def _paster(runner: Runner) -> Paste:
    """On the GPU where a torch runner has one; else on the host, which needs no torch."""
    if not (runner.info.has_masks and runner.pastes_on_device):
        return paste_masks
    from carafe_deploy.masks_torch import TorchPaster

    return TorchPaster(runner.device)


def _chunks(sources: Iterable[_Source], size: int) -> Iterator[list[_Source]]:
    remaining = iter(sources)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk


def _filled(inputs: dict[str, Array], missing: int) -> dict[str, Array]:
    return {
        name: np.concatenate((array, np.repeat(array[-1:], missing, axis=0)))
        for name, array in inputs.items()
    }
