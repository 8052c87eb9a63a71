"""Export options: bounds, ranges, and how they change a detector's config."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from carafe_deploy.errors import ExportError
from carafe_deploy.graph.metadata import model_info, record_operators, reference_shape
from carafe_deploy.graph.options import ExportOptions, deployable, padded_limits
from carafe_deploy.models.config import BackboneConfig, DetectorConfig, MaskHeadConfig
from carafe_deploy.models.detector import build_detector
from carafe_deploy.types import ModelInfo

CONFIG = DetectorConfig(BackboneConfig(18, 8), classes=("a", "b"))


def test_default_bounds_reach_the_padded_long_edge_on_both_axes() -> None:
    bounds = ExportOptions().input_format(CONFIG)
    assert padded_limits(CONFIG) == (832, 1344)
    assert (bounds.batch, bounds.height, bounds.width) == ((1, 8), (64, 1344), (64, 1344))
    assert not bounds.is_static


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": (100, 128)}, "height 100 is not a multiple of 64: use 128"),
        ({"width": (64, 1000)}, "width 1000 is not a multiple of 64: use 1024"),
        ({"batch": (0, 4)}, "batch bounds are 0 to 4"),
        ({"height": (128, 64)}, "height bounds are 128 to 64"),
    ],
)
def test_impossible_bounds_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        dataclasses.replace(ExportOptions(), **change).input_format(CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8': choose from fp32, fp16, bf16"),
        ({"score_threshold": 1.5}, "score threshold is 1.5"),
        ({"nms_iou_threshold": -0.1}, "NMS IoU threshold is -0.1"),
        ({"max_detections": 0}, "maximum number of detections is 0: give 1 to 2000"),
        ({"max_detections": 2001}, "maximum number of detections is 2001"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        dataclasses.replace(ExportOptions(), **change).apply(CONFIG)


def test_settings_left_out_keep_the_config() -> None:
    assert ExportOptions().apply(CONFIG) == CONFIG
    changed = ExportOptions(score_threshold=0.0, max_detections=7).apply(CONFIG)
    assert (changed.box.score_threshold, changed.box.max_detections) == (0.0, 7)
    assert changed.box.nms_iou_threshold == CONFIG.box.nms_iou_threshold


def test_deployable_leaves_the_original_alone() -> None:
    detector = build_detector(CONFIG)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    deployed = deployable(detector, ExportOptions(precision="fp16", max_detections=3))
    after = detector.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert detector.roi_head.detection_selector.config.max_detections == 100
    assert deployed.roi_head.detection_selector.config.max_detections == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert {parameter.dtype for parameter in deployed.parameters()} == {torch.float16}
    constants = {b.dtype for b in deployed.buffers() if b.is_floating_point()}
    assert constants == {torch.float32}


def test_metadata_survives_json_and_names_every_operator_call() -> None:
    config = dataclasses.replace(CONFIG, mask=MaskHeadConfig())
    options = ExportOptions((1, 1), (128, 128), (192, 192), uint8_input=True)
    info = model_info(config, options, name="toy", source={"file": "toy.pth", "sha256": "00"})
    assert ModelInfo.from_json(info.to_json(), "it") == info
    assert [call.name for call in info.operators] == [
        *["carafe_encoded"] * 4,
        "rpn_candidates",
        "batched_nms",
        "multilevel_roi_align",
        "box_candidates",
        "batched_nms",
        "multilevel_roi_align",
        "carafe_encoded",
    ]
    # P6 of a 128x192 image is 2x3; the mask head upsamples one channel of 100 RoIs.
    assert info.operators[0].shapes == ((1, 256, 2, 3), (1, 100, 2, 3))
    assert info.operators[-1].shapes == ((100, 1, 14, 14), (100, 100, 14, 14))
    assert info.input_specs[0].shape == (1, 128, 192, 3)
    assert info.output_names[-1] == "det_masks"
    assert info.output_specs[-1].shape == (1, 100, 28, 28)


def test_operators_are_recorded_without_computing() -> None:
    # At this size the features alone would take 40 GB.
    calls = record_operators(CONFIG, 16, 8192, 8192)
    assert calls[3].shapes[0] == (16, 256, 1024, 1024)


def test_reference_shape_stays_within_bounds() -> None:
    bounds = ExportOptions((2, 4), (64, 320), (1408, 2048)).input_format(CONFIG)
    assert reference_shape(CONFIG, bounds) == (2, 320, 1408)
