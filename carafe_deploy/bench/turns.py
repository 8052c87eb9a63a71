"""The turns of one subject: what is timed in them, and how it enters a result."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence

from carafe_deploy.bench.files import stream_files
from carafe_deploy.bench.record import PARTS, Samples, Streamed, Throughput
from carafe_deploy.bench.subjects import Opened
from carafe_deploy.images import Image
from carafe_deploy.pipeline import Pipeline, PipelineTimes
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.types import Detections

__all__ = ["FEWEST_BATCHES", "Turns"]

#: Batches of a stream whose throughput is measured: as many as fill so many seconds, within limits.
STREAM = 1.0
FEWEST_BATCHES, MOST_BATCHES = 4, 64


def _count(seconds: float) -> int:
    """Batches of a stream, of which one takes so long."""
    return min(max(FEWEST_BATCHES, round(STREAM / max(seconds, 1e-6))), MOST_BATCHES)


class Turns:
    """What one subject was timed at, in milliseconds.

    Args:
        entry: opened.
    """

    def __init__(self, entry: Opened) -> None:
        assert entry.bounded is not None
        self.entry = entry
        self.runner = entry.bounded
        self.pipeline = Pipeline(entry.bounded)
        self.rounds: list[int] = []
        self.times: list[PipelineTimes] = []
        self.batches: dict[int, list[float]] = {}
        self.streams: dict[int, list[float]] = {}
        self.refused: dict[int, str] = {}
        self.found: list[Detections] = []

    def timed(self, image: Image) -> PipelineTimes:
        """One image from pixels to detections."""
        return self.pipeline.detect_timed([image])[1]

    def add(self, number: int, images: Sequence[Image]) -> None:
        """Time the images of a round one by one."""
        for image in images:
            self.times.append(self.timed(image))
            self.rounds.append(number)

    def add_batch(self, images: Sequence[Image], batch: int, *, settle: bool) -> None:
        """Time runs of one batch size, alone and as a stage of a stream.

        Args:
            images: to fill batches with.
            batch: images a run.
            settle: run once before without timing it.
        """
        low, high = self.runner.info.input.batch
        if not low <= batch <= high:
            self.refused[batch] = f"the artefacts accept batches of {low} to {high}"
            return
        seconds = 0.0
        for alike in self._by_size(images):
            inputs = self.pipeline.inputs(list(itertools.islice(itertools.cycle(alike), batch)))
            if settle:
                self.runner.run(inputs)
            begun = time.perf_counter()
            self.runner.run(inputs)
            seconds += (time.perf_counter() - begun) * len(alike) / len(images)
        self.batches.setdefault(batch, []).append(seconds * 1e3)
        count = _count(seconds)
        self.streams.setdefault(batch, []).append(self._stream_ms(images, batch, count) / count)

    def stream_files(self, images: Sequence[Image]) -> Streamed | None:
        """A stream of files with the fastest batch size; None where no stream was measured."""
        best = max(
            (entry for entry in self.throughput() if entry.pipelined_ms),
            key=lambda entry: entry.pipelined_images_per_second or 0.0,
            default=None,
        )
        if best is None:
            return None
        seconds = statistics.median(best.pipelined_ms) / 1e3
        alone = statistics.median(best.samples_ms)
        return stream_files(self.runner, images, best.batch, _count(seconds), alone)

    def _by_size(self, images: Sequence[Image]) -> list[list[Image]]:
        """The images by the size that they are padded to."""
        preprocess = Preprocessor(self.runner.info)
        groups: dict[tuple[int, int], list[Image]] = {}
        for image in images:
            groups.setdefault(preprocess.padded_size(image), []).append(image)
        return list(groups.values())

    def _stream_ms(self, images: Sequence[Image], batch: int, count: int) -> float:
        """``count`` batches from decoded images to detections, the stages overlapping."""
        source = itertools.islice(itertools.cycle(images), batch * count)
        pipeline = Pipeline(self.runner, batch)
        begun = time.perf_counter()
        found = sum(1 for _ in pipeline.stream(source, lambda image: image, lambda *each: each[2]))
        seconds = time.perf_counter() - begun
        assert found == batch * count
        return seconds * 1e3

    def samples(self) -> Samples | None:
        """Of single images; None if there are none."""
        if not self.times:
            return None
        run = [times.run for times in self.times]
        parts = {
            "preprocess": tuple(times.preprocess for times in self.times),
            "upload": tuple(one.upload for one in run),
            "compute": tuple(one.compute for one in run),
            "download": tuple(one.download for one in run),
            "postprocess": tuple(times.postprocess for times in self.times),
        }
        return Samples(
            rounds=tuple(self.rounds),
            total_ms=tuple(times.total for times in self.times),
            parts_ms={name: parts[name] for name in PARTS},
            enqueue_ms=tuple(one.enqueue for one in run if one.enqueue is not None),
        )

    def throughput(self) -> tuple[Throughput, ...]:
        """One entry a batch size, the refused ones included."""
        measured = [
            Throughput(batch, tuple(times), pipelined_ms=tuple(self.streams.get(batch, ())))
            for batch, times in self.batches.items()
        ]
        refused = [Throughput(batch, reason=reason) for batch, reason in self.refused.items()]
        return tuple(sorted((*measured, *refused), key=lambda entry: entry.batch))
