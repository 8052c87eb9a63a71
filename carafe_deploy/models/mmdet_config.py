"""mmdetection's config schemas (2.0 of May 2020, 2.28, 3.x) to one :class:`DetectorConfig`.

2.0 has ``test_cfg`` beside ``model``, ``out_size``, ``sample_num``, ``iou_thr``, ``nms_thr`` and
``max_num``; 3.x a ``data_preprocessor`` instead of Normalize and Pad. Settings that the detectors
do not have raise; so does every key that is not known to leave inference alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.models.class_names import class_names
from carafe_deploy.models.config import (
    AnchorConfig,
    BackboneConfig,
    BoxCoderConfig,
    BoxHeadConfig,
    DetectorConfig,
    MaskHeadConfig,
    NeckConfig,
    RpnConfig,
    UpsampleConfig,
)
from carafe_deploy.models.config_pipeline import preprocessing
from carafe_deploy.models.config_section import Section
from carafe_deploy.models.config_text import merge_configs
from carafe_deploy.models.resnet import BLOCKS
from carafe_deploy.models.tensor_shapes import Inferred, infer_detector
from carafe_deploy.operators.candidates import MOST_CANDIDATES

_ROI_STRIDES = (4, 8, 16, 32)
_RPN_STRIDES = (4, 8, 16, 32, 64)
_ROI_PARTS = ("bbox_roi_extractor", "bbox_head", "mask_roi_extractor", "mask_head")
#: Of a head: what its surroundings say, or training alone needs.
_OUTER = ("in_channels", "init_cfg", "train_cfg", "test_cfg")


def detector_config(
    cfg: Mapping[str, Any] | None,
    shapes: Mapping[str, tuple[int, ...]],
    classes: Sequence[str] | None = None,
    folders: Sequence[Path] = (),
) -> tuple[DetectorConfig, tuple[str, ...]]:
    """Settings from a config; what it leaves out, from tensor shapes and mmdetection's defaults.

    Args:
        cfg: values of a config; None to infer everything from the shapes.
        shapes: tensor shapes by state_dict key.
        classes: names in the checkpoint's metadata; a config's own come first.
        folders: where a file of class names is looked for that a config names.

    Returns:
        The settings, and notes on what was assumed rather than read.

    Raises:
        ConfigError: a setting the detectors do not have.
        CheckpointError: the shapes are another architecture's, or number of classes differs.
    """
    inferred = infer_detector(shapes)
    notes = list(inferred.notes)
    if cfg is None:
        notes.append(
            "no config: anchors, box coders, test settings and preprocessing are mmdetection's "
            "COCO defaults"
        )
        detector = inferred.config
        _check_anchors(detector.rpn.anchors, inferred.num_anchors, "mmdetection's default")
    else:
        detector = _detector(cfg, inferred, notes)
        detector = dataclasses.replace(detector, preprocessing=preprocessing(cfg, notes))
    names = class_names(cfg or {}, classes, detector.num_classes, notes, folders)
    return dataclasses.replace(detector, classes=names), tuple(notes)


def _detector(cfg: Mapping[str, Any], inferred: Inferred, notes: list[str]) -> DetectorConfig:
    base = inferred.config
    if not isinstance(cfg.get("model"), Mapping):
        raise ConfigError("the config has no model=dict(...): give the config of a detector")
    model = Section(cfg["model"], "model")
    kind = model.kind("FasterRCNN", "MaskRCNN")
    test = _test_settings(cfg, model, notes)
    # The official configs of May 2020 put the mask head beside roi_head instead of into it.
    outside = {name: model.raw(name) for name in _ROI_PARTS if name in model}
    roi = Section(merge_configs(model.child("roi_head").values, outside, "model"), "model.roi_head")
    roi.kind("StandardRoIHead", default="StandardRoIHead")
    if ("mask_head" in roi) != (kind == "MaskRCNN"):
        raise model.error("type", "MaskRCNN with roi_head.mask_head, FasterRCNN without")
    if (kind == "MaskRCNN") != (base.mask is not None):
        raise CheckpointError(
            f"model.type={kind!r}, but the checkpoint has "
            f"{'no ' if base.mask is None else 'a '}mask head: give the config it was trained with"
        )
    rcnn = test.child("rcnn")
    box = _box_head(roi, rcnn, base)
    mask = None if base.mask is None else _mask_head(roi, rcnn, base.mask, box, base.num_classes)
    rcnn.close("mask_thr_binary")  # a leftover where there is no mask head
    roi.only(shared_head=None)
    roi.close("train_cfg", "test_cfg", "pretrained", "init_cfg", "mask_roi_extractor")
    detector = DetectorConfig(
        backbone=_backbone(model.child("backbone"), base.backbone),
        neck=_neck(model.child("neck"), base.neck),
        rpn=_rpn(model.child("rpn_head"), test.child("rpn"), inferred),
        box=box,
        mask=mask,
        classes=base.classes,
    )
    test.close()
    model.close("train_cfg", "pretrained", "init_cfg", "data_preprocessor")
    return detector


def _test_settings(cfg: Mapping[str, Any], model: Section, notes: list[str]) -> Section:
    """``model.test_cfg``, or beside ``model`` in 2.0 (3.x has the test loop's settings there)."""
    inside = model.raw("test_cfg")
    if inside is not None:
        return Section(inside, "model.test_cfg")
    beside = cfg.get("test_cfg")
    if isinstance(beside, Mapping) and ("rpn" in beside or "rcnn" in beside):
        return Section(beside, "test_cfg")
    notes.append("the config has no test_cfg: thresholds and limits are mmdetection's defaults")
    return Section(None, "test_cfg")


def _backbone(section: Section, base: BackboneConfig) -> BackboneConfig:
    section.kind("ResNet", default="ResNet")
    depth = section.integer("depth", default=base.depth)
    if depth not in BLOCKS:
        raise section.error("depth", " or ".join(map(str, BLOCKS)))
    if depth >= 50:  # basic blocks have one 3x3 stride only
        section.only(style="pytorch")
    config = BackboneConfig(depth, section.integer("base_channels", default=base.base_channels))
    norm = section.child("norm_cfg")
    norm.kind("BN", "SyncBN", default="BN")
    norm.only(eps=1e-5)
    norm.close("requires_grad", "momentum")
    section.only(in_channels=3, stem_channels=config.base_channels, num_stages=4)
    section.only(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(0, 1, 2, 3))
    for flag in ("deep_stem", "avg_down", "stage_with_dcn"):
        section.one_of(flag, False, (False, False, False, False))
    section.only(conv_cfg=None, dcn=None, plugins=None, gcb=None, gen_attention=None)
    section.close(
        "style", "frozen_stages", "norm_eval", "with_cp", "zero_init_residual", "pretrained",
        "init_cfg",
    )  # fmt: skip
    return config


def _neck(section: Section, base: NeckConfig) -> NeckConfig:
    section.kind("FPN_CARAFE")
    section.only(num_outs=5, start_level=0, end_level=-1)
    section.only(norm_cfg=None, act_cfg=None, activation=None, order=("conv", "norm", "act"))
    channels = section.integer("out_channels", default=base.out_channels)
    upsampling = section.child("upsample_cfg")
    upsampling.only(scale_factor=2)
    section.close("in_channels", "init_cfg")
    return NeckConfig(channels, _upsample(upsampling, base.upsample, channels))


def _upsample(section: Section, base: UpsampleConfig, channels: int) -> UpsampleConfig:
    section.kind("carafe", default="carafe")
    config = UpsampleConfig(
        **{
            field.name: section.integer(field.name, default=getattr(base, field.name))
            for field in dataclasses.fields(UpsampleConfig)
        }
    )
    for name in ("up_kernel", "encoder_kernel"):
        if getattr(config, name) % 2 == 0:
            raise section.error(name, "odd numbers")
    if channels % config.up_group:
        raise section.error("up_group", f"a divisor of the {channels} channels")
    section.close("channels")
    return config


def _coder(section: Section, base: BoxCoderConfig) -> BoxCoderConfig:
    section.kind("DeltaXYWHBBoxCoder", default="DeltaXYWHBBoxCoder")
    section.only(clip_border=True, add_ctr_clamp=False)
    dx, dy, dw, dh = section.numbers("target_means", base.means, 4)
    sx, sy, sw, sh = section.numbers("target_stds", base.stds, 4)
    section.close("ctr_clamp", "use_box_type")
    return BoxCoderConfig((dx, dy, dw, dh), (sx, sy, sw, sh))


def _rpn(head: Section, test: Section, inferred: Inferred) -> RpnConfig:
    base = inferred.config.rpn
    head.kind("RPNHead", default="RPNHead")
    head.only(num_convs=1, num_classes=1)
    loss = head.child("loss_cls")
    if loss.values and not loss.flag("use_sigmoid", default=False):
        raise loss.error("use_sigmoid", "True")
    anchors = _anchors(head.child("anchor_generator"), base.anchors)
    _check_anchors(anchors, inferred.num_anchors, head.key("anchor_generator"))
    test.only(nms_across_levels=False)
    limit = test.integer("max_per_img", "max_num", default=base.max_proposals)
    test.only(nms_post=limit)
    if "nms_pre" not in test and test.values:
        raise test.error("nms_pre", "a number of boxes a level, e.g. 1000")
    config = RpnConfig(
        feat_channels=head.integer("feat_channels", default=base.feat_channels),
        anchors=anchors,
        coder=_coder(head.child("bbox_coder"), base.coder),
        nms_pre=test.integer("nms_pre", default=base.nms_pre, maximum=MOST_CANDIDATES),
        nms_iou_threshold=_nms(test, base.nms_iou_threshold, old="nms_thr"),
        max_proposals=limit,
        min_box_size=test.number("min_bbox_size", default=base.min_box_size),
    )
    test.close()
    head.close(*_OUTER, "loss_bbox", "reg_decoded_bbox")
    return config


def _anchors(section: Section, base: AnchorConfig) -> AnchorConfig:
    section.kind("AnchorGenerator", default="AnchorGenerator")
    section.one_of("strides", _RPN_STRIDES, [(s, s) for s in _RPN_STRIDES])
    section.only(base_sizes=_RPN_STRIDES, scale_major=True, center_offset=0)
    section.only(octave_base_scale=None, scales_per_octave=None, centers=None)
    config = AnchorConfig(
        scales=section.numbers("scales", base.scales),
        ratios=section.numbers("ratios", base.ratios),
        strides=_RPN_STRIDES,
    )
    section.close("use_box_type")
    return config


def _check_anchors(anchors: AnchorConfig, found: int, origin: str) -> None:
    expected = anchors.per_cell
    if expected != found:
        raise CheckpointError(
            f"rpn_head.rpn_cls has {found} anchors a position, {origin} has {expected}: give the "
            "config that the checkpoint was trained with"
        )


def _nms(test: Section, default: float, old: str | None = None) -> float:
    """IoU threshold of ``nms=dict(...)``, or of the bare number that 2.0 has for the RPN."""
    nms = test.child("nms")
    nms.kind("nms", default="nms")
    nms.only(class_agnostic=False)
    iou = nms.number("iou_threshold", "iou_thr", default=default)
    nms.close("split_thr")
    if old is not None and old in test:
        bare = test.number(old, default=default)
        if "nms" in test and bare != iou:
            raise test.error(old, f"the threshold of nms ({iou})")
        iou = bare
    if not 0 < iou <= 1:
        raise test.error("nms", "an IoU threshold above 0 and at most 1")
    return iou


def _roi_extractor(section: Section, default: int) -> tuple[int, int, int]:
    """(output size, sampling ratio, finest scale) of a RoI extractor."""
    section.kind("SingleRoIExtractor", default="SingleRoIExtractor")
    section.only(featmap_strides=_ROI_STRIDES)
    layer = section.child("roi_layer")
    layer.kind("RoIAlign", default="RoIAlign")
    layer.only(aligned=True, pool_mode="avg", use_torchvision=False)
    size = layer.square("output_size", "out_size", default=default)
    ratio = layer.integer("sampling_ratio", "sample_num", default=0, minimum=0)
    layer.close()
    finest = section.integer("finest_scale", default=56)
    section.close("out_channels", "init_cfg")
    return size, ratio, finest


def _box_head(roi: Section, test: Section, base: DetectorConfig) -> BoxHeadConfig:
    size, ratio, finest = _roi_extractor(roi.child("bbox_roi_extractor"), base.box.roi_size)
    head = roi.child("bbox_head")
    head.kind("Shared2FCBBoxHead", default="Shared2FCBBoxHead")
    head.only(reg_class_agnostic=False)
    head.one_of("roi_feat_size", size, (size, size))
    head.only(with_avg_pool=False, predict_box_type="hbox", norm_cfg=None, conv_cfg=None)
    for part in ("cls_predictor_cfg", "reg_predictor_cfg"):
        predictor = head.child(part)
        predictor.kind("Linear", default="Linear")
        predictor.close()
    loss = head.child("loss_cls")
    loss.kind("CrossEntropyLoss", default="CrossEntropyLoss")
    loss.only(use_sigmoid=False)
    _check_classes(head, base.num_classes)
    threshold = test.number("score_thr", default=base.box.score_threshold)
    if not 0 <= threshold < 1:
        raise test.error("score_thr", "a number from 0 to below 1")
    config = BoxHeadConfig(
        roi_size=size,
        sampling_ratio=ratio,
        strides=_ROI_STRIDES,
        finest_scale=finest,
        fc_channels=head.integer("fc_out_channels", default=base.box.fc_channels),
        coder=_coder(head.child("bbox_coder"), base.box.coder),
        score_threshold=threshold,
        nms_iou_threshold=_nms(test, base.box.nms_iou_threshold),
        max_detections=test.integer("max_per_img", default=base.box.max_detections),
    )
    head.close(*_OUTER, "loss_bbox", "reg_decoded_bbox")
    return config


def _check_classes(head: Section, found: int) -> None:
    configured = head.integer("num_classes", default=found)
    if configured != found:
        raise CheckpointError(
            f"{head.key('num_classes')}={configured}, but the checkpoint's weights have {found} "
            "classes: give the config that the checkpoint was trained with"
        )


def _mask_head(
    roi: Section, test: Section, base: MaskHeadConfig, box: BoxHeadConfig, classes: int
) -> MaskHeadConfig:
    extractor = roi.child("mask_roi_extractor")
    if "mask_roi_extractor" not in roi and "bbox_roi_extractor" in roi:
        raise roi.error("mask_roi_extractor", "an extractor of the mask head's own")
    size, ratio, finest = _roi_extractor(extractor, base.roi_size)
    if finest != box.finest_scale:
        raise extractor.error("finest_scale", f"bbox_roi_extractor's ({box.finest_scale})")
    head = roi.child("mask_head")
    head.kind("FCNMaskHead", default="FCNMaskHead")
    head.only(class_agnostic=False, conv_kernel_size=3, norm_cfg=None, conv_cfg=None)
    predictor = head.child("predictor_cfg")
    predictor.kind("Conv", default="Conv")
    predictor.close()
    _check_classes(head, classes)
    threshold = test.number("mask_thr_binary", default=base.mask_threshold)
    if not 0 < threshold < 1:
        raise test.error("mask_thr_binary", "a number between 0 and 1")
    channels = head.integer("conv_out_channels", default=base.conv_channels)
    config = MaskHeadConfig(
        roi_size=size,
        sampling_ratio=ratio,
        num_convs=head.integer("num_convs", default=base.num_convs, minimum=0),
        conv_channels=channels,
        upsample=_upsample(head.child("upsample_cfg"), base.upsample, channels),
        mask_threshold=threshold,
    )
    head.close(*_OUTER, "loss_mask", "roi_feat_size")
    return config
