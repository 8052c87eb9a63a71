"""ResNet (He et al., arXiv:1512.03385) as mmdetection's 'pytorch' style builds it."""

from __future__ import annotations

from torch import Tensor, nn

from carafe_deploy.models.config import BackboneConfig
from carafe_deploy.ops.convolutions import conv_add_relu, conv_relu

#: Residual blocks of layer1..layer4, by depth.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (depths 18 and 34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, width, H/stride, W/stride]."""
        out = conv_relu(x, self.conv1, self.bn1)
        return conv_add_relu(out, self.conv2, self.bn2, self.downsample, x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut (depths 50 and 101)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, 4*width, H/stride, W/stride]."""
        out = conv_relu(x, self.conv1, self.bn1)
        out = conv_relu(out, self.conv2, self.bn2)
        return conv_add_relu(out, self.conv3, self.bn3, self.downsample, x)


def join_biases(block: nn.Module) -> None:
    """Let the last convolution add the shortcut's bias with its own, if both are folded; in place.

    Then the shortcut's convolution has nothing to add, and the sum one bias.
    """
    if not isinstance(block, BasicBlock | Bottleneck) or isinstance(block.downsample, nn.Identity):
        return
    last = block.conv2 if isinstance(block, BasicBlock) else block.conv3
    shortcut = block.downsample.get_submodule("0")
    last.bias = nn.Parameter(last.get_parameter("bias") + shortcut.get_parameter("bias"))
    shortcut.register_parameter("bias", None)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Backbone returning C2..C5 at strides 4, 8, 16 and 32."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        base = config.base_channels
        block = BasicBlock if config.depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = base
        for stage, count in enumerate(BLOCKS[config.depth]):
            width = base * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, width, 2 if stage and index == 0 else 1))
                inputs = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] normalised -> C2, C3, C4, C5."""
        x = self.maxpool(conv_relu(images, self.conv1, self.bn1))
        levels = []
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            levels.append(x)
        return tuple(levels)
