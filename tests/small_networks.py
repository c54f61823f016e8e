"""Networks small enough to differentiate in float64, with every kind of layer that members have to cope with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Block(nn.Module):
    """Pre-activation block: a strided 3x3, a depthwise 3x3 with a bias, a 1x1 shortcut of the raw input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.depthwise = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return self.depthwise(F.relu(self.norm2(y))) + self.shortcut(x)


class SmallNetwork(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to logits (N, K): nested layers, a grouped convolution, normalisation inside."""

    def __init__(self, num_classes: int = 5, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1))
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.body = nn.Sequential(Block(8, 12))
        self.head = nn.ModuleDict({"mix": nn.Conv2d(12, 6, 1, groups=3), "norm": nn.BatchNorm2d(6)})
        self.classifier = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        y = self.body(self.stem((images - self.mean) / self.std))
        y = F.relu(self.head["norm"](self.head["mix"](y)))
        return self.classifier(y.mean((2, 3)))


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Gives every parameter and running statistic a value that no shortcut could guess; returns the network."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith((".rho", ".sigma")) or name in ("rho", "sigma"):
                parameter.copy_(0.3 * draw(parameter.shape))
            elif parameter.ndim > 1:
                parameter.copy_(draw(parameter.shape) * (2 / parameter[0].numel()) ** 0.5)
            else:  # a norm's scale is around one, everything else around zero
                parameter.copy_(0.3 * draw(parameter.shape) + float("norm" in name and name.endswith("weight")))
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.5 * draw(module.running_mean.shape))
                module.running_var.copy_(0.5 + draw(module.running_var.shape).square())
    return network


def small_network(seed: int, *, num_classes: int = 5, mean: tuple[float, ...] = MEAN) -> SmallNetwork:
    """Returns a float64 network with random weights and statistics."""
    return randomise(SmallNetwork(num_classes, mean).double(), seed)
