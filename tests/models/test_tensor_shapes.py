"""Checkpoints of other architectures are recognised by their keys."""

from __future__ import annotations

import pytest

from carafe_deploy.errors import CheckpointError
from carafe_deploy.models.tensor_shapes import infer_detector, refuse_other_architectures

Shapes = dict[str, tuple[int, ...]]

SIGNATURES = [
    ("bbox_head.retina_cls.weight", "RetinaNet"),
    ("bbox_head.conv_centerness.weight", "FCOS"),
    ("bbox_head.atss_cls.weight", "ATSS"),
    ("bbox_head.multi_level_cls_convs.0.0.conv.weight", "YOLOX"),
    ("bbox_head.convs_pred.0.weight", "YOLOv3"),
    ("bbox_head.transformer.encoder.layers.0.ffns.0.weight", "DETR"),
    ("decoder.layers.0.self_attn.weight", "DETR"),
    ("query_embedding.weight", "DETR"),
    ("roi_head.bbox_head.0.fc_cls.weight", "Cascade R-CNN"),
    ("roi_head.mask_iou_head.convs.0.conv.weight", "Mask Scoring R-CNN"),
    ("roi_head.semantic_head.convs.0.conv.weight", "HTC"),
    ("roi_head.point_head.fcs.0.conv.weight", "PointRend"),
    ("roi_heads.box_predictor.cls_score.weight", "a torchvision detector"),
    ("proposal_generator.rpn_head.conv.weight", "a Detectron2 detector"),
    ("model.0.conv.weight", "an Ultralytics YOLO"),
    ("decode_head.conv_seg.weight", "mmsegmentation"),
    ("fc.weight", "an image classifier"),
    ("layer1.0.conv1.weight", "a backbone alone"),
    ("backbone.patch_embed.projection.weight", "Swin"),
    ("backbone.stem.0.weight", "deep-stem"),
    ("backbone.layer1.0.convs.0.weight", "Res2Net"),
    ("backbone.layer2.0.conv2.conv_offset.weight", "deformable"),
    ("neck.pafpn_convs.0.conv.weight", "PAFPN"),
    ("neck.fpn_convs.0.bn.weight", "normalisation layers"),
    ("roi_head.bbox_head.shared_convs.0.conv.weight", "convolutions in its box head"),
]


@pytest.mark.parametrize(("key", "name"), SIGNATURES)
def test_a_telling_key(r50_shapes: Shapes, key: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"looks like .*{name}.* \\(it has '") as caught:
        refuse_other_architectures({**r50_shapes, key: (1,)})
    assert "supported are Faster R-CNN and Mask R-CNN" in str(caught.value)


LACKING = [
    ("backbone.", "no detector with a ResNet backbone"),
    ("rpn_head.", "no two-stage detector"),
    ("neck.", "a detector without a pyramid"),
    ("neck.upsample_modules.", "a detector with a plain FPN"),
    ("roi_head.bbox_head.", "no detector with a Shared2FCBBoxHead"),
]


@pytest.mark.parametrize(("prefix", "name"), LACKING)
def test_missing_parts(r50_shapes: Shapes, prefix: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"looks like {name}"):
        refuse_other_architectures(
            {k: s for k, s in r50_shapes.items() if not k.startswith(prefix)}
        )


def test_ours_passes(r50_shapes: Shapes) -> None:
    refuse_other_architectures(r50_shapes)


def test_no_tensors() -> None:
    with pytest.raises(CheckpointError, match="holds no tensors"):
        refuse_other_architectures({})


def test_deconvolution_mask_head(r50_shapes: Shapes) -> None:
    with pytest.raises(CheckpointError, match="mask head upsamples with a deconvolution"):
        refuse_other_architectures(
            {**r50_shapes, "roi_head.mask_head.upsample.weight": (256, 256, 2, 2)}
        )


@pytest.mark.parametrize("prefix", ["", "roi_head."])
def test_version_1(r50_shapes: Shapes, prefix: str) -> None:
    shapes = {k: s for k, s in r50_shapes.items() if not k.startswith("roi_head.")}
    shapes[f"{prefix}bbox_head.fc_cls.weight"] = (81, 1024)
    shapes[f"{prefix}bbox_head.fc_reg.weight"] = (324, 1024)
    with pytest.raises(
        CheckpointError, match=r"mmdetection 1\.x: 81 class scores with 324 box del"
    ):
        refuse_other_architectures(shapes)


WRONG_SHAPES = [
    ({"roi_head.bbox_head.fc_reg.weight": (4, 1024)}, "class-agnostic"),
    ({"roi_head.mask_head.conv_logits.weight": (1, 256, 1, 1)}, "the mask head has 1 classes and"),
    ({"backbone.layer1.0.conv2.weight": (128, 4, 3, 3)}, "as in ResNeXt"),
    ({"backbone.layer4.3.conv1.weight": (1, 1, 1, 1)}, r"\(3, 4, 6, 4\) bottleneck blocks"),
    ({"roi_head.bbox_head.shared_fcs.0.weight": (1024, 12545)}, "no square of RoI"),
    ({"rpn_head.rpn_cls.weight": (3, 256)}, r"has shape \(3, 256\); expected 4 dimensions"),
    ({"neck.fpn_convs.0.conv.weight": (0, 256, 3, 3)}, "expected 4 dimensions of 1 or more"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_SHAPES)
def test_shapes_of_something_else(r50_shapes: Shapes, changes: Shapes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer_detector({**r50_shapes, **changes})


def test_a_missing_key_is_named(r50_shapes: Shapes) -> None:
    del r50_shapes["rpn_head.rpn_conv.weight"]
    with pytest.raises(CheckpointError, match=r"has no 'rpn_head\.rpn_conv\.weight'"):
        infer_detector(r50_shapes)
