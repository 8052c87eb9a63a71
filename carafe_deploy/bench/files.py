"""A stream of files: images a second with decoding included, and what each stage does when."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence

from carafe_deploy.bench.record import Streamed
from carafe_deploy.files import temporary_folder
from carafe_deploy.images import Image, load_image, save_image
from carafe_deploy.pipeline import STAGES, Pipeline
from carafe_deploy.runners.base import Runner

__all__ = ["stream_files"]

#: Batches that the timeline shows, from the middle of the stream.
SHOWN = 6
#: Calls that took less are not shown, in seconds.
LEAST = 1e-5

_Span = tuple[float, float]


def stream_files(
    runner: Runner, images: Sequence[Image], batch: int, count: int, alone_ms: float
) -> Streamed:
    """Stream so many batches of JPEG files to detections with encoded masks.

    Args:
        runner: has run such batches before.
        images: are written as files first, and read again and again.
        batch: images a run.
        count: batches.
        alone_ms: that a run of such a batch takes with nothing beside it.
    """
    spans: dict[str, list[_Span]] = {name: [] for name in STAGES}
    with temporary_folder() as folder:
        paths = []
        for number, image in enumerate(images):
            paths.append(folder / f"{number}.jpg")
            save_image(paths[-1], image)
        sources = list(itertools.islice(itertools.cycle(paths), batch * count))
        stream = Pipeline(runner, batch).stream(
            sources,
            load_image,
            lambda path, image, found: len(found),
            trace=lambda name, begun, ended: spans[name].append((begun, ended)),
        )
        begun = time.perf_counter()
        results = sum(1 for _ in stream)
        ended = time.perf_counter()
    assert results == batch * count
    seconds = ended - begun
    window = seconds * min(1.0, SHOWN / count)
    start = begun + (seconds - window) / 2
    return Streamed(
        batch=batch,
        images=results,
        seconds=seconds,
        idle=max(0.0, 1 - count * alone_ms / 1e3 / seconds),
        window_s=window,
        spans={name: _within(each, start, window) for name, each in spans.items()},
    )


def _within(spans: Iterable[_Span], start: float, window: float) -> tuple[_Span, ...]:
    """The parts inside of the window, counted from its beginning."""
    inside = (
        (max(0.0, begun - start), min(window, ended - start)) for begun, ended in sorted(spans)
    )
    return tuple((begun, ended) for begun, ended in inside if ended - begun >= LEAST)
