"""The whole way on two small detectors: export, build, detect, draw, compare, score, measure."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import onnxruntime

from carafe_deploy.artefacts import open_runner
from carafe_deploy.bench.record import BenchResult
from carafe_deploy.bench.run import BenchOptions, run_bench
from carafe_deploy.coco import from_results, load_annotations
from carafe_deploy.data import data_path
from carafe_deploy.engine.build import BuildOptions, build_engine
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.evaluate import evaluate_runner
from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.graph.torchscript_export import export_torchscript
from carafe_deploy.images import load_image, save_image
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.parity import ParityReport, match_detections, run_parity
from carafe_deploy.pictures import contact_sheet, draw_enlarged, enlarge_image
from carafe_deploy.runners._torch import torch_threads
from carafe_deploy.runners.base import TITLES, Runner
from carafe_deploy.types import ARCHITECTURES, Detections

__all__ = [
    "AP_LIMIT",
    "BACKENDS",
    "CHECKPOINTS",
    "FOUND_IOU",
    "FOUND_MASK_IOU",
    "FOUND_SCORE",
    "MATCHED_LIMIT",
    "BackendResult",
    "DemoResult",
    "DetectorResult",
    "EngineResult",
    "run_demo",
]

#: Of `data/shapes`.
CHECKPOINTS = (
    "shapes_faster_rcnn_carafe-2a9d7f44.pth",
    "shapes_mask_rcnn_carafe-fbec7e06.pth",
)
#: Largest accepted difference of an AP from mmdetection's.
AP_LIMIT = 1e-3
#: Smallest accepted share of mmdetection's detections that are found again ...
MATCHED_LIMIT = 0.995
#: ... which is: same class, IoU and mask IoU at least, and score within.
FOUND_IOU, FOUND_MASK_IOU, FOUND_SCORE = 0.99, 0.98, 1e-3
#: Detections with at least this score are drawn.
DRAWN_SCORE = 0.5
#: The first so many images are drawn.
PICTURES = 5
#: They have 0.02 megapixels, too few for names and scores.
MAGNIFICATION = 3
#: Images that stages and detections are compared on, two a run, so that sizes are mixed.
PARITY_IMAGES = 8
PARITY_BATCH = 2
#: As mmdetection counted: AP at 100 detections an image, AP50 and AP75 at 1000.
MAX_DETS = (100, 300, 1000)

#: Largest input of the engines: batch, height and width that hold every image.
ENGINE_MAX = (PARITY_BATCH, 192, 192)

#: Names of runners for people.
BACKENDS = TITLES
#: A short measurement: the report is to show what there is, not to settle it.
BENCH = BenchOptions(rounds=8, batch_sizes=(1, 4), threads=1, cold=False, layers=3)
#: mmdetection's name of a number -> COCO's.
_NUMBERS = {"mAP": "AP", "mAP50": "AP50", "mAP75": "AP75"}

#: AP, AP50 and AP75 by "bbox" and "segm".
Numbers = Mapping[str, Mapping[str, float]]
Step = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BackendResult:
    """One artefact on the validation images.

    Attributes:
        backend: name of the runner.
        file: the artefact.
        numbers: its AP.
        matched: detections recorded by mmdetection that were found again, see ``FOUND_IOU``.
        recorded: how many mmdetection recorded.
        seconds: for one image, from reading its file to its encoded masks.
    """

    backend: str
    file: Path
    numbers: Numbers
    matched: int
    recorded: int
    seconds: float


@dataclass(frozen=True)
class EngineResult:
    """The engine of one detector, built ahead of time.

    Attributes:
        backend: name of the runner; empty if nothing here builds engines.
        file: the engine; None if it was not built.
        seconds: the build took.
        custom_nodes: of the ONNX file.
        plugin_layers: that became of them.
        reason: why it was not built, or built and not run; empty for an engine that ran.
    """

    backend: str
    file: Path | None
    seconds: float
    custom_nodes: int
    plugin_layers: int
    reason: str


@dataclass(frozen=True)
class DetectorResult:
    """One detector.

    Attributes:
        title: for people.
        checkpoint: all artefacts were made from it.
        recorded: mmdetection's AP.
        backends: PyTorch, TorchScript, ONNX Runtime and, if it ran, the engine.
        parity: of all but PyTorch, with PyTorch as reference.
        engine: built for GPUs, run where there is one.
        pictures: what ONNX Runtime found, drawn.
        bench: all artefacts measured side by side; None if they were not.
    """

    title: str
    checkpoint: Path
    recorded: Numbers
    backends: tuple[BackendResult, ...]
    parity: tuple[ParityReport, ...]
    engine: EngineResult
    pictures: tuple[Path, ...]
    bench: BenchResult | None = None

    def deviation(self, backend: BackendResult) -> float:
        """Largest difference between a backend's AP, AP50, AP75 and mmdetection's."""
        return max(
            abs(backend.numbers[kind][name] - value)
            for kind, numbers in self.recorded.items()
            for name, value in numbers.items()
        )

    def agrees(self, backend: BackendResult) -> bool:
        """A backend has mmdetection's AP and finds its detections."""
        found = backend.recorded > 0 and backend.matched >= MATCHED_LIMIT * backend.recorded
        return found and self.deviation(backend) <= AP_LIMIT

    @property
    def passed(self) -> bool:
        """All backends agree with mmdetection and with PyTorch."""
        return all(report.passed for report in self.parity) and all(
            self.agrees(backend) for backend in self.backends
        )


@dataclass(frozen=True)
class DemoResult:
    """All detectors.

    Attributes:
        detectors: in the order of the contact sheet's rows.
        images: how many were evaluated.
        sheet: contact sheet of the images and what each detector finds in them.
        versions: of packages, by name.
        seconds: the demo took.
    """

    detectors: tuple[DetectorResult, ...]
    images: int
    sheet: Path
    versions: Mapping[str, str]
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing deviates."""
        return all(detector.passed for detector in self.detectors)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable content; measurements have files of their own."""
        data = dataclasses.asdict(self)
        for detector, entry in zip(self.detectors, data["detectors"], strict=True):
            del entry["bench"]
            entry["passed"] = detector.passed
            entry["parity"] = [json.loads(report.to_json()) for report in detector.parity]
        text = json.dumps({"passed": self.passed, **data}, default=str)
        plain: dict[str, Any] = json.loads(text)
        return plain


def run_demo(
    output: Path,
    *,
    checkpoints: Sequence[str] = CHECKPOINTS,
    limit: int | None = None,
    step: Step = lambda name: None,
    progress: Progress = lambda done, total: None,
) -> DemoResult:
    """Run everything on the detectors and images that come with the package.

    Args:
        output: folder for artefacts and pictures.
        checkpoints: file names in ``data/shapes``.
        limit: evaluate on the first images only, whose AP differs from mmdetection's on all.
        step: told the name of each step as it begins.
        progress: within a step, told the images done and their total.

    Raises:
        CarafeDeployError: the folder cannot be written, or a data file is missing.
    """
    begun = time.perf_counter()
    images = _images()
    drawn = {path: load_image(path) for path in images[:PICTURES]}
    rows = [("input", [enlarge_image(image, MAGNIFICATION) for image in drawn.values()])]
    detectors = []
    versions: Mapping[str, str] = {}
    with torch_threads(1):
        for name in checkpoints:
            job = _Job(data_path("shapes", name), output, step)
            with ExitStack() as stack:
                runners = [stack.enter_context(open_runner(path)) for path in job.export()]
                info = runners[-1].info
                engine, opened = job.build_engine()
                if opened is not None:
                    runners.append(stack.enter_context(opened))
                scored = [job.score(runner, limit, progress) for runner in runners]
                parity = [job.compare(runners[0], runner, progress) for runner in runners[1:]]
            bench = job.measure({result.backend: result for result, _ in scored}, progress)
            step(f"{job.title}: draw")
            [shown] = [found for result, found in scored if result.backend == "onnxruntime"]
            pictures = {
                job.folder / path.name: draw_enlarged(
                    image, found, info.classes, MAGNIFICATION, DRAWN_SCORE
                )
                for (path, image), found in zip(drawn.items(), shown, strict=False)
            }
            for path, picture in pictures.items():
                save_image(path, picture)
            rows.append((job.title, list(pictures.values())))
            versions = info.versions
            detectors.append(
                DetectorResult(
                    title=job.title,
                    checkpoint=job.checkpoint,
                    recorded=job.recorded_numbers(),
                    backends=tuple(backend for backend, _ in scored),
                    parity=tuple(parity),
                    engine=engine,
                    pictures=tuple(pictures),
                    bench=bench,
                )
            )
    step("contact sheet")
    sheet = output / "detections.jpg"
    save_image(sheet, contact_sheet(rows))
    return DemoResult(
        detectors=tuple(detectors),
        images=len(images[:limit]),
        sheet=sheet,
        versions={
            **versions,
            "onnxruntime": onnxruntime.__version__,
            "opencv": cv2.__version__,
        },
        seconds=time.perf_counter() - begun,
    )


def _images() -> list[Path]:
    annotations = load_annotations(data_path("shapes", "val.json"))
    return [data_path("shapes", "val", entry["file_name"]) for entry in annotations["images"]]


class _Job:
    """What is done with one detector."""

    def __init__(self, checkpoint: Path, output: Path, step: Step) -> None:
        self.checkpoint = checkpoint
        self._detector, self._loaded = load_detector(checkpoint)
        self._output = output
        architecture = self._detector.config.architecture
        self.title = ARCHITECTURES[architecture]
        self.folder = output / architecture
        self._files = {"pytorch": checkpoint}
        self._step: Step = lambda name: step(f"{self.title}: {name}")

    def export(self) -> list[Path]:
        """The checkpoint, the TorchScript file and the ONNX file."""
        name, source = self._loaded.name, self._loaded.source
        for kind, suffix, write in (
            ("TorchScript", ".ts", export_torchscript),
            ("ONNX", ".onnx", export_onnx),
        ):
            self._step(f"export to {kind}")
            path = self._output / f"{name}{suffix}"
            write(self._detector, path, ExportOptions(), name=name, source=source)
            self._files["torchscript" if suffix == ".ts" else "onnxruntime"] = path
        return list(self._files.values())

    def build_engine(self) -> tuple[EngineResult, Runner | None]:
        """Build with TensorRT, or TensorRT-RTX, and open it if there is a GPU."""
        model = self._files["onnxruntime"]
        result = EngineResult("", None, 0.0, 0, 0, "")
        try:
            self._step("build an engine")
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
            return result, open_runner(path)
        except BackendUnavailableError as error:
            return dataclasses.replace(result, reason=str(error)), None

    def score(
        self, runner: Runner, limit: int | None, progress: Progress
    ) -> tuple[BackendResult, list[Detections]]:
        """AP of one artefact, and its detections image by image."""
        self._step(f"AP of {BACKENDS[runner.backend]}")
        begun = time.perf_counter()
        result, found = evaluate_runner(
            runner,
            data_path("shapes", "val.json"),
            data_path("shapes", "val"),
            limit=limit,
            max_dets=MAX_DETS,
            progress=progress,
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

    def compare(self, reference: Runner, candidate: Runner, progress: Progress) -> ParityReport:
        """Operators, stages and detections."""
        self._step(f"parity of {BACKENDS[candidate.backend]}")
        return run_parity(
            reference,
            candidate,
            images=[load_image(path) for path in _images()[:PARITY_IMAGES]],
            batch_size=PARITY_BATCH,
            mixed_sizes=True,
            progress=lambda level, done, total: progress(done, total),
        )

    def measure(self, scored: Mapping[str, BackendResult], progress: Progress) -> BenchResult:
        """All artefacts side by side, with the AP that they have been found to have."""
        images = {path.name: load_image(path) for path in _images()[:PARITY_IMAGES]}
        result = run_bench(
            list(self._files.values()),
            images,
            BENCH,
            step=lambda name: self._step(f"measure: {name}"),
            progress=progress,
        )
        subjects = [
            dataclasses.replace(
                subject,
                ap={k: numbers["AP"] for k, numbers in scored[subject.backend].numbers.items()},
            )
            if subject.backend in scored
            else subject
            for subject in result.subjects
        ]
        return dataclasses.replace(result, subjects=tuple(subjects))

    def recorded_numbers(self) -> Numbers:
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
                iou=FOUND_IOU,
                score=FOUND_SCORE,
                mask_iou=FOUND_MASK_IOU if masks else None,
            )
            for image_id, detections in found.items()
        ]
        total = sum(len(recorded[image_id]) for image_id in found)
        return sum(match.matched for match in matches), total
