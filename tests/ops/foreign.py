"""Stand-ins for other implementations' CARAFE modules, written from their documented behaviour.

Class and attribute names, settings and arithmetic are theirs, the code is not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and SiLU under YOLO's names ``conv``, ``bn``, ``act``."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Yolo(nn.Module):
    """The CARAFE of YOLO forks; the class is named ``CARAFE`` below."""

    def __init__(
        self,
        channels: int,
        k_enc: int = 3,
        k_up: int = 5,
        c_mid: int = 8,
        scale: int = 2,
        mode: str = "nearest",
        dilation: int | None = None,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.comp = ConvBlock(channels, c_mid)
        self.enc = ConvBlock(c_mid, (scale * k_up) ** 2, k_enc, act=False)
        self.pix_shf = nn.PixelShuffle(scale)
        self.upsmp = nn.Upsample(scale_factor=scale, mode=mode)
        self.unfold = nn.Unfold(
            k_up,
            dilation=scale if dilation is None else dilation,
            padding=k_up // 2 * scale if padding is None else padding,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size = (height * self.scale, width * self.scale)
        kernels = self.pix_shf(self.enc(self.comp(x))).softmax(dim=1)
        taps = self.unfold(self.upsmp(x)).view(batch, channels, -1, *size)
        return torch.einsum("bkhw,bckhw->bchw", kernels, taps)


def reassemble_per_pixel(x: Tensor, masks: Tensor, k: int, groups: int, s: int) -> Tensor:
    """mmcv's kernel as its loops go: bounds checked a tap, group slowest in the masks' channels."""
    channels, height, width = x.shape[1:]
    out = x.new_zeros(x.shape[0], channels, height * s, width * s)
    for i in range(height * s):
        for j in range(width * s):
            for u in range(k):
                for v in range(k):
                    y, z = i // s + u - k // 2, j // s + v - k // 2
                    if 0 <= y < height and 0 <= z < width:
                        share = masks[:, u * k + v :: k * k, i, j]  # [N, G]
                        share = share.repeat_interleave(channels // groups, dim=1)
                        out[:, :, i, j] += share * x[:, :, y, z]
    return out


class MmcvCarafe(nn.Module):
    """mmcv's CARAFE (named so below): masks given, settings as attributes, no parameters."""

    def __init__(self, kernel_size: int, group_size: int, scale_factor: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.group_size = group_size
        self.scale_factor = scale_factor

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        return reassemble_per_pixel(
            features, masks, self.kernel_size, self.group_size, self.scale_factor
        )


class MmcvPack(nn.Module):
    """mmcv's CARAFEPack (named so below), with its attributes and submodules."""

    def __init__(
        self,
        channels: int,
        scale_factor: int,
        up_kernel: int = 5,
        up_group: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.scale_factor = scale_factor
        self.up_kernel = up_kernel
        self.up_group = up_group
        self.encoder_kernel = encoder_kernel
        self.encoder_dilation = encoder_dilation
        self.compressed_channels = compressed_channels
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            up_kernel * up_kernel * up_group * scale_factor * scale_factor,
            encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )

    def forward(self, x: Tensor) -> Tensor:
        k, groups, s = self.up_kernel, self.up_group, self.scale_factor
        encoded = self.content_encoder(self.channel_compressor(x))
        masks = F.pixel_shuffle(encoded, s)
        masks = masks.unflatten(1, (groups, k * k)).softmax(dim=2).flatten(1, 2)
        return reassemble_per_pixel(x, masks, k, groups, s)


def named(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """The class under another name, as the other implementation has it."""
    return type(name, (kind,), {"__module__": "foreign"})


YoloCARAFE = named(Yolo, "CARAFE")
MmcvCARAFE = named(MmcvCarafe, "CARAFE")
MmcvCARAFENaive = named(MmcvCarafe, "CARAFENaive")
MmcvCARAFEPack = named(MmcvPack, "CARAFEPack")
