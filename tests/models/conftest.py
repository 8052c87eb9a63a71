"""State_dict key lists recorded from mmdetection, and configs of the same detectors."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.errors import ConfigError
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.config_text import read_config
from carafe_deploy.models.detector import Detector
from carafe_deploy.models.mmdet_config import detector_config

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="session")
def detectors(checkpoints: dict[str, Path]) -> dict[str, Detector]:
    """The small trained detectors; tests that change one take a copy of their own."""
    return {kind: load_detector(path)[0] for kind, path in checkpoints.items()}


@pytest.fixture(scope="session", params=["faster", "mask"])
def detector(request: pytest.FixtureRequest, detectors: dict[str, Detector]) -> Detector:
    """Each of them."""
    return detectors[request.param]


@pytest.fixture(scope="session")
def key_shapes(data_dir: Path) -> Callable[[str], Shapes]:
    """Shapes by key of a recorded model, e.g. ``key_shapes("shapes_mask_rcnn_carafe")``."""

    def read(name: str) -> Shapes:
        lines = (data_dir / f"{name}.keys.txt").read_text().splitlines()
        rows = (line.split("\t") for line in lines)
        return {key: ast.literal_eval(shape) for key, shape, _ in rows}

    return read


@pytest.fixture
def r50_shapes(key_shapes: Callable[[str], Shapes]) -> Shapes:
    """Shapes by key of the R-50 Mask R-CNN."""
    return key_shapes("mask-rcnn_r50_fpn-carafe_1x_coco")


@pytest.fixture
def config_3x(data_dir: Path) -> dict[str, Any]:
    """The official R-50 Mask R-CNN config, in the schema of mmdetection 3.x."""
    return read_config(data_dir / "mask-rcnn_r50_fpn-carafe_1x_coco.resolved.py")


@pytest.fixture
def config_2x(data_dir: Path) -> dict[str, Any]:
    """The same in the schema of 2.28."""
    return read_config(data_dir / "configs/v2_28/mask.py")


@pytest.fixture
def changed() -> Callable[[dict[str, Any], str, Any], dict[str, Any]]:
    """A copy of a config with one value replaced: ``changed(config, "a.b.0.c", value)``."""

    def change(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
        config = copy.deepcopy(config)
        *parents, last = path.split(".")
        target: Any = config
        for part in parents:
            target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
        target[int(last) if last.isdigit() else last] = value
        return config

    return change


@pytest.fixture
def refused(
    changed: Callable[[dict[str, Any], str, Any], dict[str, Any]], r50_shapes: Shapes
) -> Callable[[dict[str, Any], str, Any, str], None]:
    """Checks that a config with one value replaced is refused with a message."""

    def check(config: dict[str, Any], path: str, value: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            detector_config(changed(config, path, value), r50_shapes)

    return check
