"""The times of one subject, on their way into a result."""

from __future__ import annotations

from carafe_deploy.bench.record import PARTS, Samples, Throughput
from carafe_deploy.bench.subjects import Opened
from carafe_deploy.pipeline import Pipeline, PipelineTimes
from carafe_deploy.types import Detections

__all__ = ["Turns"]


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
