"""The small Faster R-CNN in every form that runs without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from carafe_deploy.graph.options import ExportOptions

CHECKPOINT = "shapes_faster_rcnn_carafe-2a9d7f44.pth"
STATIC = ExportOptions((1, 1), (64, 64), (128, 128))


@pytest.fixture(scope="session")
def shapes_files(shapes_dir: Path, export: Callable[..., Path]) -> dict[str, Path]:
    """Files by backend, of batch 1 and 64x128 pixels; the checkpoint takes anything."""
    return {
        "pytorch": shapes_dir / CHECKPOINT,
        "torchscript": export("faster", ".ts", STATIC),
        "onnxruntime": export("faster", ".onnx", STATIC, exporter="torchscript"),
    }
