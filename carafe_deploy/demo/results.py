"""What the demo finds, and the limits that it holds it to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carafe_deploy.bench.record import BenchResult
from carafe_deploy.brief import OneLine
from carafe_deploy.failures import Failure
from carafe_deploy.parity import ParityReport
from carafe_deploy.tolerances import tolerance

#: The first so many images are drawn.
PICTURES = 5
#: They have 0.02 megapixels, too few for names and scores.
MAGNIFICATION = 3
#: Images that stages and detections are compared on.
PARITY_IMAGES = 8
#: AP, AP50 and AP75 by "bbox" and "segm".
Numbers = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, repr=False)
class BackendResult(OneLine):
    """One artefact on the validation images.

    Attributes:
        backend: name of the runner.
        file: the artefact.
        numbers: its AP.
        matched: detections recorded by mmdetection that were found again, by the tolerances
            of detections.
        recorded: how many mmdetection recorded.
        seconds: for one image, from reading its file to its encoded masks.
        parity: with PyTorch as reference; None for PyTorch itself, or where that failed.
    """

    backend: str
    file: Path
    numbers: Numbers
    matched: int
    recorded: int
    seconds: float
    parity: ParityReport | None = None


@dataclass(frozen=True, repr=False)
class EngineResult(OneLine):
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


@dataclass(frozen=True, repr=False)
class DetectorResult(OneLine):
    """One detector.

    Attributes:
        title: for people.
        checkpoint: all artefacts were made from it.
        recorded: mmdetection's AP.
        backends: PyTorch, TorchScript, ONNX Runtime and, if it ran, the engine; those that
            have an AP.
        engine: built for GPUs, run where there is one.
        pictures: what ``drawn`` found, drawn.
        bench: all artefacts measured side by side; None if they were not.
        drawn: name of the runner whose detections are drawn: ONNX Runtime's unless it failed.
        failed: what a backend raised, by the name of the step.
    """

    title: str
    checkpoint: Path
    recorded: Numbers
    backends: tuple[BackendResult, ...]
    engine: EngineResult
    pictures: tuple[Path, ...]
    bench: BenchResult | None = None
    drawn: str = "onnxruntime"
    failed: Mapping[str, Failure] = field(default_factory=dict)

    @property
    def parity(self) -> tuple[ParityReport, ...]:
        """Of all that were compared with PyTorch."""
        return tuple(backend.parity for backend in self.backends if backend.parity is not None)

    def deviation(self, backend: BackendResult) -> float:
        """Largest difference between a backend's AP, AP50, AP75 and mmdetection's."""
        return max(
            abs(backend.numbers[kind][name] - value)
            for kind, numbers in self.recorded.items()
            for name, value in numbers.items()
        )

    def agrees(self, backend: BackendResult) -> bool:
        """A backend has mmdetection's AP and finds its detections."""
        return (
            backend.recorded > 0
            and tolerance("detections", "matched").accepts(backend.matched / backend.recorded)
            and tolerance("ap", "ap").accepts(self.deviation(backend))
        )

    @property
    def passed(self) -> bool:
        """Nothing failed, and all backends agree with mmdetection and with PyTorch."""
        agree = all(map(self.agrees, self.backends))
        return not self.failed and agree and all(report.passed for report in self.parity)


@dataclass(frozen=True, repr=False)
class DemoResult(OneLine):
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
            for backend in entry["backends"]:
                del backend["parity"]
            entry["parity"] = [json.loads(report.to_json()) for report in detector.parity]
        text = json.dumps({"passed": self.passed, **data}, default=str)
        plain: dict[str, Any] = json.loads(text)
        return plain
