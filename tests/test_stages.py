"""Names of intermediate tensors: their order, and which parameters lie before each."""

from __future__ import annotations

import pytest
import torch

from carafe_deploy.errors import ArtefactError
from carafe_deploy.models.config import (
    BackboneConfig,
    DetectorConfig,
    MaskHeadConfig,
    UpsampleConfig,
)
from carafe_deploy.models.detector import Detector, stage_names
from carafe_deploy.stages import DETECTIONS, IMAGES, Stage, describe_stages, detector_stages
from tests.parity.test_compatible import OLDER

CONFIGS = {
    "faster": DetectorConfig(),
    "mask": DetectorConfig(mask=MaskHeadConfig()),
    "small": DetectorConfig(BackboneConfig(18, 8), mask=MaskHeadConfig(num_convs=1)),
    "bare": DetectorConfig(BackboneConfig(34, 8), mask=MaskHeadConfig(num_convs=0)),
    "groups": DetectorConfig(mask=MaskHeadConfig(upsample=UpsampleConfig(up_group=2))),
}


def _keys(config: DetectorConfig) -> list[str]:
    with torch.device("meta"):
        return list(Detector(config).state_dict())


def _listing(key: str, stages: tuple[Stage, ...]) -> list[str]:
    """The stages that list a parameter."""
    return [
        stage.name
        for stage in stages
        if any(f"{key}.".startswith(f"{prefix}.") for prefix in stage.parameters)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_lies_before_a_stage(name: str) -> None:
    stages = describe_stages(stage_names(CONFIGS[name]))
    keys = _keys(CONFIGS[name])
    for key in keys:
        # The RPN has the same weights on every level.
        assert len(_listing(key, stages)) == (5 if key.startswith("rpn_head.") else 1), key
    used = {prefix for stage in stages for prefix in stage.parameters}
    assert {prefix for prefix in used if any(key.startswith(prefix) for key in keys)} == used


@pytest.mark.parametrize("name", CONFIGS)
def test_names_in_any_order_tell_which_detector_it_is(name: str) -> None:
    names = stage_names(CONFIGS[name])
    described = describe_stages(reversed(names))
    assert tuple(stage.name for stage in described if stage.name != DETECTIONS) == names
    seen = {IMAGES}
    for stage in described:
        assert seen.issuperset(stage.sources)
        seen.add(stage.name)


def test_what_lies_between() -> None:
    found = {stage.name: stage for stage in describe_stages(stage_names(CONFIGS["mask"]))}
    assert found["layer3.4"].sources == ("layer3.3",)
    assert found["C4"].parameters == ("backbone.layer3.5",)
    assert found["layer4.0"].sources == found["L4"].sources == ("C4",)
    assert found["L6"].sources == ("C5",)
    assert found["encoder3"].sources == ("L6",)
    assert found["encoder1"].sources == ("L4", "carafe2")
    assert found["carafe1"].sources == ("encoder1", "L4", "carafe2")
    assert (found["carafe1"].parameters, found["carafe1"].operators) == ((), ("CarafeEncoded",))
    assert found["P2"].sources == ("L2", "carafe0")
    assert found["P6"].sources == ("L6",)
    assert found["mask_roi_features"].sources == ("detections", "P2", "P3", "P4", "P5")
    assert found["mask_carafe"].sources == ("mask_coarse_logits", "mask_encoder")
    assert found["mask_logits"].parameters == ("roi_head.mask_head.conv_logits.bias",)
    groups = {stage.name: stage for stage in describe_stages(stage_names(CONFIGS["groups"]))}
    assert groups["mask_carafe"].sources == ("mask_conv4", "mask_encoder")
    assert groups["mask_logits"].parameters == ("roi_head.mask_head.conv_logits",)


def test_of_older_artefacts_more_lies_between() -> None:
    stages = describe_stages(OLDER)
    found = {stage.name: stage for stage in stages}
    assert found["C2"].sources == (IMAGES,)
    assert found["C2"].parameters == ("backbone.layer1", "backbone.conv1", "backbone.bn1")
    assert found["carafe3"].sources == ("C5",)
    assert found["carafe3"].parameters == ("neck.upsample_modules.3", "neck.lateral_convs.4")
    assert found["cls_score"].sources == ("proposals", "P2", "P3", "P4", "P5")
    assert found["cls_score"].operators == ("MultilevelRoiAlign",)
    assert found["mask_logits"].sources == ("detections", "P2", "P3", "P4", "P5")
    keys = _keys(CONFIGS["mask"])
    assert [key for key in keys if not _listing(key, stages)] == []


def test_unknown_names_are_an_error() -> None:
    with pytest.raises(ArtefactError, match=r"stage 'P7' is unknown: .* export it again"):
        describe_stages(["C2", "P7"])


def test_a_detector_without_masks_has_no_stage_of_a_mask_head() -> None:
    names = {stage.name for stage in detector_stages((2, 2, 2, 2), None)}
    assert not any(name.startswith("mask_") for name in names)
