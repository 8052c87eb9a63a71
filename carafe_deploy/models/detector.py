"""Faster R-CNN and Mask R-CNN with CARAFE, from normalised images to fixed-shape detections."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
from carafe_deploy.models.fpn_carafe import FPNCarafe
from carafe_deploy.models.resnet import BLOCKS, ResNet, join_biases
from carafe_deploy.models.roi_heads import RoIHead
from carafe_deploy.models.rpn import ProposalSelector, RPNHead
from carafe_deploy.ops.convolutions import fuse_epilogues
from carafe_deploy.stages import DETECTIONS, detector_stages
from carafe_deploy.types import Preprocessing


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


def prepare_for_inference(
    detector: Detector, dtype: torch.dtype = torch.float32, *, fused: bool = False
) -> Detector:
    """Fold batch normalisation into the convolutions in float32, then convert to `dtype`, in place.

    RoIs, box decoding, softmaxes and NMS stay float32 whatever the dtype.

    Args:
        detector: in evaluation mode.
        dtype: of convolutions and matrix products.
        fused: on a GPU, let these add biases and shortcuts and apply ReLUs themselves; see
            :mod:`carafe_deploy.ops.convolutions`. Results are the same up to rounding.
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
    if fused:
        for block in list(detector.backbone.modules()):
            join_biases(block)
        fuse_epilogues(detector)
    return detector.requires_grad_(False).to(dtype)


def lay_out_channels_last(detector: Detector) -> Detector:
    """Lay all weights out for channels-last feature maps, in place, so that no layer copies them.

    Outputs are the same up to rounding; the state_dict is no longer mmdetection's.
    """
    detector.roi_head.bbox_head.lay_out_channels_last()
    return detector.to(memory_format=torch.channels_last)


class ImageNormalization(nn.Module):
    """uint8 BGR images to the input of the detector that follows, inside the graph.

    ``channels_last`` hands them on in that memory format, which is theirs already.
    """

    def __init__(
        self, detector: nn.Module, preprocessing: Preprocessing, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.detector = detector
        self.preprocessing = preprocessing
        self.channels_last = channels_last

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
            dim=3 if self.channels_last else 1,
        )
        if self.channels_last:
            normalised = normalised.permute(0, 3, 1, 2)
        # [B, 3, H, W]
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
    """A detector that also returns its intermediate tensors by ``stage_names``, for stage parity.

    Each is read where a module takes or returns it, without changing the detector.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self._probes = _probes(detector.config)
        self.stage_names = stage_names(detector.config)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the detector, then one tensor for each of ``stage_names``."""
        seen: dict[str, Tensor] = {}
        handles = [probe.attach(self.detector, seen) for probe in self._probes]
        self.detector.neck.keep_laterals = True
        try:
            outputs = self.detector(images, image_sizes)
        finally:
            self.detector.neck.keep_laterals = False
            for handle in handles:
                handle.remove()
        return (*outputs, *(seen[name] for name in self.stage_names))


def stage_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the intermediate tensors (:mod:`carafe_deploy.stages`), in order of computation."""
    stages = detector_stages(
        BLOCKS[config.backbone.depth],
        None if config.mask is None else config.mask.num_convs,
        logits_first=config.mask is not None and config.mask.upsample.up_group == 1,
    )
    return tuple(stage.name for stage in stages if stage.name != DETECTIONS)


class _Probe(NamedTuple):
    """Names for what a submodule returns, or is given: over all its calls, in order."""

    path: str
    names: tuple[str, ...]
    given: bool = False

    def attach(self, detector: Detector, seen: dict[str, Tensor]) -> RemovableHandle:
        """Record tensors by name from now on."""
        module, names = detector.get_submodule(self.path), iter(self.names)

        def record(tensors: Any) -> None:
            # Tensors first: where they end, zip has not yet taken a name.
            seen.update((name, tensor) for tensor, name in zip(_flat(tensors), names, strict=False))

        if self.given:
            return module.register_forward_pre_hook(lambda module, arguments: record(arguments))
        return module.register_forward_hook(lambda module, arguments, result: record(result))


def _flat(tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    return [tensor for part in tensors for tensor in _flat(part)]


def _probes(config: DetectorConfig) -> list[_Probe]:
    """Where named tensors are found; what a ReLU changes in place, at the input of the next."""
    levels = range(5)
    layers = enumerate(BLOCKS[config.backbone.depth], start=1)
    probes = [
        _Probe("backbone.maxpool", ("stem",)),
        *(
            _Probe(f"backbone.layer{layer}.{block}", (f"layer{layer}.{block}",))
            for layer, count in layers
            for block in range(count - 1)
        ),
        _Probe("backbone", ("C2", "C3", "C4", "C5")),
        *(_Probe(f"neck.lateral_convs.{i}", (f"L{i + 2}",)) for i in levels),
        *(_Probe(f"neck.upsample_modules.{i}.content_encoder", (f"encoder{i}",)) for i in range(4)),
        *(_Probe(f"neck.upsample_modules.{i}", (f"carafe{i}",)) for i in range(4)),
        _Probe("neck", tuple(f"P{i + 2}" for i in levels)),
        _Probe("rpn_head.rpn_cls", tuple(f"rpn_conv{i}" for i in levels), given=True),
        _Probe("rpn_head", tuple(f"rpn_{kind}{i}" for kind in ("cls", "reg") for i in levels)),
        _Probe("proposal_selector", ("proposals", "proposal_scores")),
        _Probe("roi_head.bbox_head", ("roi_features",), given=True),
        _Probe("roi_head.bbox_head.shared_fcs.1", ("shared_fc1",), given=True),
        _Probe("roi_head.bbox_head.fc_cls", ("shared_fc2",), given=True),
        _Probe("roi_head.bbox_head", ("cls_score", "bbox_pred")),
    ]
    if config.mask is not None:
        probes += _mask_probes(config.mask)
    return probes


def _mask_probes(config: MaskHeadConfig) -> list[_Probe]:
    head = "roi_head.mask_head"
    following = [f"convs.{i}.conv" for i in range(1, config.num_convs)]
    following += ["upsample.channel_compressor"] * (config.num_convs > 0)
    probes = [
        _Probe(head, ("mask_roi_features",), given=True),
        *(
            _Probe(f"{head}.{path}", (f"mask_conv{i}",), given=True)
            for i, path in enumerate(following, start=1)
        ),
        _Probe(f"{head}.upsample.content_encoder", ("mask_encoder",)),
        _Probe(f"{head}.upsampled", ("mask_carafe",)),
        _Probe(head, ("mask_logits",)),
    ]
    if config.upsample.up_group == 1:
        probes.append(_Probe(f"{head}.coarse_logits", ("mask_coarse_logits",)))
    return probes
