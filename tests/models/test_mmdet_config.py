"""Three schemas to one configuration, what is inferred, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.errors import CheckpointError
from carafe_deploy.models.class_names import COCO_CLASSES
from carafe_deploy.models.config import (
    BackboneConfig,
    DetectorConfig,
    MaskHeadConfig,
    NeckConfig,
    UpsampleConfig,
)
from carafe_deploy.models.config_text import parse_config, read_config
from carafe_deploy.models.mmdet_config import detector_config
from carafe_deploy.models.tensor_shapes import infer_detector
from carafe_deploy.types import Preprocessing

Shapes = dict[str, tuple[int, ...]]
KeyShapes = Callable[[str], Shapes]
Change = Callable[[dict[str, Any], str, Any], dict[str, Any]]
Refused = Callable[[dict[str, Any], str, Any, str], None]

R50 = {"faster": "faster-rcnn_r50_fpn-carafe_1x_coco", "mask": "mask-rcnn_r50_fpn-carafe_1x_coco"}
#: The model card's detectors are what the dataclasses default to.
OFFICIAL = {
    "faster": DetectorConfig(classes=COCO_CLASSES),
    "mask": DetectorConfig(mask=MaskHeadConfig(), classes=COCO_CLASSES),
}


@pytest.fixture(params=["faster", "mask"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("schema", ["v2_0", "v2_28", "v3"])
def test_schemas_agree(data_dir: Path, key_shapes: KeyShapes, kind: str, schema: str) -> None:
    path = f"{R50[kind]}.resolved.py" if schema == "v3" else f"configs/{schema}/{kind}.py"
    config, notes = detector_config(read_config(data_dir / path), key_shapes(R50[kind]))
    assert config == OFFICIAL[kind]
    assert notes == ("no class names: 80 classes are taken for COCO's",)


def test_files_of_2020_in_one_text(data_dir: Path, key_shapes: KeyShapes, kind: str) -> None:
    """mmdetection 2.0 stores no resolved config, but all files one after the other."""
    names = ["_base_/faster_rcnn.py", "_base_/mask_rcnn.py", "_base_/coco.py", f"{kind}.py"]
    if kind == "faster":
        del names[1]
    folder = data_dir / "configs/v2_0"
    text = "\n".join(f"/home/user/configs/{name}\n{(folder / name).read_text()}" for name in names)
    config, _ = detector_config(parse_config(text), key_shapes(R50[kind]))
    assert config == OFFICIAL[kind]


def test_without_config_shapes_and_defaults_serve(key_shapes: KeyShapes, kind: str) -> None:
    config, notes = detector_config(None, key_shapes(R50[kind]))
    assert config == OFFICIAL[kind]
    assert any("no config: anchors" in note for note in notes)


def test_small_detector(shapes_configs: dict[str, str], key_shapes: KeyShapes) -> None:
    name = "shapes_mask_rcnn_carafe"
    config, notes = detector_config(parse_config(shapes_configs[name]), key_shapes(name))
    upsample = UpsampleConfig(compressed_channels=16)
    assert config.backbone == BackboneConfig(depth=18, base_channels=16)
    assert config.neck == NeckConfig(32, upsample)
    assert config.mask == MaskHeadConfig(num_convs=2, conv_channels=32, upsample=upsample)
    assert config.box.fc_channels == 96
    assert config.classes == ("circle", "square", "triangle")
    assert config.preprocessing == Preprocessing(scale=(160, 128))
    assert notes == ()


def test_shapes_alone_give_the_same_architecture(
    shapes_configs: dict[str, str], key_shapes: KeyShapes
) -> None:
    name = "shapes_faster_rcnn_carafe"
    config, _ = detector_config(parse_config(shapes_configs[name]), key_shapes(name))
    inferred = infer_detector(key_shapes(name)).config
    same = dataclasses.replace(inferred, classes=config.classes, preprocessing=config.preprocessing)
    assert same == config


def _resnet(depth: int, shapes: Shapes) -> Shapes:
    """R-50's shapes with another number of blocks in layer3, or with basic blocks."""
    result = dict(shapes)
    if depth == 101:
        for block in range(6, 23):
            for key, shape in shapes.items():
                if key.startswith("backbone.layer3.5."):
                    result[key.replace(".5.", f".{block}.", 1)] = shape
    if depth == 34:
        result = {k: s for k, s in result.items() if ".conv3." not in k and ".bn3." not in k}
    return result


@pytest.mark.parametrize("depth", [34, 50, 101])
def test_depth_is_counted(r50_shapes: Shapes, depth: int) -> None:
    assert infer_detector(_resnet(depth, r50_shapes)).config.backbone.depth == depth


@pytest.mark.parametrize(
    ("outputs", "kernel", "group", "noted"),
    [
        (100, 5, 1, False),
        (36, 3, 1, False),
        (196, 7, 1, False),
        (324, 9, 1, True),  # or kernel 3 with nine groups
        (144, 3, 4, True),
        (400, 5, 4, True),
    ],
)
def test_kernel_and_group_from_encoder_outputs(
    key_shapes: KeyShapes, outputs: int, kernel: int, group: int, noted: bool
) -> None:
    shapes = {
        key: tuple(288 if size == 256 and key.startswith("neck.") else size for size in shape)
        for key, shape in key_shapes(R50["faster"]).items()
    }
    shapes["roi_head.bbox_head.shared_fcs.0.weight"] = (1024, 288 * 49)
    shapes["neck.upsample_modules.0.content_encoder.weight"] = (outputs, 64, 3, 3)
    inferred = infer_detector(shapes)
    upsample = inferred.config.neck.upsample
    assert (upsample.up_kernel, upsample.up_group) == (kernel, group)
    assert any(f"up_kernel {kernel} with up_group {group}" in n for n in inferred.notes) == noted


def test_encoder_outputs_that_no_kernel_explains(r50_shapes: Shapes) -> None:
    r50_shapes["neck.upsample_modules.0.content_encoder.weight"] = (64, 64, 3, 3)
    with pytest.raises(
        CheckpointError, match=r"content_encoder has 64 outputs, which is 4 · up_gr"
    ):
        infer_detector(r50_shapes)


ROI = "model.roi_head"
UNSUPPORTED: list[tuple[str, Any, str]] = [
    ("model.type", "RetinaNet", r"model\.type='RetinaNet' is not supported; supported: FasterRC"),
    ("model.type", "FasterRCNN", r"model\.type='FasterRCNN'"),
    ("model.backbone.type", "ResNeXt", r"model\.backbone\.type='ResNeXt' .* supported: ResNet"),
    ("model.backbone.style", "caffe", r"model\.backbone\.style='caffe' .* 'pytorch'"),
    ("model.backbone.depth", 152, r"model\.backbone\.depth=152 .* 18 or 34 or 50 or 101"),
    ("model.backbone.depth", "50", r"model\.backbone\.depth='50' .* whole number"),
    ("model.backbone.dcn", {"type": "DCN"}, r"model\.backbone\.dcn=\{'type': 'DCN'\}"),
    ("model.backbone.plugins", [{}], r"model\.backbone\.plugins"),
    ("model.backbone.deep_stem", True, r"model\.backbone\.deep_stem=True .* False"),
    ("model.backbone.avg_down", True, r"model\.backbone\.avg_down=True"),
    ("model.backbone.norm_cfg", {"type": "GN"}, r"norm_cfg\.type='GN' .* BN or SyncBN"),
    ("model.backbone.norm_cfg.eps", 1e-3, r"norm_cfg\.eps=0\.001"),
    ("model.backbone.out_indices", (1, 2, 3), r"out_indices=\(1, 2, 3\) .* \(0, 1, 2, 3\)"),
    ("model.backbone.dilations", (1, 1, 1, 2), r"dilations=\(1, 1, 1, 2\)"),
    ("model.backbone.surprise", 1, r"model\.backbone\.surprise=1 .* leaving it out"),
    ("model.neck.type", "FPN", r"model\.neck\.type='FPN' .* supported: FPN_CARAFE"),
    ("model.neck", None, r"model\.neck\.type=None .* supported: FPN_CARAFE"),
    ("model.neck.num_outs", 4, r"model\.neck\.num_outs=4 .* supported: 5"),
    ("model.neck.start_level", 1, r"model\.neck\.start_level=1"),
    ("model.neck.norm_cfg", {"type": "BN"}, r"model\.neck\.norm_cfg="),
    ("model.neck.act_cfg", {"type": "ReLU"}, r"model\.neck\.act_cfg="),
    ("model.neck.order", ("act", "conv", "norm"), r"order=\('act', 'conv', 'norm'\)"),
    ("model.neck.relu_before_extra_convs", True, r"model\.neck\.relu_before_extra_convs=True"),
    ("model.neck.upsample_cfg.type", "nearest", r"upsample_cfg\.type='nearest' .* carafe"),
    ("model.neck.upsample_cfg.up_kernel", 4, r"upsample_cfg\.up_kernel=4 .* odd"),
    ("model.neck.upsample_cfg.up_group", 3, r"up_group=3 .* a divisor of the 256 channels"),
    ("model.neck.upsample_cfg.scale_factor", 4, r"neck\.upsample_cfg\.scale_factor=4 .* 2"),
    ("model.rpn_head.type", "GARPNHead", r"model\.rpn_head\.type='GARPNHead'"),
    ("model.rpn_head.num_convs", 2, r"model\.rpn_head\.num_convs=2"),
    ("model.rpn_head.loss_cls.use_sigmoid", False, r"loss_cls\.use_sigmoid=False .* True"),
    ("model.rpn_head.anchor_generator.type", "YOLOAnchorGenerator", r"anchor_generator\.type="),
    ("model.rpn_head.anchor_generator.octave_base_scale", 4, r"octave_base_scale=4"),
    ("model.rpn_head.anchor_generator.strides", [8, 16, 32, 64, 128], r"strides=\[8, 16"),
    ("model.rpn_head.anchor_generator.center_offset", 0.5, r"center_offset=0\.5"),
    ("model.rpn_head.anchor_generator.ratios", [], r"ratios=\[\] .* numbers"),
    ("model.rpn_head.bbox_coder.type", "TBLRBBoxCoder", r"rpn_head\.bbox_coder\.type="),
    ("model.rpn_head.bbox_coder.target_stds", [1, 1], r"target_stds=\[1, 1\] .* 4 numbers"),
    ("model.rpn_head.bbox_coder.add_ctr_clamp", True, r"add_ctr_clamp=True"),
    (f"{ROI}.type", "CascadeRoIHead", r"roi_head\.type='CascadeRoIHead' .* StandardRoIHead"),
    (f"{ROI}.shared_head", {"type": "ResLayer"}, r"roi_head\.shared_head="),
    (f"{ROI}.mask_roi_extractor", None, r"mask_roi_extractor=None .* extractor of the mask"),
    (f"{ROI}.bbox_roi_extractor.type", "GenericRoIExtractor", r"extractor\.type='GenericRoI"),
    (f"{ROI}.bbox_roi_extractor.roi_layer.type", "RoIPool", r"roi_layer\.type='RoIPool'"),
    (f"{ROI}.bbox_roi_extractor.roi_layer.aligned", False, r"roi_layer\.aligned=False"),
    (f"{ROI}.bbox_roi_extractor.roi_layer.output_size", (7, 8), r"output_size=\(7, 8\) .* one siz"),
    (f"{ROI}.bbox_roi_extractor.featmap_strides", [4, 8], r"featmap_strides=\[4, 8\]"),
    (f"{ROI}.mask_roi_extractor.finest_scale", 28, r"mask_roi_extractor\.finest_scale=28"),
    (f"{ROI}.bbox_head.type", "DoubleConvFCBBoxHead", r"bbox_head\.type='DoubleConvFCBBoxHead'"),
    (f"{ROI}.bbox_head.reg_class_agnostic", True, r"reg_class_agnostic=True .* False"),
    (f"{ROI}.bbox_head.loss_cls.use_sigmoid", True, r"bbox_head\.loss_cls\.use_sigmoid=True"),
    (f"{ROI}.bbox_head.loss_cls.type", "SeesawLoss", r"loss_cls\.type='SeesawLoss'"),
    (f"{ROI}.bbox_head.roi_feat_size", 14, r"bbox_head\.roi_feat_size=14 .* 7"),
    (f"{ROI}.mask_head.type", "HTCMaskHead", r"mask_head\.type='HTCMaskHead'"),
    (f"{ROI}.mask_head.class_agnostic", True, r"mask_head\.class_agnostic=True .* False"),
    (f"{ROI}.mask_head.conv_kernel_size", 5, r"mask_head\.conv_kernel_size=5"),
    (f"{ROI}.mask_head.norm_cfg", {"type": "BN"}, r"mask_head\.norm_cfg="),
    (f"{ROI}.mask_head.upsample_cfg.type", "deconv", r"mask_head\.upsample_cfg\.type='deconv'"),
    ("model.test_cfg.rpn.nms.type", "soft_nms", r"test_cfg\.rpn\.nms\.type='soft_nms'"),
    ("model.test_cfg.rpn.nms_pre", None, r"test_cfg\.rpn\.nms_pre=None .* e\.g\. 1000"),
    ("model.test_cfg.rpn.nms_pre", -1, r"test_cfg\.rpn\.nms_pre=-1"),
    ("model.test_cfg.rpn.nms_pre", 6000, r"test_cfg\.rpn\.nms_pre=6000 .* at most 4096"),
    ("model.test_cfg.rpn.nms_post", 500, r"test_cfg\.rpn\.nms_post=500 .* 1000"),
    ("model.test_cfg.rpn.max_num", 500, r"max_num=500 .* the value of max_per_img \(1000\)"),
    ("model.test_cfg.rpn.nms_thr", 0.5, r"test_cfg\.rpn\.nms_thr=0\.5 .* of nms \(0\.7\)"),
    ("model.test_cfg.rpn.nms_across_levels", True, r"nms_across_levels=True .* False"),
    ("model.test_cfg.rcnn.nms.type", "soft_nms", r"rcnn\.nms\.type='soft_nms' .* nms"),
    ("model.test_cfg.rcnn.nms.class_agnostic", True, r"rcnn\.nms\.class_agnostic=True"),
    ("model.test_cfg.rcnn.nms.iou_threshold", 0, r"rcnn\.nms=.* above 0"),
    ("model.test_cfg.rcnn.nms.max_num", 9, r"rcnn\.nms\.max_num=9 .* leaving it out"),
    ("model.test_cfg.rcnn.score_thr", 1.5, r"rcnn\.score_thr=1\.5"),
    ("model.test_cfg.rcnn.max_per_img", -1, r"rcnn\.max_per_img=-1"),
    ("model.test_cfg.rcnn.mask_thr_binary", -1, r"rcnn\.mask_thr_binary=-1"),
    ("model.data_preprocessor.type", "ImgDataPreprocessor", r"data_preprocessor\.type="),
    ("model.data_preprocessor.rgb_to_bgr", True, r"data_preprocessor\.rgb_to_bgr=True"),
    ("model.data_preprocessor.bgr_to_rgb", "yes", r"bgr_to_rgb='yes' .* True or False"),
    ("model.data_preprocessor.pad_value", 114, r"data_preprocessor\.pad_value=114"),
    ("model.data_preprocessor.pad_size_divisor", 0, r"pad_size_divisor=0"),
    ("model.data_preprocessor.std", [0, 1, 1], r"data_preprocessor\.std=.* positive"),
    ("model.data_preprocessor.std", None, r"data_preprocessor\.mean=.* together"),
    ("model.data_preprocessor", [1], r"model\.data_preprocessor=\[1\] is not a dict"),
    ("model", [1], r"no model=dict\(\.\.\.\)"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), UNSUPPORTED, ids=[f"{p}={v}"[:70] for p, v, _ in UNSUPPORTED]
)
def test_unsupported_settings(
    refused: Refused, config_3x: dict[str, Any], path: str, value: Any, message: str
) -> None:
    refused(config_3x, path, value, message)


PIPELINE = "test_dataloader.dataset.pipeline"
SETTINGS: list[tuple[str, Any, Callable[[DetectorConfig], Any], Any]] = [
    ("model.neck.upsample_cfg.encoder_dilation", 2, lambda c: c.neck.upsample.encoder_dilation, 2),
    ("model.backbone.norm_cfg.type", "SyncBN", lambda c: c.backbone.depth, 50),
    ("model.backbone.type", "mmdet.ResNet", lambda c: c.backbone.depth, 50),
    ("model.backbone.with_cp", True, lambda c: c.backbone.depth, 50),
    ("model.rpn_head.anchor_generator.scales", [4], lambda c: c.rpn.anchors.scales, (4.0,)),
    ("model.test_cfg.rpn.nms_pre", 500, lambda c: c.rpn.nms_pre, 500),
    ("model.test_cfg.rpn.min_bbox_size", 2, lambda c: c.rpn.min_box_size, 2.0),
    ("model.test_cfg.rpn.nms.iou_threshold", 0.6, lambda c: c.rpn.nms_iou_threshold, 0.6),
    ("model.test_cfg.rcnn.score_thr", 0.3, lambda c: c.box.score_threshold, 0.3),
    ("model.test_cfg.rcnn.nms.iou_threshold", 0.6, lambda c: c.box.nms_iou_threshold, 0.6),
    ("model.test_cfg.rcnn.max_per_img", 30, lambda c: c.box.max_detections, 30),
    ("model.test_cfg.rcnn.mask_thr_binary", 0.4, lambda c: c.mask.mask_threshold, 0.4),
    (f"{ROI}.bbox_roi_extractor.roi_layer.sampling_ratio", 2, lambda c: c.box.sampling_ratio, 2),
    (f"{ROI}.mask_roi_extractor.roi_layer.sampling_ratio", 2, lambda c: c.mask.sampling_ratio, 2),
    (f"{ROI}.bbox_head.bbox_coder.target_stds", [1] * 4, lambda c: c.box.coder.stds, (1,) * 4),
    (f"{PIPELINE}.1.scale", (600, 1000), lambda c: c.preprocessing.scale, (1000, 600)),
    (f"{PIPELINE}.1.scale", [(600, 1000)], lambda c: c.preprocessing.scale, (1000, 600)),
    ("model.data_preprocessor.bgr_to_rgb", False, lambda c: c.preprocessing.bgr_to_rgb, False),
    ("model.data_preprocessor.pad_size_divisor", 1, lambda c: c.preprocessing.pad_size_divisor, 1),
    ("model.data_preprocessor.mean", [1, 2, 3], lambda c: c.preprocessing.mean, (1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "read", "expected"), SETTINGS, ids=[f"{p}={v}" for p, v, *_ in SETTINGS]
)
def test_settings_are_read(
    changed: Change,
    config_3x: dict[str, Any],
    r50_shapes: Shapes,
    path: str,
    value: Any,
    read: Callable[[DetectorConfig], Any],
    expected: Any,
) -> None:
    config, _ = detector_config(changed(config_3x, path, value), r50_shapes)
    assert read(config) == expected


def test_a_config_of_the_model_alone_is_completed(
    config_3x: dict[str, Any], r50_shapes: Shapes
) -> None:
    model = {"type": "MaskRCNN", "neck": {"type": "FPN_CARAFE"}}
    model["roi_head"] = {"mask_head": {"type": "FCNMaskHead"}}  # type: ignore[assignment]
    config, notes = detector_config({"model": model}, r50_shapes)
    assert config == OFFICIAL["mask"]
    assert [note.partition(":")[0] for note in notes] == [
        "the config has no test_cfg",
        "the config has no test pipeline",
        "the config has no normalisation",
        "no class names",
    ]


@pytest.mark.parametrize("head", ["bbox_head", "mask_head"])
def test_wrong_number_of_classes(
    changed: Change, config_3x: dict[str, Any], r50_shapes: Shapes, head: str
) -> None:
    cfg = changed(config_3x, f"{ROI}.{head}.num_classes", 3)
    with pytest.raises(
        CheckpointError,
        match=rf"model\.roi_head\.{head}\.num_classes=3, but the checkpoint's weights have 80",
    ):
        detector_config(cfg, r50_shapes)


def test_wrong_number_of_anchors(
    changed: Change, config_3x: dict[str, Any], r50_shapes: Shapes
) -> None:
    cfg = changed(config_3x, "model.rpn_head.anchor_generator.scales", [4, 8])
    with pytest.raises(CheckpointError, match=r"rpn_cls has 3 anchors a position, model.* has 6"):
        detector_config(cfg, r50_shapes)


def test_unusual_anchors_need_a_config(r50_shapes: Shapes) -> None:
    r50_shapes["rpn_head.rpn_cls.weight"] = (9, 256, 1, 1)
    with pytest.raises(CheckpointError, match=r"9 anchors a position, mmdetection's default has 3"):
        detector_config(None, r50_shapes)


def test_config_and_weights_disagree_about_masks(
    key_shapes: KeyShapes, config_3x: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"'MaskRCNN', but the checkpoint has no mask head"):
        detector_config(config_3x, key_shapes(R50["faster"]))
