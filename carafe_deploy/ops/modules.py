"""CARAFE as modules with mmcv's names and parameters, for detectors and any other network."""

from __future__ import annotations

from torch import Tensor, nn

from carafe_deploy.ops.carafe import carafe, carafe_encoded

__all__ = ["CARAFE", "CARAFEPack"]


class CARAFE(nn.Module):
    """Reassembly with given masks (mmcv's ``CARAFE``); no parameters.

    Args:
        kernel_size: odd side of a reassembly kernel in source pixels.
        group_size: channel groups with kernels of their own.
        scale_factor: integer upsampling ratio.
    """

    def __init__(self, kernel_size: int, group_size: int, scale_factor: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.group_size = group_size
        self.scale_factor = scale_factor

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """features [N, C, H, W], masks [N, G*k*k, sH, sW] -> [N, C, sH, sW]."""
        return carafe(
            features,
            _like(masks, features),
            kernel_size=self.kernel_size,
            group_size=self.group_size,
            scale_factor=self.scale_factor,
        )

    def extra_repr(self) -> str:
        """Settings, for ``print(module)``."""
        return (
            f"kernel_size={self.kernel_size}, group_size={self.group_size}, "
            f"scale_factor={self.scale_factor}"
        )


class CARAFEPack(nn.Module):
    """The whole upsampler of the paper's figure 2: compress, encode, normalise, reassemble.

    Parameter names and shapes are mmcv's (``channel_compressor``, ``content_encoder``), and so is
    the initialisation.

    Args:
        channels: C of the features to upsample.
        scale_factor: integer upsampling ratio.
        up_kernel: odd side k of a reassembly kernel in source pixels.
        up_group: channel groups G with kernels of their own.
        encoder_kernel: side of the content encoder's convolution.
        encoder_dilation: its dilation.
        compressed_channels: channels between compressor and encoder.
    """

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
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            up_kernel * up_kernel * up_group * scale_factor * scale_factor,
            encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Nearly uniform kernels at the start: Xavier compressor, normal(0.001) encoder."""
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for convolution in (self.channel_compressor, self.content_encoder):
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def encode(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> unnormalised kernels [N, s*s*G*k*k, H, W]."""
        encoded: Tensor = self.content_encoder(self.channel_compressor(features))
        return encoded

    def reassemble(self, features: Tensor, encoded: Tensor) -> Tensor:
        """features [N, any C, H, W] with the kernels of :meth:`encode` -> [N, C, sH, sW]."""
        return carafe_encoded(
            features,
            _like(encoded, features),
            kernel_size=self.up_kernel,
            group_size=self.up_group,
            scale_factor=self.scale_factor,
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, sH, sW]."""
        return self.reassemble(features, self.encode(features))

    def extra_repr(self) -> str:
        """Settings, for ``print(module)``."""
        return (
            f"scale_factor={self.scale_factor}, up_kernel={self.up_kernel}, "
            f"up_group={self.up_group}"
        )


def _like(weights: Tensor, features: Tensor) -> Tensor:
    """Undo autocast's change of dtype; a cast that does nothing would stand in exported graphs."""
    return weights if weights.dtype == features.dtype else weights.to(features.dtype)
