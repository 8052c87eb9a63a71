"""The small Faster R-CNN in every form that runs without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.graph.torchscript_export import export_torchscript
from carafe_deploy.models.checkpoint import load_detector

CHECKPOINT = "shapes_faster_rcnn_carafe-2a9d7f44.pth"
STATIC = ExportOptions((1, 1), (64, 64), (128, 128))


@pytest.fixture(scope="session")
def shapes_files(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by backend, of batch 1 and 64x128 pixels; the checkpoint takes anything."""
    folder = tmp_path_factory.mktemp("artefacts")
    detector, _ = load_detector(shapes_dir / CHECKPOINT)
    found = {
        "pytorch": shapes_dir / CHECKPOINT,
        "torchscript": folder / "toy.ts",
        "onnxruntime": folder / "toy.onnx",
    }
    export_torchscript(detector, found["torchscript"], STATIC, name="toy", source={})
    export_onnx(
        detector, found["onnxruntime"], STATIC, name="toy", source={}, exporter="torchscript"
    )
    return found
