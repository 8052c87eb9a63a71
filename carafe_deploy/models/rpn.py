"""Region proposal network (Faster R-CNN, arXiv:1506.01497) as mmdetection's RPNHead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carafe_deploy.models.boxes import Anchors, BoxCoder, gather_rows
from carafe_deploy.models.config import RpnConfig
from carafe_deploy.ops import batched_nms, rpn_candidates
from carafe_deploy.ops.convolutions import conv_relu

#: Below every finite logit, above the -inf of padding.
_ANY_LOGIT = torch.finfo(torch.float32).min


class RPNHead(nn.Module):
    """Objectness and box deltas for every anchor of every level."""

    def __init__(self, in_channels: int, config: RpnConfig) -> None:
        super().__init__()
        anchors = config.anchors.per_cell
        self.rpn_conv = nn.Conv2d(in_channels, config.feat_channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(config.feat_channels, anchors, 1)
        self.rpn_reg = nn.Conv2d(config.feat_channels, anchors * 4, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """P2..P6 -> logits [B, A, H_l, W_l] a level, deltas [B, A*4, H_l, W_l] a level."""
        hidden = [conv_relu(level, self.rpn_conv) for level in pyramid]
        return tuple(map(self.rpn_cls, hidden)), tuple(map(self.rpn_reg, hidden))


class Proposals(NamedTuple):
    """Regions to look at, best first: [B, P, 4] float32 in network-input pixels, [B, P] float32
    objectness, and their number [B, 1] int32. Rows from there on are padding, zeros.
    """

    boxes: Tensor
    scores: Tensor
    num_proposals: Tensor


class ProposalSelector(nn.Module):
    """Top scores of each level, decoded, NMS inside the level, best over all levels.

    Candidates are ranked by their logits. mmdetection ranks by the sigmoid, which orders them
    alike in exact arithmetic; in float32 it makes high scores equal, and runtimes differ in low
    ones (ONNX Runtime's has no relative accuracy there), so that NMS would keep other boxes.
    """

    def __init__(self, config: RpnConfig) -> None:
        super().__init__()
        self.config = config
        self.anchors = Anchors(config.anchors)
        self.coder = BoxCoder(config.coder)

    def forward(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], image_sizes: Tensor
    ) -> Proposals:
        """Outputs of :class:`RPNHead` and image_sizes [B, 2] float32 -> Proposals."""
        boxes, scores = rpn_candidates(
            image_sizes,
            self.anchors.base,
            self.coder.normalization,
            (*logits, *deltas),
            num_candidates=self.config.nms_pre,
            min_size=self.config.min_box_size,
            strides=self.anchors.strides,
        )
        count, index = batched_nms(
            boxes,
            scores,
            iou_threshold=self.config.nms_iou_threshold,
            score_threshold=_ANY_LOGIT,
            max_output=self.config.max_proposals,
        )
        valid = index >= 0
        index = index.clamp(min=0)
        return Proposals(
            gather_rows(boxes.flatten(1, 2), index) * valid.unsqueeze(-1),
            scores.flatten(1).gather(1, index).sigmoid().masked_fill(~valid, 0.0),
            count,
        )
