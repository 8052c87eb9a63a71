"""What the demo does with one detector."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from carafe_deploy.artefacts import open_runner
from carafe_deploy.backends import title_of
from carafe_deploy.bench.options import BenchOptions
from carafe_deploy.bench.record import BenchResult
from carafe_deploy.bench.run import run_bench
from carafe_deploy.coco import from_results, load_annotations
from carafe_deploy.data import data_path, validation_images
from carafe_deploy.demo.results import (
    MAGNIFICATION,
    PARITY_IMAGES,
    BackendResult,
    DetectorResult,
    EngineResult,
    Numbers,
)
from carafe_deploy.engine.build import BuildOptions, build_engine
from carafe_deploy.evaluate import evaluate_runner
from carafe_deploy.failures import Failure, Outcome, caught
from carafe_deploy.images import Image, load_image, save_image
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.parity import ParityReport, match_detections, run_parity
from carafe_deploy.pictures import draw_enlarged
from carafe_deploy.runners.base import Runner
from carafe_deploy.tolerances import tolerance
from carafe_deploy.types import ARCHITECTURES, Detections

#: Detections with at least this score are drawn.
DRAWN_SCORE = 0.5
#: Images a run when artefacts are compared, so that sizes are mixed.
PARITY_BATCH = 2
#: As mmdetection counted: AP at 100 detections an image, AP50 and AP75 at 1000.
MAX_DETS = (100, 300, 1000)
#: Largest input of the engines: batch, height and width that hold every image.
ENGINE_MAX = (PARITY_BATCH, 192, 192)
#: A short measurement: the report is to show what there is, not to settle it.
BENCH = BenchOptions(rounds=8, batch_sizes=(1, 4), threads=1, cold=False, layers=3)
#: mmdetection's name of a number -> COCO's.
_NUMBERS = {"mAP": "AP", "mAP50": "AP50", "mAP75": "AP75"}

Step = Callable[[str], None]
Progress = Callable[[int, int], None]


class Job:
    """All steps with one detector; one that fails leaves the others.

    Args:
        checkpoint: of the detector.
        output: folder for artefacts; pictures go to one of their own below it.
        step: told the name of each step as it begins.
        progress: within a step, told the images done and their total.

    Attributes:
        title: of the detector, for people.
        pictures: what was drawn.
    """

    def __init__(self, checkpoint: Path, output: Path, step: Step, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._detector, self._loaded = load_detector(checkpoint)
        self._output = output
        architecture = self._detector.config.architecture
        self.title = ARCHITECTURES[architecture]
        self.pictures: list[Image] = []
        self._folder = output / architecture
        self._files = {"pytorch": checkpoint}
        self._step: Step = lambda name: step(f"{self.title}: {name}")
        self._progress = progress
        self._failed: dict[str, Failure] = {}

    def run(self, shown: Mapping[Path, Image]) -> DetectorResult:
        """Everything.

        Args:
            shown: the first images by file, to draw detections on.
        """
        self._export()
        runners: dict[str, Runner] = {}
        try:
            for backend, path in self._files.items():
                with self._attempt(f"open {title_of(backend)}", told=False):
                    runners[backend] = open_runner(path)
            engine = self._build_engine(runners)
            scored: dict[str, BackendResult] = {}
            found: dict[str, list[Detections]] = {}
            for backend, runner in runners.items():
                with self._attempt(f"AP of {title_of(backend)}"):
                    scored[backend], found[backend] = self._score(runner)
            for backend, runner in runners.items():
                if backend != "pytorch" and "pytorch" in runners:
                    with self._attempt(f"parity of {title_of(backend)}"):
                        report = self._compare(runners["pytorch"], runner)
                        self._note_failed_levels(backend, report)
                        if backend in scored:
                            scored[backend] = dataclasses.replace(scored[backend], parity=report)
        finally:
            for backend, runner in runners.items():
                with self._attempt(f"close {title_of(backend)}", told=False):
                    runner.close()
        bench = None
        with self._attempt("measure", told=False):
            bench = self._measure(scored)
        drawn = "onnxruntime" if "onnxruntime" in found else next(iter(found), "")
        pictures = self._draw(shown, found.get(drawn, []))
        return DetectorResult(
            title=self.title,
            checkpoint=self._checkpoint,
            recorded=self._recorded_numbers(),
            backends=tuple(scored.values()),
            engine=engine,
            pictures=tuple(pictures),
            bench=bench,
            drawn=drawn,
            failed=self._failed,
        )

    @contextmanager
    def _attempt(self, name: str, *, told: bool = True) -> Iterator[Outcome]:
        """A step whose failure is noted."""
        if told:
            self._step(name)
        with caught() as outcome:
            yield outcome
        if outcome.failure:
            self._failed[name] = outcome.failure

    def _note_failed_levels(self, backend: str, report: ParityReport) -> None:
        for level, failure in report.failed.items():
            self._failed[f"parity of {title_of(backend)}, {level}"] = failure

    def _export(self) -> None:
        """The TorchScript file and the ONNX file."""
        from carafe_deploy.graph.options import ExportOptions

        options = ExportOptions()
        name, source = self._loaded.name, self._loaded.source
        with self._attempt("export to TorchScript"):
            from carafe_deploy.graph.torchscript_export import export_torchscript

            path = self._output / f"{name}.ts"
            export_torchscript(self._detector, path, options, name=name, source=source)
            self._files["torchscript"] = path
        with self._attempt("export to ONNX"):
            from carafe_deploy.graph.onnx_export import export_onnx

            path = self._output / f"{name}.onnx"
            export_onnx(self._detector, path, options, name=name, source=source)
            self._files["onnxruntime"] = path

    def _build_engine(self, runners: dict[str, Runner]) -> EngineResult:
        """Build with TensorRT, or TensorRT-RTX; if there is a GPU, add it to the runners."""
        result = EngineResult("", None, 0.0, 0, 0, "")
        if "onnxruntime" not in self._files:
            return dataclasses.replace(result, reason="there is no ONNX file")
        model = self._files["onnxruntime"]
        name = "build an engine"
        with self._attempt(name) as attempt:
            path = model.with_suffix(".engine")
            sidecar = build_engine(model, path, BuildOptions(max=ENGINE_MAX))
            self._files[sidecar.flavour] = path
            result = EngineResult(
                backend=sidecar.flavour,
                file=path,
                seconds=sidecar.build["seconds"],
                custom_nodes=len(sidecar.plugin.layers) if sidecar.plugin else 0,
                plugin_layers=sidecar.layers.get("PLUGIN_V3", 0),
                reason="",
            )
            runners[sidecar.flavour] = open_runner(path)
        if attempt.failure is None:
            return result
        if attempt.failure.lacking:
            del self._failed[name]  # engines are for machines with a GPU
        return dataclasses.replace(result, reason=attempt.failure.reason)

    def _score(self, runner: Runner) -> tuple[BackendResult, list[Detections]]:
        """AP of one artefact, and its detections image by image."""
        begun = time.perf_counter()
        result, found = evaluate_runner(
            runner,
            data_path("shapes", "val.json"),
            data_path("shapes", "val"),
            max_dets=MAX_DETS,
            progress=self._progress,
        )
        seconds = (time.perf_counter() - begun) / len(found)
        matched, recorded = self._matched(found)
        backend = BackendResult(
            backend=runner.backend,
            file=self._files[runner.backend],
            numbers={
                kind: {name: numbers[name] or 0.0 for name in _NUMBERS.values()}
                for kind, numbers in result.numbers.items()
            },
            matched=matched,
            recorded=recorded,
            seconds=seconds,
        )
        return backend, list(found.values())

    def _compare(self, reference: Runner, candidate: Runner) -> ParityReport:
        """Operators, stages and detections."""
        return run_parity(
            reference,
            candidate,
            images=[load_image(path) for path in validation_images()[:PARITY_IMAGES]],
            batch_size=PARITY_BATCH,
            mixed_sizes=True,
            progress=lambda level, done, total: self._progress(done, total),
        )

    def _measure(self, scored: Mapping[str, BackendResult]) -> BenchResult:
        """All artefacts side by side, with the AP that they have been found to have."""
        images = {path.name: load_image(path) for path in validation_images()[:PARITY_IMAGES]}
        result = run_bench(
            list(self._files.values()),
            images,
            BENCH,
            step=lambda name: self._step(f"measure: {name}"),
            progress=self._progress,
        )
        subjects = []
        for subject in result.subjects:
            if subject.status == "failed":
                self._failed[f"measure {subject.name}"] = Failure(subject.reason)
            if subject.backend in scored:
                numbers = scored[subject.backend].numbers
                ap = {kind: of_kind["AP"] for kind, of_kind in numbers.items()}
                subject = dataclasses.replace(subject, ap=ap)
            subjects.append(subject)
        return dataclasses.replace(result, subjects=tuple(subjects))

    def _draw(self, shown: Mapping[Path, Image], found: list[Detections]) -> list[Path]:
        """Files with the detections drawn on the images."""
        self._step("draw")
        classes = self._detector.config.classes
        paths = []
        for (path, image), detections in zip(shown.items(), found, strict=False):
            picture = draw_enlarged(image, detections, classes, MAGNIFICATION, DRAWN_SCORE)
            paths.append(self._folder / path.name)
            save_image(paths[-1], picture)
            self.pictures.append(picture)
        return paths

    def _recorded_numbers(self) -> Numbers:
        """mmdetection's AP."""
        path = data_path("shapes", f"{self._loaded.name}.metrics.json")
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return {
            kind: {name: numbers[theirs] for theirs, name in _NUMBERS.items()}
            for kind, numbers in metrics.items()
        }

    def _matched(self, found: Mapping[int, Detections]) -> tuple[int, int]:
        """How many of mmdetection's detections were found again, and how many there are."""
        masks = self._detector.config.mask is not None
        recorded = from_results(
            data_path("shapes", f"{self._loaded.name}.val.{'segm' if masks else 'bbox'}.json"),
            load_annotations(data_path("shapes", "val.json")),
            self._detector.config.classes,
        )
        matches = [
            match_detections(
                recorded[image_id],
                detections,
                iou=tolerance("detections", "iou").value,
                score=tolerance("detections", "score").value,
                mask_iou=tolerance("detections", "mask_iou").value if masks else None,
            )
            for image_id, detections in found.items()
        ]
        total = sum(len(recorded[image_id]) for image_id in found)
        return sum(match.matched for match in matches), total
