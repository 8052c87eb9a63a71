"""Images in, detections out, over any runner."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from carafe_deploy.brief import OneLine
from carafe_deploy.environment import cores
from carafe_deploy.errors import ImageError, InputShapeError
from carafe_deploy.gather import Gatherer, in_order
from carafe_deploy.images import GivenImage, Image, as_images, load_image
from carafe_deploy.overlap import DEPTH, overlapped
from carafe_deploy.postprocess import postprocess
from carafe_deploy.preparation import Preparation, Prepared
from carafe_deploy.preprocess import Batch, Preprocessor
from carafe_deploy.raw_images import RawImages
from carafe_deploy.runners.base import Array, Runner, RunTimes
from carafe_deploy.types import Detections

_Source = TypeVar("_Source")
_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")

#: Batches whose images are looked through for those of one padded size.
WINDOW = 8
#: Images that wait for others of their size take no more than this, unless all have one size.
WAITING_BYTES = 256 << 20

#: Threads that load images, beside the one that runs.
LOADERS = min(8, cores())
#: Threads that postprocess; on few cores one is enough for what these can run.
FINISHERS = max(1, min(4, cores() // 4))

#: A batch is filled up with copies to an artefact's smallest up to so much.
FILLED_BYTES = 4 << 30

#: A batch and what waits for the outputs of its run; neither where there is no image.
_Running = tuple[Prepared[_Source], Callable[[], dict[str, Array]] | None]

#: Of a stream, in order.
STAGES = ("load", "preprocess", "run", "postprocess")
#: Called with the name of a stage, and when a call of it began and ended by ``time.perf_counter``.
Trace = Callable[[str, float, float], None]
#: Called with the number of images done and their total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, repr=False)
class PipelineTimes(OneLine):
    """Milliseconds that one batch took, ``total`` from images in memory to detections."""

    total: float
    preprocess: float
    run: RunTimes
    postprocess: float


class Pipeline:
    """Preprocess, run, postprocess: :meth:`detect` batch by batch, :meth:`stream` and
    :meth:`detect_paths` at the same time for different batches.

    A detector sees the padding around an image, so a batch holds images of one padded size, looked
    for among the next ones: any batch size finds the same. Results keep the order given. A runner
    on a GPU resizes and normalises images there; masks are pasted on the host.

    Args:
        runner: stays the caller's to close.
        batch_size: images a run. An artefact whose smallest batch is larger gets its smallest; a
            batch that is not full is filled up by repeating its last image.
        mixed_sizes: batches hold consecutive images, all padded to the largest of them, as
            mmdetection does. Fewer runs where sizes change often, but what is found in an image
            depends on the others in its batch.
        window: consecutive images among which those of one padded size are looked for; no image
            waits for a later one. None for :data:`WINDOW` times the batch size.

    Raises:
        InputShapeError: ``batch_size`` is below 1 or above what the artefact accepts, or
            ``window`` is below it.
    """

    def __init__(
        self,
        runner: Runner,
        batch_size: int = 1,
        *,
        mixed_sizes: bool = False,
        window: int | None = None,
    ) -> None:
        smallest, largest = runner.info.input.batch
        if type(batch_size) is not int or not 1 <= batch_size <= largest:
            raise InputShapeError(
                f"batch size {batch_size!r} is not within 1 to {largest}, which this artefact "
                "accepts: choose another, or export with a dynamic batch"
            )
        self._runner = runner
        self._preprocess = Preprocessor(runner.info, raw=runner.preprocesses)
        self._smallest = smallest
        self._batch_size = max(batch_size, smallest)
        self._mixed_sizes = mixed_sizes
        self._window = WINDOW * self._batch_size if window is None else window
        if not isinstance(self._window, int) or self._window < self._batch_size:
            raise InputShapeError(
                f"window {window!r} holds no batch of {self._batch_size}: choose at least as many"
            )

    def __repr__(self) -> str:
        return f"<Pipeline of {self._runner!r}, batch size {self._batch_size}>"

    def detect(self, images: GivenImage | Iterable[GivenImage]) -> list[Detections]:
        """Detect in any number of images.

        Args:
            images: one or any iterable, see :func:`carafe_deploy.images.as_images`; sizes may
                differ. No more than the window and one batch are held of an iterator, and an array
                must stay as it is until the result is out.

        Returns:
            One :class:`Detections` an image, in order.

        Raises:
            InputShapeError: an image has another shape or dtype, or is none.
            ImageError: a file cannot be read.
            ArtefactError: the outputs are not those of a detector.
        """
        return list(self.each(images))

    def each(self, images: GivenImage | Iterable[GivenImage]) -> Generator[Detections, None, None]:
        """Detections image by image, in the caller's thread; see :meth:`detect`."""
        return self.stream(
            as_images(images),
            lambda image: image,
            lambda source, image, found: found,
            overlap=False,
        )

    def detect_paths(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        progress: Progress | None = None,
        *,
        overlap: bool = True,
    ) -> Generator[tuple[Path, Detections], None, None]:
        """Detect in image files, or in one, as :meth:`stream`; progress in the caller's thread.

        Raises:
            ImageError: a file cannot be read; detections of earlier images are out by then.
        """
        given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        files = [Path(path) for path in given]
        results = self.stream(
            files, load_image, lambda path, _, found: (path, found), overlap=overlap
        )
        try:
            for done, result in enumerate(results, 1):
                if progress is not None:
                    progress(done, len(files))
                yield result
        finally:
            results.close()

    def stream(
        self,
        sources: Iterable[_Source],
        load: Callable[[_Source], Image],
        finish: Callable[[_Source, Image, Detections], _Result],
        *,
        unreadable: Callable[[_Source, ImageError], _Result] | None = None,
        trace: Trace | None = None,
        overlap: bool = True,
    ) -> Generator[_Result, None, None]:
        """Detect in what comes, as fast as the slowest of four stages is.

        While one batch runs, images of the next ones are loaded by :data:`LOADERS` threads, and
        made batches in another; those before are postprocessed and finished by :data:`FINISHERS`
        threads. The runner is used in the thread that takes the results. A runner that computes on
        a GPU is given the next batches before it has done the one before. No more images
        are held than five batches, one for each thread that loads, and the window together; of the
        window no more than :data:`WAITING_BYTES` while sizes differ.

        Args:
            sources: of images, in order; taken as there is room.
            load: [H, W, 3] uint8 BGR from a source. Called in several threads at the same time.
            finish: makes the result of a source, its image and what was found in it. Called in
                several threads at the same time, and in another order than that of the sources.
                An array must stay as it is until its result is out.
            unreadable: makes the result of a source for which ``load`` has raised an ImageError;
                called as ``finish`` is. None ends the stream with the error.
            trace: told of every call of a stage, in its thread. A run is two where it waits for a
                device: until it has begun, and until its outputs are there.
            overlap: False does one thing after the other in the caller's thread.

        Yields:
            What ``finish`` and ``unreadable`` returned, in the order of the sources.

        Raises:
            Exception: see :meth:`detect`; whatever ``sources``, ``load``, ``finish`` and
                ``unreadable`` raise. Results of images before one that cannot be loaded are out by
                then.
        """
        preparation = Preparation(
            sources,
            load,
            self._preprocess,
            Gatherer(self._batch_size, self._window, WAITING_BYTES),
            mixed_sizes=self._mixed_sizes,
            goes_on=unreadable is not None,
        )

        load_one = _traced(trace, "load", preparation.load)
        prepare = _traced(trace, "preprocess", preparation.prepare)
        start = _traced(trace, "run", self._runner.start)

        def run(batches: list[Prepared[_Source]]) -> list[_Running[_Source]]:
            return [
                (one, None if one.batch is None else start(self._inputs(one.batch)))
                for one in batches
            ]

        def finish_all(
            prepared: Prepared[_Source], outputs: dict[str, Array], batch: Batch
        ) -> list[tuple[int, _Result]]:
            return [
                (one.number, finish(one.source, one.image, detections))
                for one, detections in zip(
                    prepared.entries, self._postprocess(outputs, batch), strict=True
                )
            ]

        finish_batch = _traced(trace, "postprocess", finish_all)

        def end(ran: list[_Running[_Source]]) -> list[tuple[int, _Result]]:
            results: list[tuple[int, _Result]] = []
            for prepared, outputs in ran:
                failed = prepared.unreadable
                if failed is not None and unreadable is not None:
                    results.append((failed.number, unreadable(failed.source, failed.error)))
                if prepared.batch is not None and outputs is not None:
                    arrays = _traced(trace, "run", outputs)()
                    results += finish_batch(prepared, arrays, prepared.batch)
            return results

        results = (
            overlapped(
                preparation,
                load_one,
                prepare,
                run,
                end,
                depth=DEPTH * self._batch_size,
                loaders=LOADERS,
                finishers=FINISHERS,
            )
            if overlap
            else (end(run(prepare(load_one(step)))) for step in preparation)
        )
        # Closed with this one: a generator that is merely dropped may live on in a traceback.
        try:
            yield from in_order(itertools.chain.from_iterable(results))
        finally:
            results.close()

    def detect_timed(
        self, images: GivenImage | Iterable[GivenImage]
    ) -> tuple[list[Detections], PipelineTimes]:
        """Detect in one batch, as many images as the artefact accepts, and tell how long it took.

        Raises:
            InputShapeError: see :meth:`detect`; or padded sizes differ without ``mixed_sizes``.
        """
        given = list(as_images(images))
        marks = [time.perf_counter()]
        batch = self._batch(given)
        inputs = self._inputs(batch)
        marks.append(time.perf_counter())
        outputs, run = self._runner.run_timed(inputs)
        marks.append(time.perf_counter())
        found = self._postprocess(outputs, batch)
        marks.append(time.perf_counter())
        begin, prepared, finished, end = (1e3 * mark for mark in marks)
        return found, PipelineTimes(end - begin, prepared - begin, run, end - finished)

    def inputs(self, images: GivenImage | Iterable[GivenImage]) -> dict[str, Array]:
        """What the runner is given for one batch of images; see :meth:`detect_timed`."""
        return self._inputs(self._batch(list(as_images(images))))

    def _batch(self, images: Sequence[Image]) -> Batch:
        sizes = sorted({self._preprocess.padded_size(image) for image in images})
        if len(sizes) > 1 and not self._mixed_sizes:
            listed = ", ".join(f"{height}x{width}" for height, width in sizes)
            raise InputShapeError(
                f"one batch of images with the padded sizes {listed}: give images of one, or ask "
                "for mixed_sizes=True, which changes what is found"
            )
        return self._preprocess(images)

    def _inputs(self, batch: Batch) -> dict[str, Array]:
        missing = self._smallest - len(batch)
        if missing <= 0:
            return batch.inputs
        images = batch.images
        raw = isinstance(images, RawImages)
        filled = self._smallest * (images.like if raw else images)[0].nbytes
        if filled > FILLED_BYTES:
            raise InputShapeError(
                f"the artefact's smallest batch is {self._smallest} images, of this size "
                f"{filled / 1e9:.1f} GB: export it with a smaller one"
            )

        def repeated(array: Any) -> Any:
            return np.concatenate((array, np.repeat(array[-1:], missing, axis=0)))

        return {
            "images": images.filled_up(missing) if raw else repeated(images),
            "image_sizes": repeated(batch.image_sizes),
        }

    def _postprocess(self, outputs: dict[str, Array], batch: Batch) -> list[Detections]:
        info = self._runner.info
        return postprocess(
            outputs,
            batch,
            mask_threshold=info.mask_threshold,
            with_masks=info.has_masks,
            num_classes=len(info.classes),
        )


def _traced(
    trace: Trace | None, name: str, function: Callable[_Parameters, _Result]
) -> Callable[_Parameters, _Result]:
    """The function, and the trace is told of every call."""
    if trace is None:
        return function

    def call(*given: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
        begun = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            trace(name, begun, time.perf_counter())

    return call
