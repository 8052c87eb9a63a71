"""What the names and shapes of a state_dict say about the detector they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from carafe_deploy.errors import CheckpointError
from carafe_deploy.models.config import (
    BackboneConfig,
    BoxHeadConfig,
    DetectorConfig,
    MaskHeadConfig,
    NeckConfig,
    RpnConfig,
    UpsampleConfig,
)
from carafe_deploy.models.resnet import BLOCKS

Shapes = Mapping[str, tuple[int, ...]]

_SUPPORTED = (
    "supported are Faster R-CNN and Mask R-CNN with a ResNet backbone and FPN_CARAFE, as trained "
    "by mmdetection 2.x or 3.x"
)

#: (pattern found in some key, what such a checkpoint is); the first match names it.
_SIGNATURES: tuple[tuple[str, str], ...] = (
    (r"^bbox_head\.retina_", "RetinaNet"),
    (r"^bbox_head\.(conv_centerness|fcos_)", "FCOS"),
    (r"^bbox_head\.(atss|gfl|tood)_", "a one-stage detector (ATSS, GFL or TOOD)"),
    (r"^bbox_head\.multi_level_", "YOLOX"),
    (r"^bbox_head\.convs_(pred|bridge)", "YOLOv3"),
    (r"^bbox_head\.(cls|reg)_convs\.", "a one-stage detector"),
    (
        r"^(bbox_head\.)?(transformer|query_embed\w*|(en|de)coder)\b",
        "a detector of the DETR family",
    ),
    (r"^roi_head\.(bbox|mask)_head\.\d+\.", "Cascade R-CNN"),
    (r"^roi_head\.mask_iou_head\.", "Mask Scoring R-CNN"),
    (r"^roi_head\.(semantic|glbctx)_head\.", "HTC or SCNet"),
    (r"^roi_head\.grid_head\.", "Grid R-CNN"),
    (r"^roi_head\.(point_head|mask_head\.fcs\.)", "PointRend"),
    (r"^(roi_heads\.box_predictor|backbone\.body)\.", "a torchvision detector"),
    (r"^(proposal_generator|backbone\.bottom_up)\.", "a Detectron2 detector"),
    (r"^model\.\d+\.", "an Ultralytics YOLO"),
    (r"^(decode_head|auxiliary_head)\.", "an mmsegmentation network"),
    (r"^(head\.)?fc\.weight$", "an image classifier"),
    (r"^(conv1|layer1\.0\.conv1)\.weight$", "a backbone alone"),
    (r"^backbone\.(patch_embed|stages)\.", "a detector with a Swin or other non-ResNet backbone"),
    (r"^backbone\.stem\.", "a detector with a deep-stem ResNet (ResNetV1c or V1d)"),
    (r"^backbone\.layer\d\.\d+\.convs\.", "a detector with a Res2Net backbone"),
    (r"^backbone\..*(conv2_offset|conv_offset)\.", "a detector with deformable convolutions"),
    (r"^backbone\.layer\d\.\d+\.(context_block|gen_attention)", "a detector with backbone plugins"),
    (r"^neck\.(downsample_convs|pafpn_convs)\.", "a detector with PAFPN"),
    (
        r"^neck\.(lateral|fpn)_convs\.\d+\.(bn|gn)\.",
        "a detector whose neck has normalisation layers",
    ),
    (r"^roi_head\.bbox_head\.(shared_)?convs\.", "a detector with convolutions in its box head"),
)


class Inferred(NamedTuple):
    """A detector described by shapes; where they are silent, by mmdetection's COCO defaults."""

    config: DetectorConfig
    #: Anchors at each position of the RPN; their scales and ratios leave no trace in shapes.
    num_anchors: int
    #: Choices that other settings would have explained as well.
    notes: tuple[str, ...]


def refuse_other_architectures(shapes: Shapes) -> None:
    """Raise CheckpointError for keys of another architecture, or of mmdetection 1.x."""
    if not shapes:
        raise CheckpointError(f"the checkpoint holds no tensors; {_SUPPORTED}")
    _refuse_version_1(shapes)
    for pattern, name in _SIGNATURES:
        key = next((key for key in shapes if re.search(pattern, key)), None)
        if key is not None:
            raise CheckpointError(
                f"the checkpoint looks like {name} (it has {key!r}); {_SUPPORTED}"
            )
    for prefix, name in (
        ("backbone.layer1.0.conv1.", "no detector with a ResNet backbone"),
        ("rpn_head.", "no two-stage detector"),
        ("roi_head.bbox_head.shared_fcs.1.", "no detector with a Shared2FCBBoxHead"),
        ("neck.fpn_convs.", "a detector without a pyramid"),
        ("neck.upsample_modules.0.channel_compressor.", "a detector with a plain FPN"),
    ):
        if not any(key.startswith(prefix) for key in shapes):
            raise CheckpointError(
                f"the checkpoint looks like {name} (it has no {prefix + '*'!r}); {_SUPPORTED}"
            )
    if "roi_head.mask_head.upsample.weight" in shapes:
        raise CheckpointError(
            "the mask head upsamples with a deconvolution (it has "
            "'roi_head.mask_head.upsample.weight'); only CARAFE is supported there"
        )


def _refuse_version_1(shapes: Shapes) -> None:
    for prefix in ("", "roi_head."):
        scores = shapes.get(f"{prefix}bbox_head.fc_cls.weight")
        deltas = shapes.get(f"{prefix}bbox_head.fc_reg.weight")
        if not scores or not deltas:
            continue
        if deltas[0] == 4 * scores[0]:
            raise CheckpointError(
                f"the checkpoint is of mmdetection 1.x: {scores[0]} class scores with "
                f"{deltas[0]} box deltas mean that background is class 0 and has deltas too. Its "
                "anchors and box arithmetic differ as well, so it is refused: train with "
                "mmdetection 2.x or 3.x"
            )
        if deltas[0] == 4 and scores[0] > 2:
            raise CheckpointError(
                f"the box head is class-agnostic (4 box deltas for {scores[0] - 1} classes): only "
                "reg_class_agnostic=False is supported"
            )


def infer_detector(shapes: Shapes) -> Inferred:
    """Depth, widths, kernels and classes from shapes; the rest is mmdetection's COCO default.

    Raises:
        CheckpointError: the shapes are not those of a supported detector.
    """
    refuse_other_architectures(shapes)
    notes: list[str] = []
    channels = _shape(shapes, "neck.fpn_convs.0.conv.weight")[0]
    num_anchors = _shape(shapes, "rpn_head.rpn_cls.weight")[0]
    first, second = (_shape(shapes, f"roi_head.bbox_head.shared_fcs.{i}.weight") for i in (0, 1))
    roi_size = math.isqrt(first[1] // channels)
    if roi_size * roi_size * channels != first[1]:
        raise CheckpointError(
            f"roi_head.bbox_head.shared_fcs.0 takes {first[1]} values, which are no square of RoI "
            f"bins with the neck's {channels} channels; {_SUPPORTED}"
        )
    mask = None
    if any(key.startswith("roi_head.mask_head.") for key in shapes):
        mask = _mask_head(shapes, channels, notes)
    config = DetectorConfig(
        backbone=_backbone(shapes),
        neck=NeckConfig(channels, _upsample(shapes, "neck.upsample_modules.0", channels, notes)),
        rpn=RpnConfig(feat_channels=_shape(shapes, "rpn_head.rpn_conv.weight")[0]),
        box=BoxHeadConfig(roi_size=roi_size, fc_channels=second[0]),
        mask=mask,
        classes=tuple(
            f"class_{i}" for i in range(_shape(shapes, "roi_head.bbox_head.fc_cls.weight")[0] - 1)
        ),
    )
    return Inferred(config, num_anchors, tuple(notes))


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    rank = 2 if ".shared_fcs." in key or ".fc_" in key else 4
    shape = shapes.get(key)
    if shape is None:
        raise CheckpointError(f"the checkpoint has no {key!r}; {_SUPPORTED}")
    if len(shape) != rank or min(shape) < 1:
        raise CheckpointError(f"{key!r} has shape {shape}; expected {rank} dimensions of 1 or more")
    return shape


def _backbone(shapes: Shapes) -> BackboneConfig:
    base = _shape(shapes, "backbone.conv1.weight")[0]
    blocks = tuple(
        len({found[1] for key in shapes if (found := re.match(pattern, key))})
        for pattern in (rf"backbone\.layer{layer}\.(\d+)\.conv1\." for layer in (1, 2, 3, 4))
    )
    bottleneck = "backbone.layer1.0.conv3.weight" in shapes
    depths = [d for d, counts in BLOCKS.items() if counts == blocks and (d >= 50) == bottleneck]
    if not depths:
        raise CheckpointError(
            f"the backbone has {blocks} {'bottleneck' if bottleneck else 'basic'} blocks, which is "
            f"none of the supported ResNets ({', '.join(map(str, BLOCKS))})"
        )
    width = _shape(shapes, "backbone.layer1.0.conv2.weight")
    if width[:2] != (base, base):
        raise CheckpointError(
            f"backbone.layer1.0.conv2 has shape {width} beside {base} base channels, as in ResNeXt "
            f"or a wide ResNet; {_SUPPORTED}"
        )
    return BackboneConfig(depths[0], base)


def _mask_head(shapes: Shapes, channels: int, notes: list[str]) -> MaskHeadConfig:
    prefix = "roi_head.mask_head"
    count = 0
    while f"{prefix}.convs.{count}.conv.weight" in shapes:
        count += 1
    width = _shape(shapes, f"{prefix}.convs.0.conv.weight")[0] if count else channels
    upsample = _upsample(shapes, f"{prefix}.upsample", width, notes)
    classes = _shape(shapes, f"{prefix}.conv_logits.weight")[0]
    boxes = _shape(shapes, "roi_head.bbox_head.fc_cls.weight")[0] - 1
    if classes != boxes:
        raise CheckpointError(
            f"the mask head has {classes} classes and the box head {boxes}: only a mask for every "
            "class (class_agnostic=False) is supported"
        )
    return MaskHeadConfig(num_convs=count, conv_channels=width, upsample=upsample)


def _upsample(shapes: Shapes, prefix: str, channels: int, notes: list[str]) -> UpsampleConfig:
    compressed = _shape(shapes, f"{prefix}.channel_compressor.weight")[0]
    encoder = _shape(shapes, f"{prefix}.content_encoder.weight")
    scale = 2  # what FPN_CARAFE always uses
    taps, rest = divmod(encoder[0], scale * scale)
    choices = [
        (kernel, taps // kernel**2)
        for kernel in range(3, math.isqrt(max(taps, 0)) + 1, 2)
        if taps % kernel**2 == 0 and channels % (taps // kernel**2) == 0
    ]
    if rest or not choices:
        raise CheckpointError(
            f"{prefix}.content_encoder has {encoder[0]} outputs, which is 4 · up_group · up_kernel²"
            f" for no odd up_kernel and no up_group that divides {channels} channels; {_SUPPORTED}"
        )
    kernel, group = min(choices, key=lambda choice: choice[1])
    if len(choices) > 1 or group > 1:
        others = ", ".join(f"{k} with {g}" for k, g in choices if (k, g) != (kernel, group))
        notes.append(
            f"{prefix}: {encoder[0]} encoder outputs read as up_kernel {kernel} with up_group "
            f"{group} at scale factor 2" + (f" (possible too: {others})" if others else "")
        )
    return UpsampleConfig(
        up_kernel=kernel,
        up_group=group,
        encoder_kernel=encoder[2],
        compressed_channels=compressed,
        scale_factor=scale,
    )
