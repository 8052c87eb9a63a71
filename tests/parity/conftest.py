"""The small Mask R-CNN and two of its images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.images import Image, load_image
from carafe_deploy.runners.base import Runner

CHECKPOINT = "shapes_mask_rcnn_carafe-fbec7e06.pth"


@pytest.fixture(scope="module")
def checkpoint(shapes_dir: Path) -> Path:
    return shapes_dir / CHECKPOINT


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Runner:
    return open_runner(checkpoint)


@pytest.fixture(scope="module")
def val(shapes_dir: Path) -> Path:
    return shapes_dir / "val.json"


@pytest.fixture(scope="module")
def images(shapes_dir: Path, val: Path) -> list[Image]:
    names = [entry["file_name"] for entry in json.loads(val.read_text())["images"][:2]]
    return [load_image(shapes_dir / "val" / name) for name in names]
