"""FPN_CARAFE: the top-down path with CARAFE upsampling (arXiv:1905.02188, figure 3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from carafe_deploy.models.config import NeckConfig, UpsampleConfig
from carafe_deploy.ops.modules import CARAFEPack


def conv_module(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with bias under mmcv's ConvModule key, ``conv``."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    return nn.Sequential(OrderedDict(conv=convolution))


def upsampler(channels: int, config: UpsampleConfig) -> CARAFEPack:
    """Build the CARAFEPack that a configuration describes."""
    return CARAFEPack(
        channels,
        config.scale_factor,
        up_kernel=config.up_kernel,
        up_group=config.up_group,
        encoder_kernel=config.encoder_kernel,
        encoder_dilation=config.encoder_dilation,
        compressed_channels=config.compressed_channels,
    )


class FPNCarafe(nn.Module):
    """C2..C5 to P2..P6; P6 comes from C5 and takes part in the top-down path.

    Sums are written over the laterals, which nobody needs any more: at 832x1216 that spares 86 MB
    of fresh memory. ``keep_laterals`` makes new tensors instead.
    """

    def __init__(self, in_channels: Sequence[int], config: NeckConfig) -> None:
        super().__init__()
        self.keep_laterals = False
        channels = config.out_channels
        self.lateral_convs = nn.ModuleList(conv_module(c, channels, 1) for c in in_channels)
        self.lateral_convs.append(conv_module(in_channels[-1], channels, 3, stride=2))
        self.fpn_convs = nn.ModuleList(conv_module(channels, channels, 3) for _ in range(5))
        self.upsample_modules = nn.ModuleList(
            upsampler(channels, config.upsample) for _ in range(4)
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """C2..C5, [B, C_l, H/stride_l, W/stride_l] -> P2..P6, [B, C, H/stride_l, W/stride_l]."""
        sources = (*features, features[-1])
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, sources, strict=True)]
        for level in (4, 3, 2, 1):
            finer = laterals[level - 1]
            upsampled = self.upsample_modules[level - 1](laterals[level])
            upsampled = upsampled[:, :, : finer.shape[2], : finer.shape[3]]
            laterals[level - 1] = finer + upsampled if self.keep_laterals else finer.add_(upsampled)
        return tuple(conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True))
