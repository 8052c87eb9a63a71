"""Preprocessing and class names, as the three schemas write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.models.config_text import parse_config
from carafe_deploy.models.mmdet_config import detector_config
from carafe_deploy.types import Preprocessing

Shapes = dict[str, tuple[int, ...]]
KeyShapes = Callable[[str], Shapes]
Change = Callable[[dict[str, Any], str, Any], dict[str, Any]]

PIPELINE = "test_dataloader.dataset.pipeline"
BAD_STEPS: list[tuple[str, Any, str]] = [
    (f"{PIPELINE}.1.keep_ratio", False, r"pipeline\[1\]\.keep_ratio=False .* True"),
    (f"{PIPELINE}.1.scale", [(1333, 800), (1333, 600)], r"\.scale=.* one pair of positive"),
    (f"{PIPELINE}.1.scale", 800, r"\.scale=800"),
    (f"{PIPELINE}.1.scale_factor", 0.5, r"\.scale_factor=0\.5"),
    (f"{PIPELINE}.1.interpolation", "nearest", r"\.interpolation='nearest' .* 'bilinear'"),
    (f"{PIPELINE}.1", {"type": "FixShapeResize"}, r"\.type='FixShapeResize'"),
    (f"{PIPELINE}.1", {"type": "LoadAnnotations"}, r"pipeline has no Resize"),
    (f"{PIPELINE}.1", {"type": "Pad", "size_divisor": 32}, r"pads before Normalize"),
    (f"{PIPELINE}.2", {"type": "RandomFlip", "prob": 0.5}, r"\.prob=0\.5 .* 0"),
    (f"{PIPELINE}.0.to_float32", True, r"\.to_float32=True .* False"),
    (f"{PIPELINE}.0.imdecode_backend", "pillow", r"\.imdecode_backend='pillow' .* 'cv2'"),
    (
        f"{PIPELINE}.2",
        {"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]},
        "and so does data_preprocessor",
    ),
    ("test_dataloader.dataset.pipeline", "x", r"pipeline='x' is not a list of steps"),
    ("model.data_preprocessor", None, r"has no Normalize, and the model no data_preprocessor"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_STEPS)
def test_unsupported_pipelines(
    changed: Change,
    config_3x: dict[str, Any],
    r50_shapes: Shapes,
    path: str,
    value: Any,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        detector_config(changed(config_3x, path, value), r50_shapes)


AUGMENTED = "data.test.pipeline.1"
BAD_OLD_STEPS: list[tuple[str, Any, str]] = [
    (f"{AUGMENTED}.flip", True, r"\.flip=True .* False"),
    (f"{AUGMENTED}.img_scale", [(1333, 800), (1000, 600)], r"\.img_scale=.* one pair"),
    (f"{AUGMENTED}.scale_factor", 2.0, r"\.scale_factor=2\.0"),
    (f"{AUGMENTED}.transforms.0.keep_ratio", False, r"transforms\[0\]\.keep_ratio=False"),
    (f"{AUGMENTED}.transforms.3.pad_val", 114, r"\.pad_val=114 .* 0"),
    (f"{AUGMENTED}.transforms.3.size", (800, 800), r"\.size=\(800, 800\)"),
    (f"{AUGMENTED}.transforms", None, r"transforms=None is not a list"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_OLD_STEPS)
def test_unsupported_pipelines_of_2x(
    changed: Change,
    config_2x: dict[str, Any],
    r50_shapes: Shapes,
    path: str,
    value: Any,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        detector_config(changed(config_2x, path, value), r50_shapes)


def test_preprocessing_of_2x_is_read(config_2x: dict[str, Any], r50_shapes: Shapes) -> None:
    steps = config_2x["data"]["test"]["pipeline"][1]
    steps["img_scale"] = [(600, 1000)]
    steps["transforms"][2] = dict(type="Normalize", mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)
    steps["transforms"][3] = dict(type="Pad", size_divisor=32)
    config, _ = detector_config(config_2x, r50_shapes)
    assert config.preprocessing == Preprocessing((1000, 600), (1, 2, 3), (4, 5, 6), False, 32)


def test_preprocessor_beside_the_model(config_3x: dict[str, Any], r50_shapes: Shapes) -> None:
    config_3x["data_preprocessor"] = config_3x["model"].pop("data_preprocessor")
    assert detector_config(config_3x, r50_shapes)[0].preprocessing == Preprocessing()


def test_no_normalisation_in_3x(config_3x: dict[str, Any], r50_shapes: Shapes) -> None:
    config_3x["model"]["data_preprocessor"] = dict(type="DetDataPreprocessor", pad_size_divisor=64)
    config, _ = detector_config(config_3x, r50_shapes)
    assert config.preprocessing == Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), bgr_to_rgb=False)


def test_datasets_in_a_wrapper(config_3x: dict[str, Any], r50_shapes: Shapes) -> None:
    dataset = config_3x["test_dataloader"]["dataset"]
    dataset["pipeline"][1]["scale"] = (640, 480)
    config_3x["test_dataloader"]["dataset"] = {
        "type": "ConcatDataset",
        "datasets": [dataset, dataset],
    }
    assert detector_config(config_3x, r50_shapes)[0].preprocessing.scale == (640, 480)


def test_datasets_that_differ(config_3x: dict[str, Any], r50_shapes: Shapes) -> None:
    dataset = config_3x["test_dataloader"]["dataset"]
    config_3x["test_dataloader"]["dataset"] = {"datasets": [dataset, {"pipeline": []}]}
    with pytest.raises(ConfigError, match="datasets with different pipelines"):
        detector_config(config_3x, r50_shapes)


NAMES = tuple("abc")
WHERE_NAMES_ARE: list[tuple[dict[str, Any], tuple[str, ...] | None]] = [
    ({"test_dataloader": {"dataset": {"metainfo": {"classes": NAMES}}}}, None),
    ({"test_dataloader": {"dataset": {"metainfo": {"CLASSES": list(NAMES)}}}}, None),
    ({"data": {"test": {"classes": NAMES}}}, None),
    ({"metainfo": {"classes": NAMES}}, None),
    ({"classes": NAMES}, None),
    ({"classes": NAMES}, ("x", "y", "z")),
    ({}, NAMES),
]


@pytest.mark.parametrize(("where", "stored"), WHERE_NAMES_ARE)
def test_class_names(
    shapes_configs: dict[str, str],
    key_shapes: KeyShapes,
    where: dict[str, Any],
    stored: tuple[str, ...] | None,
) -> None:
    cfg = parse_config(shapes_configs["shapes_mask_rcnn_carafe"])
    bare = {"model": cfg["model"], "test_pipeline": cfg["test_pipeline"], **where}
    config, notes = detector_config(bare, key_shapes("shapes_mask_rcnn_carafe"), stored)
    assert config.classes == NAMES
    assert notes == ()


def test_classes_without_names(key_shapes: KeyShapes) -> None:
    config, notes = detector_config(None, key_shapes("shapes_mask_rcnn_carafe"))
    assert config.classes == ("class_0", "class_1", "class_2")
    assert "no class names: classes are called class_0 to class_2" in notes


def test_names_for_another_number_of_classes(key_shapes: KeyShapes) -> None:
    with pytest.raises(
        CheckpointError, match=r"metadata names 2 classes \(\('a', 'b'\)\), .* weights have 3"
    ):
        detector_config(None, key_shapes("shapes_mask_rcnn_carafe"), ["a", "b"])


def test_names_that_are_none(key_shapes: KeyShapes) -> None:
    with pytest.raises(ConfigError, match=r"metadata=\[1, 2, 3\] is not a list of class names"):
        detector_config(None, key_shapes("shapes_mask_rcnn_carafe"), [1, 2, 3])  # type: ignore
