"""Whole detectors against mmdetection: keys, stages, detections; and what inference changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carafe_deploy.models.config import (
    BackboneConfig,
    DetectorConfig,
    MaskHeadConfig,
    NeckConfig,
    RpnConfig,
    UpsampleConfig,
)
from carafe_deploy.models.detector import (
    Detector,
    ImageNormalization,
    StagedDetector,
    build_detector,
    prepare_for_inference,
    stage_names,
)
from carafe_deploy.tolerances import tolerance
from carafe_deploy.types import Preprocessing

KINDS = ("faster", "mask")
Detectors = dict[str, Detector]
Recorded = dict[str, dict[str, np.ndarray]]
Stages = dict[tuple[str, str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def recorded(data_dir: Path) -> Recorded:
    """mmdetection's stages by detector; inputs are stored with the Mask R-CNN's only."""
    found = {}
    for kind in KINDS:
        with np.load(data_dir / f"shapes_{kind}_rcnn_carafe.stages.npz") as file:
            found[kind] = dict(file)
    for image in ("img1", "img2"):
        found["faster"][f"{image}/input"] = found["mask"][f"{image}/input"]
    return found


def example(recorded: Recorded, image: str = "img1") -> tuple[Tensor, Tensor]:
    """Network input [1, 3, H, W] and image_sizes [1, 2]."""
    arrays = recorded["mask"]
    size = torch.from_numpy(arrays[f"{image}/img_shape"]).float().unsqueeze(0)
    return torch.from_numpy(arrays[f"{image}/input"]), size


def assert_relative(actual: Any, expected: np.ndarray, kind: str) -> None:
    """Within the table's limit for a stage: largest difference over largest magnitude."""
    values = np.asarray(actual)
    assert values.shape == expected.shape
    error = np.abs(values - expected).max() / np.abs(expected).max()
    assert tolerance("stages", kind).accepts(error), f"relative error {error:.2g}"


# --- keys ----------------------------------------------------------------------------------------

SMALL = DetectorConfig(
    backbone=BackboneConfig(18, 16),
    neck=NeckConfig(32),
    rpn=RpnConfig(feat_channels=32),
    classes=("circle", "square", "triangle"),
)


def listed(state_dict: dict[str, Tensor]) -> list[str]:
    return [
        f"{key}\t{tuple(value.shape)}\t{str(value.dtype).removeprefix('torch.')}"
        for key, value in state_dict.items()
    ]


@pytest.mark.parametrize(("kind", "mask"), [("faster", None), ("mask", MaskHeadConfig())])
def test_keys_shapes_dtypes_and_order_of_the_published_models(
    data_dir: Path, kind: str, mask: MaskHeadConfig | None
) -> None:
    with torch.device("meta"):
        detector = Detector(DetectorConfig(mask=mask))
    name = f"{kind}-rcnn_r50_fpn-carafe_1x_coco.keys.txt"
    assert listed(detector.state_dict()) == (data_dir / name).read_text().splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_keys_shapes_dtypes_and_order_of_the_small_models(
    data_dir: Path, detectors: Detectors, kind: str
) -> None:
    expected = (data_dir / f"shapes_{kind}_rcnn_carafe.keys.txt").read_text().splitlines()
    assert listed(detectors[kind].state_dict()) == expected


# --- stages --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(detectors: Detectors, recorded: Recorded) -> Stages:
    """Every named tensor of ours by detector and image, with one more from inside the neck."""
    found = {}
    for kind, detector in detectors.items():
        staged = StagedDetector(detector)
        seen: dict[str, Tensor] = {}
        handle = detector.neck.upsample_modules[1].register_forward_pre_hook(
            lambda module, arguments, seen=seen: seen.update(carafe1_in=arguments[0])
        )
        for image in ("img1", "img2"):
            outputs = staged(*example(recorded, image))
            names = ("num_dets", "det_boxes", "det_scores", "det_classes", "det_masks")
            tail = len(outputs) - len(staged.stage_names)
            named = dict(zip((*names[:tail], *staged.stage_names), outputs, strict=True))
            found[kind, image] = named | seen
        handle.remove()
    return found


#: Recorded name -> our name and the step of the channels that are recorded.
DENSE = {
    **{f"C{level}": ("backbone", f"C{level}", 1) for level in range(2, 6)},
    **{f"carafe{i}_out": ("pyramid", f"carafe{i}", 4 if i == 0 else 1) for i in range(4)},
    "carafe1_in": ("pyramid", "carafe1_in", 1),
    "carafe1_encoder_out": ("encoder", "encoder1", 1),
    **{f"P{level}": ("pyramid", f"P{level}", 2 if level == 2 else 1) for level in range(2, 7)},
    **{f"rpn_{head}{i}": ("rpn", f"rpn_{head}{i}", 1) for head in ("cls", "reg") for i in range(5)},
}


@pytest.mark.parametrize(
    ("kind", "image", "count"), [("faster", "img1", 25), ("mask", "img1", 25), ("mask", "img2", 17)]
)
def test_dense_stages(
    stages: Stages, recorded: Recorded, kind: str, image: str, count: int
) -> None:
    compared = 0
    for name, (level, ours, step) in DENSE.items():
        expected = recorded[kind].get(f"{image}/{name}")
        if expected is not None:
            assert_relative(stages[kind, image][ours][:, ::step], expected, level)
            compared += 1
    assert compared == count


each_image = pytest.mark.parametrize("image", ["img1", "img2"])
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@each_image
def test_proposals(stages: Stages, recorded: Recorded, kind: str, image: str) -> None:
    boxes = recorded[kind][f"{image}/proposals"]
    scores = recorded[kind][f"{image}/proposal_scores"]
    ours = stages[kind, image]
    assert_relative(ours["proposals"][0, : len(boxes)], boxes, "proposal_boxes")
    np.testing.assert_allclose(ours["proposal_scores"][0, : len(scores)], scores, atol=1e-5)
    assert not ours["proposals"][0, len(boxes) :].any()
    assert not ours["proposal_scores"][0, len(scores) :].any()


@pytest.mark.parametrize(
    ("kind", "image"), [("faster", "img1"), ("mask", "img1"), ("mask", "img2")]
)
def test_box_head_on_the_recorded_proposals(
    detectors: Detectors, stages: Stages, recorded: Recorded, kind: str, image: str
) -> None:
    head = detectors[kind].roi_head
    pyramid = [stages[kind, image][f"P{level}"] for level in range(2, 6)]
    proposals = torch.from_numpy(recorded[kind][f"{image}/proposals"]).unsqueeze(0)
    logits, deltas = head.bbox_head(head._pool(proposals, pyramid, head.config.box))
    assert_relative(logits[0], recorded[kind][f"{image}/cls_score"], "box_head")
    assert_relative(deltas[0], recorded[kind][f"{image}/bbox_pred"], "box_head")


@each_kind
@each_image
def test_detections(stages: Stages, recorded: Recorded, kind: str, image: str) -> None:
    ours, theirs = stages[kind, image], recorded[kind]
    scores = theirs[f"{image}/scores"]
    count = len(scores)
    assert ours["num_dets"].tolist() == [[count]]
    np.testing.assert_allclose(ours["det_scores"][0, :count], scores, atol=1e-5)
    np.testing.assert_array_equal(ours["det_classes"][0, :count], theirs[f"{image}/labels"])
    scale = np.tile(theirs[f"{image}/scale_factor"], 2)
    boxes = ours["det_boxes"][0, :count].numpy() / scale
    np.testing.assert_allclose(boxes, theirs[f"{image}/boxes"], atol=1e-3)


@each_image
def test_mask_logits_of_the_predicted_classes(
    stages: Stages, recorded: Recorded, image: str
) -> None:
    expected, labels = (recorded["mask"][f"{image}/{name}"] for name in ("mask_logits", "labels"))
    chosen = expected[np.arange(len(labels)), labels]
    ours = stages["mask", image]
    assert_relative(ours["mask_logits"][: len(labels)], chosen, "mask_head")
    probabilities = ours["mask_logits"].sigmoid().view_as(ours["det_masks"])
    torch.testing.assert_close(ours["det_masks"], probabilities)


def test_stage_names_are_in_the_order_of_computation(detectors: Detectors) -> None:
    names = stage_names(detectors["mask"].config)
    assert names[:5] == ("stem", "layer1.0", "C2", "layer2.0", "C3")
    assert names[9:19] == (
        *("L2", "L3", "L4", "L5", "L6"),
        *("encoder3", "carafe3", "encoder2", "carafe2", "encoder1"),
    )
    heads = names.index("proposals")
    assert names[heads : heads + 7] == (
        *("proposals", "proposal_scores", "roi_features", "shared_fc1", "shared_fc2"),
        *("cls_score", "bbox_pred"),
    )
    assert names[heads + 7 :] == (
        *("mask_roi_features", "mask_conv1", "mask_conv2", "mask_encoder"),
        *("mask_coarse_logits", "mask_carafe", "mask_logits"),
    )
    assert stage_names(detectors["faster"].config) == names[: heads + 7]


@pytest.mark.parametrize(
    ("depth", "mask", "last"),
    [
        (34, MaskHeadConfig(num_convs=0), "mask_roi_features"),
        (50, MaskHeadConfig(num_convs=3), "mask_conv3"),
        (101, MaskHeadConfig(upsample=UpsampleConfig(up_group=2)), "mask_conv4"),
    ],
)
def test_every_stage_of_other_detectors_is_another_tensor(
    depth: int, mask: MaskHeadConfig, last: str
) -> None:
    config = replace(SMALL, backbone=BackboneConfig(depth, 8), mask=mask)
    with torch.device("meta"):
        staged = StagedDetector(build_detector(config))
        outputs = staged(torch.empty(1, 3, 64, 64), torch.empty(1, 2))
    tensors = outputs[-len(staged.stage_names) :]
    assert len({id(tensor) for tensor in tensors}) == len(tensors)
    names = staged.stage_names
    assert names[names.index("mask_encoder") - 1] == last
    assert ("mask_coarse_logits" in names) == (mask.upsample.up_group == 1)
    shapes = dict(zip(names, (tuple(tensor.shape[1:]) for tensor in tensors), strict=True))
    assert shapes["layer2.0"] == shapes["C3"]
    assert shapes["stem"] == (8, 16, 16)
    assert shapes["L6"] == shapes["P6"] == (32, 1, 1)
    assert shapes["rpn_conv4"] == (32, 1, 1)
    assert shapes["encoder0"] == (100, 8, 8)
    assert shapes["mask_carafe"][1:] == shapes["mask_logits"] == (28, 28)


def test_layers_before_a_relu_are_seen_behind_it(stages: Stages) -> None:
    found = stages["mask", "img1"]
    for name in ("layer1.0", "rpn_conv2", "shared_fc1", "shared_fc2", "mask_conv2"):
        assert found[name].min() == 0
        assert found[name].max() > 0


def test_watching_stages_leaves_no_hooks_and_changes_no_output(
    detectors: Detectors, recorded: Recorded
) -> None:
    detector = detectors["mask"]
    plain = detector(*example(recorded))
    staged = StagedDetector(detector)(*example(recorded))
    assert not any(module._forward_hooks for module in detector.modules())
    for ours, expected in zip(staged, plain, strict=False):
        assert torch.equal(ours, expected)


# --- fixed shapes --------------------------------------------------------------------------------


def with_settings(detector: Detector, **box: Any) -> Detector:
    config = replace(detector.config, box=replace(detector.config.box, **box))
    changed = build_detector(config)
    changed.load_state_dict(detector.state_dict())
    return changed.requires_grad_(False)


@pytest.mark.parametrize("threshold", [0.05, 0.9999])
def test_shapes_and_padding_do_not_depend_on_what_is_seen(
    detectors: Detectors, recorded: Recorded, threshold: float
) -> None:
    detector = with_settings(detectors["mask"], score_threshold=threshold)
    num_dets, boxes, scores, classes, masks = detector(*example(recorded))
    count = int(num_dets)
    assert count == (11 if threshold == 0.05 else 0)
    found = [(*out.shape, out.dtype) for out in (num_dets, boxes, scores, classes, masks)]
    integer, real = torch.int32, torch.float32
    assert found[:2] == [(1, 1, integer), (1, 100, 4, real)]
    assert found[2:] == [(1, 100, real), (1, 100, integer), (1, 100, 28, 28, real)]
    assert not boxes[0, count:].any()
    assert not scores[0, count:].any()
    assert set(classes[0, count:].tolist()) == {-1}
    assert (classes[0, :count] >= 0).all()


def test_maximum_of_detections_keeps_the_best(detectors: Detectors, recorded: Recorded) -> None:
    detector = with_settings(detectors["faster"], max_detections=4)
    num_dets, boxes, scores, _ = detector(*example(recorded))
    assert num_dets.item() == 4
    np.testing.assert_allclose(scores[0], recorded["faster"]["img1/scores"][:4], atol=1e-5)
    assert boxes.shape == (1, 4, 4)


@each_kind
def test_a_batch_of_two_equals_two_batches_of_one(
    detectors: Detectors, recorded: Recorded, kind: str
) -> None:
    pairs = [example(recorded, image) for image in ("img1", "img2")]
    # 128x192 and 192x128 become 192x192 by more of the zeros that padded them before.
    images = [F.pad(x, (0, 192 - x.shape[3], 0, 192 - x.shape[2])) for x, _ in pairs]
    together = detectors[kind](torch.cat(images), torch.cat([size for _, size in pairs]))
    for row, (image, (_, size)) in enumerate(zip(images, pairs, strict=True)):
        alone = detectors[kind](image, size)
        count = int(alone[0])
        assert count > 5
        assert torch.equal(together[0][row], alone[0][0])
        for ours, expected in zip(together[1:], alone[1:], strict=True):
            torch.testing.assert_close(ours[row, :count], expected[0, :count], rtol=0, atol=1e-3)


# --- inference -----------------------------------------------------------------------------------


def test_folding_removes_every_batch_norm_and_keeps_outputs(
    detectors: Detectors, recorded: Recorded
) -> None:
    expected = detectors["mask"](*example(recorded))
    folded = prepare_for_inference(with_settings(detectors["mask"]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    for ours, theirs in zip(folded(*example(recorded)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_folding_reaches_every_batch_norm_of_bottlenecks() -> None:
    torch.manual_seed(0)
    detector = build_detector(replace(SMALL, backbone=BackboneConfig(50, 8)))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = detector.backbone(images)
        folded = prepare_for_inference(detector).backbone(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())
    for ours, theirs in zip(folded, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_constants_boxes_and_scores_in_float32(
    detectors: Detectors, recorded: Recorded, dtype: torch.dtype
) -> None:
    exact = dict(detectors["mask"].named_buffers())
    half = prepare_for_inference(with_settings(detectors["mask"]), dtype)
    constants = dict(half.named_buffers())
    assert set(constants) == {
        "proposal_selector.anchors.base",
        "proposal_selector.coder.normalization",
        "roi_head.detection_selector.coder.normalization",
    }
    for name, value in constants.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name])
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}

    num_dets, boxes, scores, classes, _ = half(*example(recorded))
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
    expected = recorded["mask"]
    sure = expected["img1/scores"] > 0.8  # five; their order is beyond doubt for half types too
    assert num_dets.item() >= sure.sum() == 5
    scale = np.tile(expected["img1/scale_factor"], 2)
    np.testing.assert_array_equal(
        np.sort(classes[0, :5].numpy()), np.sort(expected["img1/labels"][:5])
    )
    limit = 1.0 if dtype == torch.float16 else 4.0  # pixels
    for box, label in zip(
        expected["img1/boxes"][:5] * scale, expected["img1/labels"], strict=False
    ):
        same = boxes[0, :5][classes[0, :5] == int(label)].numpy()
        assert np.abs(same - box).max(axis=1).min() < limit


# --- normalisation in the graph ------------------------------------------------------------------


class _Echo(nn.Module):
    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        return images, image_sizes


def test_uint8_images_become_the_recorded_input(recorded: Recorded) -> None:
    resized = recorded["mask"]["img1/resized_bgr_u8"]
    expected, size = example(recorded)
    padded = torch.zeros(1, *expected.shape[2:], 3, dtype=torch.uint8)
    padded[0, : resized.shape[0], : resized.shape[1]] = torch.from_numpy(resized)
    images, sizes = ImageNormalization(_Echo(), Preprocessing())(padded, size)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert torch.equal(sizes, size)


def test_uint8_padding_of_any_value_becomes_zero_in_each_image() -> None:
    images = torch.full((2, 4, 6, 3), 200, dtype=torch.uint8)
    sizes = torch.tensor([[4.0, 3.0], [2.0, 6.0]])
    settings = Preprocessing(mean=(100.0, 0.0, 0.0), std=(1.0, 2.0, 4.0), bgr_to_rgb=False)
    out, _ = ImageNormalization(_Echo(), settings)(images, sizes)
    inside = torch.zeros(2, 4, 6)
    inside[0, :, :3] = 1
    inside[1, :2] = 1
    expected = inside.unsqueeze(1) * torch.tensor([100.0, 100.0, 50.0]).view(1, 3, 1, 1)
    assert torch.equal(out, expected)
