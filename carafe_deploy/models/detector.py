"""Faster R-CNN and Mask R-CNN with CARAFE, from normalised images to fixed-shape detections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from carafe_deploy.models.config import DetectorConfig
from carafe_deploy.models.fpn_carafe import FPNCarafe
from carafe_deploy.models.resnet import ResNet
from carafe_deploy.models.roi_heads import RoIHead
from carafe_deploy.models.rpn import ProposalSelector, RPNHead
from carafe_deploy.types import Preprocessing

__all__ = [
    "Detector",
    "ImageNormalization",
    "StagedDetector",
    "build_detector",
    "prepare_for_inference",
    "stage_names",
]


class Detector(nn.Module):
    """A two-stage detector whose state_dict has mmdetection's keys, shapes and order.

    Shapes depend on the input's shape alone: no output or intermediate depends on the data.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.neck.out_channels
        self.backbone = ResNet(config.backbone)
        self.neck = FPNCarafe(config.backbone.out_channels, config.neck)
        self.rpn_head = RPNHead(channels, config.rpn)
        self.proposal_selector = ProposalSelector(config.rpn)
        self.roi_head = RoIHead(config)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: [B, 3, H, W] float32 normalised; H and W multiples of ``pad_size_divisor``.
            image_sizes: [B, 2] float32, height and width of each image before padding.

        Returns:
            num_dets [B, 1] int32, det_boxes [B, D, 4] float32 (x1, y1, x2, y2 in input pixels),
            det_scores [B, D] float32, det_classes [B, D] int32 and, for Mask R-CNN, det_masks
            [B, D, 28, 28] float32 probabilities of the predicted class. Rows from ``num_dets`` on
            are zero, their class -1.
        """
        images = images.to(self.rpn_head.rpn_conv.weight.dtype)
        pyramid = self.neck(self.backbone(images))
        proposals = self.proposal_selector(*self.rpn_head(pyramid), image_sizes)
        outputs: tuple[Tensor, ...] = self.roi_head(
            pyramid[: len(self.config.box.strides)], proposals, image_sizes
        )
        return outputs


def build_detector(config: DetectorConfig) -> Detector:
    """A detector in evaluation mode with random weights."""
    return Detector(config).eval()


def prepare_for_inference(detector: Detector, dtype: torch.dtype = torch.float32) -> Detector:
    """Fold batch normalisation into the convolutions, then convert weights to `dtype`, in place.

    RoIs, box decoding, softmaxes and NMS stay float32 whatever the dtype. Folding happens in
    float32, before rounding to a half type.
    """
    for module in list(detector.backbone.modules()):
        children = dict(module.named_children())
        pairs = [
            (name, "bn" + name.removeprefix("conv")) for name in children if name.startswith("conv")
        ]
        if isinstance(module, nn.Sequential) and "1" in children:
            pairs = [("0", "1")]
        for conv, norm in pairs:
            first, second = children[conv], children.get(norm)
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())
    return detector.requires_grad_(False).to(dtype)


class ImageNormalization(nn.Module):
    """uint8 BGR images to a detector's input, inside the graph.

    Args:
        detector: what follows.
        preprocessing: mean, standard deviation and channel order.
    """

    def __init__(self, detector: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.detector = detector
        self.preprocessing = preprocessing

    def forward(self, images: Tensor, image_sizes: Tensor) -> Any:
        """images [B, H, W, 3] uint8 as read (BGR), zero-padded; image_sizes [B, 2] float32."""
        settings = self.preprocessing
        channels = list(images.float().unbind(-1))
        if settings.bgr_to_rgb:
            channels.reverse()
        normalised = torch.stack(
            [
                (channel - mean) / std
                for channel, mean, std in zip(channels, settings.mean, settings.std, strict=True)
            ],
            dim=1,
        )  # [B, 3, H, W]
        # mmdetection pads after normalising, so padding has to be zero again.
        row = _positions(normalised[0, 0, :, 0]).view(1, -1, 1)
        column = _positions(normalised[0, 0, 0, :]).view(1, 1, -1)
        height, width = (size.view(-1, 1, 1) for size in image_sizes.unbind(1))
        inside = (row < height) & (column < width)  # [B, H, W]
        return self.detector(normalised * inside.unsqueeze(1), image_sizes)


def _positions(line: Tensor) -> Tensor:
    """0, 1, 2, ... as many as `line` has elements; unlike arange it traces without a device."""
    return torch.ones_like(line).cumsum(0) - 1


class StagedDetector(nn.Module):
    """A detector that also returns its named intermediate tensors, for stage parity.

    The names are in ``stage_names`` after construction: C2..C5, carafe0..3 (finest first), P2..P6,
    rpn_cls0..4, rpn_reg0..4, proposals, proposal_scores, cls_score, bbox_pred, mask_logits.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self._watched = _watched(detector.config)
        self.stage_names = stage_names(detector.config)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the detector, then one tensor for each of ``stage_names``."""
        seen: dict[str, Tensor] = {}
        handles = [
            self.detector.get_submodule(path).register_forward_hook(_recorder(names, seen))
            for path, names in self._watched.items()
        ]
        try:
            outputs = self.detector(images, image_sizes)
        finally:
            for handle in handles:
                handle.remove()
        return (*outputs, *(seen[name] for name in self.stage_names))


def stage_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the intermediate tensors of a detector, in the order that staged outputs have."""
    return tuple(name for names in _watched(config).values() for name in names)


def _watched(config: DetectorConfig) -> dict[str, tuple[str, ...]]:
    """Names of the tensors that each watched submodule returns."""
    watched = {
        "backbone": ("C2", "C3", "C4", "C5"),
        **{f"neck.upsample_modules.{i}": (f"carafe{i}",) for i in range(4)},
        "neck": ("P2", "P3", "P4", "P5", "P6"),
        "rpn_head": tuple(f"rpn_{kind}{i}" for kind in ("cls", "reg") for i in range(5)),
        "proposal_selector": ("proposals", "proposal_scores"),
        "roi_head.bbox_head": ("cls_score", "bbox_pred"),
    }
    if config.mask is not None:
        watched["roi_head.mask_head"] = ("mask_logits",)
    return watched


def _recorder(names: tuple[str, ...], seen: dict[str, Tensor]) -> Any:
    def record(module: nn.Module, arguments: Any, result: Any) -> None:
        seen.update(zip(names, _flat(result), strict=False))

    return record


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _flat(part)]
