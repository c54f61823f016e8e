"""ResNets for small images, as in the papers.

Source: wide ResNets, Zagoruyko and Komodakis 2016 (pre-activation, He et al. 2016); CIFAR ResNets, He et al. 2015;
both in the form of the authors' framework giung2-jax: He initialisation from a truncated normal, no bias before a
norm, the projection shortcut reads the block's raw input. (Their running variance is the biased one; torch's is not.)
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet", "WideResNet"]


def he_truncated_normal_(weight: Tensor) -> None:
    """Fills `weight` with He-normal values from a normal truncated at two standard deviations (fan-in, gain 2)."""
    fan_in = weight[0].numel()
    std = math.sqrt(2 / fan_in) / 0.87962566103423978  # the truncated normal's own standard deviation
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            he_truncated_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _three_stages(
    block: Callable[[int, int, int], nn.Module], blocks_per_stage: int, width: int
) -> tuple[nn.Sequential, int]:
    """Returns the blocks after a stem of 16 channels, and the channels they end with: 16, 32, 64 times `width`.

    The second and the third stage begin with a block of stride 2.
    """
    blocks: list[nn.Module] = []
    channels = 16
    for stage in range(3):
        for number in range(blocks_per_stage):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(block(channels, 16 * width * 2**stage, stride))
            channels = 16 * width * 2**stage
    return nn.Sequential(*blocks), channels


class PreActivationBlock(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv, plus a shortcut: the input itself, or a 1x1 convolution of it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        result: Tensor = y + self.shortcut(x)
        return result


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of pre-activation blocks, 16, 32 and 64 times `width` channels."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv3x3(in_channels, 16)
        self.blocks, channels = _three_stages(PreActivationBlock, (depth - 4) // 6, width)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(y.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Conv, BN, ReLU, conv, BN, plus the input (strided and padded with zero channels), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride, self.padding = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride != 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet-depth[xwidth] for 32-px images: three stages, 16, 32 and 64 times `width` channels, free shortcuts."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv3x3(in_channels, 16)
        self.norm = nn.BatchNorm2d(16)
        self.blocks, channels = _three_stages(BasicBlock, (depth - 2) // 6, width)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.classifier(y.mean((2, 3)))
        return logits
