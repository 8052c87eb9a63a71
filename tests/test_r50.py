"""Full-size R-50 detectors with seeded weights: every export against PyTorch, on a real photograph.

Nothing here is downloaded or committed: carafe_deploy/models/seeded.py makes the weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from carafe_deploy.data import data_path
from carafe_deploy.graph.metadata import model_info
from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.images import load_image
from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
from carafe_deploy.models.detector import Detector, StagedDetector
from carafe_deploy.models.seeded import seeded_detector
from carafe_deploy.operators.roi_align import assign_levels
from carafe_deploy.parity import run_parity
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import ModelInfo

pytestmark = pytest.mark.slow

CONFIGS = {"faster": DetectorConfig(), "mask": DetectorConfig(mask=MaskHeadConfig())}
FULL = ((1, 1), (832, 832), (1216, 1216))
STATIC = ExportOptions(*FULL)
DYNAMIC = ExportOptions((1, 2), (64, 1344), (64, 1344))
EXPORTS = {
    "static": (STATIC, "dynamo"),
    "dynamic": (DYNAMIC, "dynamo"),
    "torchscript": (STATIC, "torchscript"),
}


@pytest.fixture(scope="module", autouse=True)
def _many_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_image(data_path("chelsea.png"))


def _info(config: DetectorConfig, options: ExportOptions) -> ModelInfo:
    return model_info(config, options, name="seeded", source={})


@pytest.fixture(scope="module", params=list(CONFIGS))
def detector(request: pytest.FixtureRequest, photograph: np.ndarray) -> Detector:
    config = CONFIGS[request.param]
    batch = Preprocessor(_info(config, STATIC))([photograph])
    assert batch.images.shape == (1, 3, 832, 1216)
    return seeded_detector(
        config, torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)
    )


def _pytorch(detector: Detector, options: ExportOptions) -> PyTorchRunner:
    deployed = deployable(detector, options)
    info = _info(detector.config, options)
    return PyTorchRunner(info, torch.device("cpu"), deployed, StagedDetector(deployed))


def _export(detector: Detector, path: Path, options: ExportOptions, exporter: str) -> None:
    export_onnx(detector, path, options, name="seeded", source={}, exporter=exporter)
    onnx.checker.check_model(str(path), full_check=True)


def test_seeded_weights_detect_many_classes_on_all_levels(
    detector: Detector, photograph: np.ndarray
) -> None:
    with _pytorch(detector, STATIC) as runner:
        batch = Preprocessor(runner.info)([photograph])
        found = runner.run_stages({"images": batch.images, "image_sizes": batch.image_sizes})
    count = int(found["num_dets"][0, 0])
    scores = found["det_scores"][0, :count]
    assert count >= 20
    assert len(set(found["det_classes"][0, :count].tolist())) >= 5
    levels = assign_levels(torch.from_numpy(found["proposals"][0]), 4, 56)
    assert set(levels.tolist()) == {0, 1, 2, 3}
    assert np.abs(scores - 0.05).min() > 2e-4
    with_gap = (scores[:-1] - scores[1:]) > 2e-4
    assert with_gap.mean() > 0.8


@pytest.fixture(scope="module", params=list(EXPORTS))
def exported(
    request: pytest.FixtureRequest, detector: Detector, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Detector, str, Path]:
    options, exporter = EXPORTS[request.param]
    path = tmp_path_factory.mktemp("r50") / f"{request.param}.onnx"
    _export(detector, path, options, exporter)
    return detector, request.param, path


def test_onnxruntime_detects_what_pytorch_does_at_full_size(
    exported: tuple[Detector, str, Path], photograph: np.ndarray
) -> None:
    detector, kind, path = exported
    options, _ = EXPORTS[kind]
    with _pytorch(detector, options) as reference, OnnxRuntimeRunner(path) as candidate:
        report = run_parity(reference, candidate, levels=("detections",), images=[photograph])
    assert report.passed, report


@pytest.mark.parametrize("exported", ["dynamic"], indirect=True)
def test_dynamic_file_takes_other_sizes_and_batches(
    exported: tuple[Detector, str, Path], photograph: np.ndarray
) -> None:
    detector, _, path = exported
    tall = np.ascontiguousarray(np.rot90(photograph))[:, 40:260]
    with _pytorch(detector, DYNAMIC) as reference, OnnxRuntimeRunner(path) as candidate:
        sizes = Preprocessor(reference.info)([tall]).images.shape[2:]
        assert sizes not in ((832, 1216), (1216, 832))
        for images, batch_size in (([tall], 1), ([photograph, tall], 2)):
            report = run_parity(
                reference, candidate, levels=("detections",), images=images, batch_size=batch_size
            )
            assert report.passed, report


def test_half_precision_stages_match_pytorch_half(
    detector: Detector, photograph: np.ndarray, tmp_path: Path
) -> None:
    # Small, since PyTorch's half convolutions on the CPU are slow.
    options = dataclasses.replace(
        STATIC, height=(192, 192), width=(256, 256), precision="fp16", max_detections=20
    )
    path = tmp_path / "half.onnx"
    _export(detector, path, options, "dynamo")
    with _pytorch(detector, options) as reference, OnnxRuntimeRunner(path) as candidate:
        report = run_parity(reference, candidate, levels=("stages",), images=[photograph])
    assert report.passed, report
