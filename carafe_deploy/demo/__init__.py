"""The whole way on two small detectors: export, build, detect, draw, compare, score, measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import cv2

from carafe_deploy import __version__
from carafe_deploy.data import CHECKPOINTS, data_path, validation_images
from carafe_deploy.demo.job import Job, Progress, Step
from carafe_deploy.demo.results import (
    MAGNIFICATION,
    PARITY_IMAGES,
    PICTURES,
    BackendResult,
    DemoResult,
    DetectorResult,
    EngineResult,
    Numbers,
)
from carafe_deploy.images import load_image, save_image
from carafe_deploy.pictures import contact_sheet, enlarge_image
from carafe_deploy.requirements import installed_version
from carafe_deploy.runners._torch import torch_threads

__all__ = [
    "MAGNIFICATION",
    "PARITY_IMAGES",
    "PICTURES",
    "BackendResult",
    "DemoResult",
    "DetectorResult",
    "EngineResult",
    "Numbers",
    "run_demo",
]

#: Distributions that take part.
_PACKAGES = ("numpy", "torch", "torchvision", "onnx", "onnxscript")


def run_demo(
    output: Path,
    *,
    checkpoints: Sequence[str] = CHECKPOINTS,
    step: Step = lambda name: None,
    progress: Progress = lambda done, total: None,
) -> DemoResult:
    """Run everything on the detectors and images that come with the package.

    What a backend raises ends its own steps only; the result names them.

    Args:
        output: folder for artefacts and pictures.
        checkpoints: file names in ``data/shapes``.
        step: told the name of each step as it begins.
        progress: within a step, told the images done and their total.

    Raises:
        CarafeDeployError: the folder cannot be written, or a data file is missing.
    """
    begun = time.perf_counter()
    images = validation_images()
    shown = {path: load_image(path) for path in images[:PICTURES]}
    rows = [("input", [enlarge_image(image, MAGNIFICATION) for image in shown.values()])]
    sheet = output / "detections.jpg"
    save_image(sheet, contact_sheet(rows))  # a folder that cannot be written is told at once
    detectors = []
    with torch_threads(1):
        for name in checkpoints:
            job = Job(data_path("shapes", name), output, step, progress)
            detectors.append(job.run(shown))
            rows += [(job.title, job.pictures)] * bool(job.pictures)
    step("contact sheet")
    save_image(sheet, contact_sheet(rows))
    return DemoResult(
        detectors=tuple(detectors),
        images=len(images),
        sheet=sheet,
        versions=_versions(),
        seconds=time.perf_counter() - begun,
    )


def _versions() -> dict[str, str]:
    found = {name: installed_version(name) for name in _PACKAGES}
    found["onnxruntime"] = installed_version("onnxruntime") or installed_version("onnxruntime-gpu")
    found |= {"carafe_deploy": __version__, "opencv": cv2.__version__}
    return {name: version for name, version in found.items() if version}
