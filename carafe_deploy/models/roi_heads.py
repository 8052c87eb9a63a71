"""Box and mask heads (Faster R-CNN; Mask R-CNN, arXiv:1703.06870, with CARAFE in the mask head)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carafe_deploy.models.boxes import BoxCoder, gather_rows
from carafe_deploy.models.config import BoxHeadConfig, DetectorConfig, MaskHeadConfig
from carafe_deploy.models.fpn_carafe import conv_module, upsampler
from carafe_deploy.models.rpn import Proposals
from carafe_deploy.ops import batched_nms, box_candidates, multilevel_roi_align
from carafe_deploy.ops.convolutions import conv_relu, linear_relu


class BoxHead(nn.Module):
    """Two shared fully connected layers, then class scores and per-class deltas."""

    def __init__(self, in_channels: int, num_classes: int, config: BoxHeadConfig) -> None:
        super().__init__()
        hidden = config.fc_channels
        self.roi_size = config.roi_size
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, num_classes * 4)
        self.shared_fcs = nn.ModuleList(
            (nn.Linear(in_channels * config.roi_size**2, hidden), nn.Linear(hidden, hidden))
        )
        self.channels_last = False

    def lay_out_channels_last(self) -> None:
        """Reorder the first layer's weights once, instead of copying features; twice is once."""
        if self.channels_last:
            return
        first = self.shared_fcs[0]
        assert isinstance(first, nn.Linear)
        weight = first.weight.data.unflatten(1, (-1, self.roi_size**2))  # [hidden, C, S*S]
        first.weight.data = weight.transpose(1, 2).flatten(1)
        self.channels_last = True

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P, C, S, S] -> logits [B, P, classes+1], background last; deltas [B, P, 4*classes].

        The deltas of class c are columns 4*c to 4*c+3.
        """
        if self.channels_last:
            pooled = pooled.permute(0, 1, 3, 4, 2)
        x = pooled.flatten(2)
        for layer in self.shared_fcs:
            x = linear_relu(x, layer)
        return self.fc_cls(x), self.fc_reg(x)


class DetectedBoxes(NamedTuple):
    """The detector's outputs before masks: [B, 1] int32, [B, D, 4], [B, D], [B, D] int32."""

    num_dets: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor


class DetectionSelector(nn.Module):
    """Softmax, decoding for each class, NMS inside each class, best over all classes."""

    def __init__(self, config: BoxHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.coder = BoxCoder(config.coder)

    def forward(
        self, logits: Tensor, deltas: Tensor, proposals: Proposals, image_sizes: Tensor
    ) -> DetectedBoxes:
        """Outputs of :class:`BoxHead` -> DetectedBoxes; padding rows are 0, their class -1."""
        rows = proposals.boxes.shape[1]
        boxes, scores = box_candidates(
            logits,
            deltas,
            proposals.boxes,
            proposals.num_proposals,
            image_sizes,
            self.coder.normalization,
        )
        count, index = batched_nms(
            boxes,
            scores,
            iou_threshold=self.config.nms_iou_threshold,
            score_threshold=self.config.score_threshold,
            max_output=self.config.max_detections,
        )
        valid = index >= 0
        index = index.clamp(min=0)
        classes = torch.div(index, rows, rounding_mode="trunc")
        return DetectedBoxes(
            count,
            gather_rows(boxes.flatten(1, 2), index) * valid.unsqueeze(-1),
            scores.flatten(1).gather(1, index).masked_fill(~valid, 0.0),
            classes.masked_fill(~valid, -1).to(torch.int32),
        )


class MaskHead(nn.Module):
    """Fully convolutional mask head whose deconvolution is CARAFE.

    With one group, CARAFE and the 1x1 convolution ``conv_logits`` after it commute exactly: both
    are linear, one over channels and one over positions; zero padding meets no bias. So the
    predicted class's single channel is computed first, and only that is upsampled.
    ``reorder = False`` restores the order of the paper.
    """

    def __init__(self, in_channels: int, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        channels = config.conv_channels
        self.convs = nn.ModuleList(
            conv_module(in_channels if i == 0 else channels, channels, 3)
            for i in range(config.num_convs)
        )
        upsampled = channels if config.num_convs else in_channels
        self.upsample = upsampler(upsampled, config.upsample)
        self.conv_logits = nn.Conv2d(upsampled, num_classes, 1)
        self.reorder = config.upsample.up_group == 1
        # Tensors that no other module returns, for StagedDetector to find.
        self.coarse_logits = nn.Identity()
        self.upsampled = nn.Identity()

    def forward(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """[R, C, S, S] and the label of each RoI [R] int64 -> its logits [R, s*S, s*S]."""
        x = pooled
        for conv in self.convs:
            x = conv_relu(x, conv.get_submodule("conv"))
        assert self.conv_logits.bias is not None
        weight = self.conv_logits.weight[classes].flatten(1).unsqueeze(1)  # [R, 1, C]
        bias = self.conv_logits.bias[classes].view(-1, 1, 1)
        if self.reorder:
            encoded = self.upsample.encode(x)
            logits = self.coarse_logits(
                torch.bmm(weight, x.flatten(2)).view(-1, 1, *x.shape[2:])  # [R, 1, S, S]
            )
            return self.upsampled(self.upsample.reassemble(logits, encoded))[:, 0] + bias
        x = self.upsampled(self.upsample(x))
        return torch.bmm(weight, x.flatten(2)).view(-1, *x.shape[2:]) + bias


class RoIHead(nn.Module):
    """Proposals to detections, and to masks where there is a mask head."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        channels, classes = config.neck.out_channels, config.num_classes
        self.bbox_head = BoxHead(channels, classes, config.box)
        self.detection_selector = DetectionSelector(config.box)
        if config.mask is not None:
            self.mask_head = MaskHead(channels, classes, config.mask)

    def _pool(
        self, rois: Tensor, pyramid: Sequence[Tensor], config: BoxHeadConfig | MaskHeadConfig
    ) -> Tensor:
        """[B, K, 4] -> [B, K, C, S, S]."""
        return multilevel_roi_align(
            rois,
            pyramid,
            output_size=config.roi_size,
            sampling_ratio=config.sampling_ratio,
            strides=self.config.box.strides,
            finest_scale=self.config.box.finest_scale,
        )

    def forward(
        self, pyramid: Sequence[Tensor], proposals: Proposals, image_sizes: Tensor
    ) -> tuple[Tensor, ...]:
        """P2..P5 and proposals -> num_dets, det_boxes, det_scores, det_classes[, det_masks]."""
        logits, deltas = self.bbox_head(self._pool(proposals.boxes, pyramid, self.config.box))
        detections = self.detection_selector(logits, deltas, proposals, image_sizes)
        if self.config.mask is None:
            return tuple(detections)
        pooled = self._pool(detections.boxes, pyramid, self.config.mask)
        classes = detections.classes.flatten().clamp(min=0).long()
        masks = self.mask_head(pooled.flatten(0, 1), classes).float().sigmoid()
        batch, rows = detections.scores.shape
        return (*detections, masks.view(batch, rows, *masks.shape[1:]))
