"""One frozen description of a detector; everything in `models` is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from carafe_deploy.brief import OneLine
from carafe_deploy.types import Preprocessing

Vec4 = tuple[float, float, float, float]


@dataclass(frozen=True)
class UpsampleConfig:
    """CARAFEPack settings (arXiv:1905.02188, section 3.2; names as in mmdetection)."""

    up_kernel: int = 5
    up_group: int = 1
    encoder_kernel: int = 3
    encoder_dilation: int = 1
    compressed_channels: int = 64
    scale_factor: int = 2


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet, style 'pytorch': the stride sits on the 3x3 convolution."""

    depth: int = 50
    base_channels: int = 64

    @property
    def out_channels(self) -> tuple[int, int, int, int]:
        """Channels of C2..C5."""
        expansion = 1 if self.depth < 50 else 4
        base = self.base_channels * expansion
        return (base, base * 2, base * 4, base * 8)


@dataclass(frozen=True, repr=False)
class NeckConfig(OneLine):
    """FPN_CARAFE with five outputs, P2..P6."""

    out_channels: int = 256
    upsample: UpsampleConfig = field(default_factory=UpsampleConfig)


@dataclass(frozen=True, repr=False)
class AnchorConfig(OneLine):
    """Anchors of mmdetection's AnchorGenerator; strides in pixels, ratios are height/width."""

    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)

    @property
    def per_cell(self) -> int:
        """Anchors at each position."""
        return len(self.ratios) * len(self.scales)


@dataclass(frozen=True, repr=False)
class BoxCoderConfig(OneLine):
    """DeltaXYWHBBoxCoder: how deltas are denormalised."""

    means: Vec4 = (0.0, 0.0, 0.0, 0.0)
    stds: Vec4 = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, repr=False)
class RpnConfig(OneLine):
    """Region proposal network and its test settings."""

    feat_channels: int = 256
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    coder: BoxCoderConfig = field(default_factory=BoxCoderConfig)
    nms_pre: int = 1000
    nms_iou_threshold: float = 0.7
    max_proposals: int = 1000
    #: Boxes with width or height <= this (pixels) are dropped; negative keeps all.
    min_box_size: float = 0.0


@dataclass(frozen=True, repr=False)
class BoxHeadConfig(OneLine):
    """Shared2FCBBoxHead over RoIAlign, and its test settings."""

    roi_size: int = 7
    sampling_ratio: int = 0
    #: Strides of the levels that RoIs are pooled from (P2..P5).
    strides: tuple[int, ...] = (4, 8, 16, 32)
    #: RoIs with sqrt(area) below 2*finest_scale pixels go to the finest level.
    finest_scale: int = 56
    fc_channels: int = 1024
    coder: BoxCoderConfig = field(default_factory=lambda: BoxCoderConfig(stds=(0.1, 0.1, 0.2, 0.2)))
    score_threshold: float = 0.05
    nms_iou_threshold: float = 0.5
    max_detections: int = 100


@dataclass(frozen=True, repr=False)
class MaskHeadConfig(OneLine):
    """FCNMaskHead with CARAFE upsampling, and its test settings."""

    roi_size: int = 14
    sampling_ratio: int = 0
    num_convs: int = 4
    conv_channels: int = 256
    upsample: UpsampleConfig = field(default_factory=UpsampleConfig)
    mask_threshold: float = 0.5


@dataclass(frozen=True, repr=False)
class DetectorConfig(OneLine):
    """A whole detector; `mask` is None for Faster R-CNN."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    rpn: RpnConfig = field(default_factory=RpnConfig)
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig | None = None
    classes: tuple[str, ...] = tuple(f"class_{i}" for i in range(80))
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def num_classes(self) -> int:
        """Foreground classes."""
        return len(self.classes)

    @property
    def architecture(self) -> str:
        """``"mask_rcnn"`` or ``"faster_rcnn"``."""
        return "faster_rcnn" if self.mask is None else "mask_rcnn"
