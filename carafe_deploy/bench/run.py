"""Measure all subjects in one run, taking turns, so that drift of the machine hits all alike."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2

from carafe_deploy.bench.agreement import agreement, as_record
from carafe_deploy.bench.options import BenchOptions
from carafe_deploy.bench.probe import probe
from carafe_deploy.bench.provenance import describe_run, load_facts
from carafe_deploy.bench.record import BenchResult, Sample, Subject
from carafe_deploy.bench.subjects import Opened, expand, open_all
from carafe_deploy.bench.trust import busy_machine, doubts
from carafe_deploy.bench.turns import FEWEST_BATCHES, Turns
from carafe_deploy.errors import (
    BackendFailedError,
    BackendUnavailableError,
    InputShapeError,
)
from carafe_deploy.evaluate import evaluate_runner
from carafe_deploy.failures import Failure, caught
from carafe_deploy.images import Image
from carafe_deploy.pictures import jpeg_text
from carafe_deploy.pipeline import Progress
from carafe_deploy.runners.base import Runner
from carafe_deploy.termination import interrupts_raise

__all__ = ["run_bench"]

Step = Callable[[str], None]

#: Seconds that a turn lasts at least, unless one image takes longer.
TURN = 0.25
#: A turn whose images take less begins with one that is not timed: other subjects' threads calm
#: down, caches fill.
SETTLED = 0.1
#: Pause before a turn, in seconds: threads of runtimes spin for some time after their work.
PAUSE = 0.02
#: Turns with a batch size: a quarter of the rounds, but so many at least.
LEAST_TURNS = 3
#: Longer edge in pixels and quality of the images that are kept to show.
SHOWN_EDGE, SHOWN_QUALITY = 1000, 85


def run_bench(
    paths: Sequence[Path],
    images: Mapping[str, Image] | Callable[[Runner], Mapping[str, Image]],
    options: BenchOptions,
    *,
    step: Step = lambda name: None,
    progress: Progress = lambda done, total: None,
) -> BenchResult:
    """Measure artefacts of one model.

    After a warm-up, every round gives each subject one turn, in random order. Latency is that of
    single images through the whole pipeline. A subject that raises, whatever it is, has failed and
    is measured no further; the others are. A keyboard interrupt ends measuring; the result then
    holds what there is and says so.

    Args:
        paths: of the artefacts.
        images: [H, W, 3] uint8 BGR each, by name; or a function that chooses them for the runner of
            the first artefact that can be opened.
        options: see there.
        step: told the name of each step as it begins.
        progress: within a step, told the parts done and their total.

    Raises:
        ArtefactError: a file is missing or of an unknown kind, the artefacts are of different
            models or settings, or accept no common size.
        BackendUnavailableError: nothing that would run any of them is there.
        BackendFailedError: none could be opened, and at least one for an unforeseen reason.
        CarafeDeployError: an option is out of range.
        InputShapeError: there are no images.
    """
    options.checked()
    openings = expand(paths, options.device, options.variants, options.config, options.threads)
    # Before anything of ours runs.
    busy = busy_machine(load_facts())
    with _restored_threads():
        step("open")
        entries = open_all(openings)
        try:
            if all(entry.bounded is None for entry in entries):
                reasons = "; ".join(f"{e.subject.name}: {e.subject.reason}" for e in entries)
                broke = any(e.failure is not None and not e.failure.foreseen for e in entries)
                kind = BackendFailedError if broke else BackendUnavailableError
                raise kind(f"nothing can be measured here. {reasons}")
            bench = _Bench(entries, images, options, step, progress)
            bench.run()
        finally:
            for entry in entries:
                entry.close()
        return bench.result((busy,) if busy else ())


@contextlib.contextmanager
def _restored_threads() -> Iterator[None]:
    """PyTorch's number of threads is of the whole process; leave it as it was."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)


class _Bench:
    def __init__(
        self,
        entries: Sequence[Opened],
        images: Mapping[str, Image] | Callable[[Runner], Mapping[str, Image]],
        options: BenchOptions,
        step: Step,
        progress: Progress,
    ) -> None:
        self._entries = entries
        self._options = options
        self._step, self._progress = step, progress
        # Those that still work, and those whose latency was measured completely.
        self._turns = [Turns(entry) for entry in entries if entry.bounded is not None]
        self._timed_turns: list[Turns] = []
        self._part = ""
        self._model = self._turns[0].runner.info
        self._images = images(self._turns[0].runner) if callable(images) else images
        self._pictures = list(self._images.values())
        if not self._pictures:
            raise InputShapeError("there are no images to measure with: give at least one")
        self._block = 0
        self._settles = False
        self._random = random.Random(options.seed)
        self._partial = False

    def run(self) -> None:
        try:
            with interrupts_raise():
                self._measure()
        except KeyboardInterrupt:
            self._partial = True

    def _measure(self) -> None:
        self._warm_up()
        self._step("detections")
        self._each(self._detect)
        self._step("latency")
        self._latency()
        self._timed_turns = list(self._turns)
        self._begin("throughput")
        self._throughput()
        if self._options.annotations is not None:
            self._begin("average precision")
            self._each(self._evaluate)
        if self._options.layers:
            self._begin("layers")
            self._each(self._profile)
        if self._options.cold:
            self._begin("memory and loading")
            self._each(self._probe)

    def _begin(self, part: str) -> None:
        """A part after latency; a reason names it."""
        self._step(part)
        self._part = part

    def _each(self, action: Callable[[Turns], None]) -> None:
        """Every subject that still works; one that fails is out from then on."""
        turns = list(self._turns)
        for done, turn in enumerate(turns):
            self._progress(done, len(turns))
            self._guarded(turn, action)

    def _guarded(self, turn: Turns, action: Callable[[Turns], None]) -> None:
        with caught() as attempt:
            action(turn)
        if attempt.failure:
            turn.entry.fail(attempt.failure, self._part)
            self._turns.remove(turn)

    @staticmethod
    def _change(turn: Turns, **facts: object) -> None:
        turn.entry.subject = dataclasses.replace(turn.entry.subject, **facts)  # type: ignore[arg-type]

    # --- latency ---------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        self._step("warm up")
        means = []

        def warm_up(turn: Turns) -> None:
            for _ in range(self._options.warmup):
                times = [turn.timed(image).total for image in self._pictures]
            means.append(statistics.mean(times) / 1e3)

        self._each(warm_up)
        count = len(self._pictures)
        if self._options.block is not None:
            self._block = self._options.block
        elif means:
            passes = max(1, round(TURN / (statistics.mean(means) * count)))
            self._block = passes * count
        self._settles = bool(means) and statistics.mean(means) < SETTLED

    def _latency(self) -> None:
        total = self._options.rounds
        for number in range(total):
            self._progress(number, total)
            # All subjects see the same images in a round.
            start = number * self._block
            chosen = [
                self._pictures[(start + index) % len(self._pictures)]
                for index in range(self._block)
            ]
            for turn in self._shuffled():
                self._guarded(turn, lambda turn: self._turn(turn, number, chosen))  # noqa: B023

    def _shuffled(self) -> list[Turns]:
        return self._random.sample(self._turns, len(self._turns))

    def _turn(self, turn: Turns, number: int, images: Sequence[Image]) -> None:
        time.sleep(PAUSE)
        if self._settles:
            turn.timed(images[0])
        turn.add(number, images)

    def _throughput(self) -> None:
        rounds = max(LEAST_TURNS, self._options.rounds // 4)
        jobs = [(batch, number) for batch in self._options.batch_sizes for number in range(rounds)]
        for done, (batch, number) in enumerate(jobs):
            self._progress(done, len(jobs))
            settle = number == 0 or self._settles
            for turn in self._shuffled():
                self._guarded(
                    turn,
                    lambda turn: turn.add_batch(self._pictures, batch, settle=settle),  # noqa: B023
                )

        self._each(self._stream_files)

    def _stream_files(self, turn: Turns) -> None:
        self._change(turn, streamed=turn.stream_files(self._pictures))

    # --- everything else -------------------------------------------------------------------------

    def _detect(self, turn: Turns) -> None:
        turn.found = turn.pipeline.detect(self._pictures)
        reference = self._turns[0]
        if turn is not reference:
            infos = reference.runner.info, turn.runner.info
            self._change(turn, agreement=agreement(infos, reference.found, turn.found))

    def _evaluate(self, turn: Turns) -> None:
        annotations = self._options.annotations
        assert annotations is not None
        folder = self._options.image_dir
        result, _ = evaluate_runner(
            turn.runner,
            annotations,
            annotations.parent if folder is None else folder,
            limit=self._options.limit,
        )
        numbers = {kind: values["AP"] for kind, values in result.numbers.items()}
        self._change(turn, ap={kind: value for kind, value in numbers.items() if value is not None})

    def _profile(self, turn: Turns) -> None:
        from carafe_deploy.bench.layers import profile_layers

        runner = turn.entry.runner
        assert runner is not None
        inputs = turn.pipeline.inputs(self._pictures[:1])
        self._change(turn, layers=profile_layers(runner, inputs, runs=self._options.layers))

    def _probe(self, turn: Turns) -> None:
        height, width = self._pictures[0].shape[:2]
        cold = probe(turn.entry.opening, height, width)
        self._change(turn, cold=cold)
        if cold.reason:
            turn.entry.fail(Failure(cold.reason), self._part)

    # --- result ----------------------------------------------------------------------------------

    def result(self, warnings: tuple[str, ...]) -> BenchResult:
        for turn in self._timed_turns or self._turns:
            samples = turn.samples()
            self._change(turn, samples=samples, throughput=turn.throughput())
            if samples is not None:
                self._change(turn, warnings=doubts(samples, turn.runner))
            elif self._partial and turn.entry.failure is None:
                self._change(turn, status="skipped", reason="interrupted before its turn")
        subjects: tuple[Subject, ...] = tuple(entry.subject for entry in self._entries)
        return BenchResult(
            environment=describe_run(),
            settings=self._settings(),
            model=self._model.name,
            architecture=self._model.architecture,
            classes=self._model.classes,
            subjects=subjects,
            samples=tuple(self._sample(name) for name in range(self._shown())),
            warnings=warnings,
            partial=self._partial,
        )

    def _shown(self) -> int:
        return min(self._options.samples, len(self._pictures))

    def _settings(self) -> dict[str, str]:
        options = self._options
        threads = "chosen by the runtimes" if options.threads is None else str(options.threads)
        sizes = {"x".join(map(str, image.shape[:2])) for image in self._pictures}
        settled = ", after one that is not timed" if self._settles else ""
        return {
            "device": options.device,
            "images": f"{len(self._images)} ({', '.join(sorted(sizes))} pixels, height x width)",
            "warm-up": f"{options.warmup} runs of every image",
            "turns": f"{options.rounds} rounds, in each every subject in random order times "
            f"{self._block} images one by one{settled}; {PAUSE:g} s pause before",
            "outliers": "kept",
            "latency": "from a decoded image to detections with encoded masks",
            "throughput": f"{max(LEAST_TURNS, options.rounds // 4)} runs a batch size, each "
            "of images of one padded size (of several the mean, by their share), without pre- and "
            "postprocessing; after each one overlapped: a stream of at least "
            f"{FEWEST_BATCHES} batches from decoded images to detections with encoded masks, "
            "preprocessing, run and postprocessing at work on different batches; and one stream of "
            "JPEG files, decoded by several threads, with the batch size of the fastest of these",
            "threads": threads,
            "seed": str(options.seed),
        }

    def _sample(self, index: int) -> Sample:
        name = list(self._images)[index]
        image = self._pictures[index]
        height, width = image.shape[:2]
        return Sample(
            name=Path(name).name,
            height=height,
            width=width,
            jpeg=_jpeg(image),
            found={
                turn.entry.subject.name: as_record(turn.found[index])
                for turn in self._timed_turns or self._turns
                if turn.found
            },
        )


def _jpeg(image: Image) -> str:
    """Base64 of the image, made no larger than is shown."""
    scale = min(1.0, SHOWN_EDGE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return jpeg_text(image, SHOWN_QUALITY)
