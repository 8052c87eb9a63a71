"""Runners that answer at once, to drive the benchmark's own logic."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from carafe_deploy.bench import subjects
from carafe_deploy.errors import EngineError
from carafe_deploy.runners.base import RunTimes, check_inputs, with_tf32
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing

INFO = ModelInfo(
    name="fake",
    architecture="faster_rcnn",
    classes=("cat", "dog"),
    preprocessing=Preprocessing((64, 64)),
    input=InputFormat(batch=(1, 4), height=(64, 128), width=(64, 128)),
)


class FakeRunner:
    """Finds one object an image, the image's frame, with the given score.

    Args:
        backend: that it pretends to be.
        info: of its model.
        score: of what it finds.
        compute: milliseconds that it says it took; real time passes as it likes.
        enqueue: likewise, for launching.
        fails_after: runs after which it breaks.
        interrupts_after: runs after which somebody presses Ctrl-C.
    """

    inputs = ()
    outputs = ()
    device = "cpu"
    preprocesses = False
    implementations = ("",)

    def __init__(
        self,
        backend: str = "onnxruntime",
        info: ModelInfo = INFO,
        *,
        score: float = 0.75,
        compute: float = 1.0,
        enqueue: float | None = None,
        fails_after: int | None = None,
        interrupts_after: int | None = None,
    ) -> None:
        self.backend, self.info = backend, info
        self.score, self.compute, self.enqueue = score, compute, enqueue
        self.fails_after, self.interrupts_after = fails_after, interrupts_after
        self.batches: list[int] = []
        self.closed = 0

    def run(self, inputs):
        check_inputs(self.info, inputs)
        sizes = inputs["image_sizes"]
        batch = len(sizes)
        if self.fails_after is not None and len(self.batches) >= self.fails_after:
            raise EngineError("the GPU fell off the bus: put it back")
        if self.interrupts_after is not None and len(self.batches) >= self.interrupts_after:
            raise KeyboardInterrupt
        self.batches.append(batch)
        boxes = np.zeros((batch, 2, 4), np.float32)
        boxes[:, 0, 2:] = sizes[:, ::-1]
        return {
            "num_dets": np.ones((batch, 1), np.int32),
            "det_boxes": boxes,
            "det_scores": np.full((batch, 2), self.score, np.float32),
            "det_classes": np.zeros((batch, 2), np.int32),
        }

    def start(self, inputs: Any) -> Any:
        results = self.run(inputs)
        return lambda: results

    def run_timed(self, inputs):
        return self.run(inputs), RunTimes(0.25, self.compute, 0.5, self.enqueue)

    def run_stages(self, inputs):
        raise NotImplementedError

    def run_operator(self, call, inputs):
        raise NotImplementedError

    def close(self):
        self.closed += 1

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()


def info(**changes: object) -> ModelInfo:
    return dataclasses.replace(INFO, **changes)


def install(monkeypatch, tmp_path: Path, **runners: Any) -> list[Path]:
    """Files named ``first.onnx`` and so on for ``first_onnx=``, that open as the runners given.

    An error in place of a runner is raised on opening. A checkpoint's runner takes over the
    options that it is opened with.
    """
    by_name = {}
    for key, runner in runners.items():
        path = tmp_path / ".".join(key.rsplit("_", 1))
        path.write_bytes(b"x" * 1_500_000)
        by_name[path] = runner
    opened = []

    def open_runner(path, **settings):
        found = by_name[Path(path)]
        if isinstance(found, Exception):
            raise found
        opened.append((Path(path).name, settings))
        options = settings.get("options")
        if options is not None:
            found.info = dataclasses.replace(
                found.info,
                precision=options.precision,
                score_threshold=options.score_threshold or found.info.score_threshold,
            )
        if settings.get("tf32"):
            found = copy.copy(found)
            found.info = with_tf32(found.info)
        return found

    monkeypatch.setattr(subjects, "open_runner", open_runner)
    install.opened = opened
    return list(by_name)
