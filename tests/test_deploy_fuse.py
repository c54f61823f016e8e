"""Folding BatchNorm and the calibration temperature, held against the unfolded network in float64."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from edc.deploy.fuse import fuse_batchnorm, scale_classifier
from edc.errors import FailedError

SHAPE = (3, 32, 32)


class PreActBlock(nn.Module):
    """BN -> ReLU -> conv -> BN -> ReLU -> conv, plus the input: only the second BatchNorm follows a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(y)))


class PreActNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActBlock(8), PreActBlock(8))
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.blocks(self.stem((x - 0.5) / 0.25)))).mean((2, 3)))


@torch.no_grad()
def with_random_norms(network: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and an affine map that matter."""
    generator = torch.Generator().manual_seed(1)
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
            norm.weight.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
            norm.bias.copy_(0.1 * torch.randn(norm.num_features, generator=generator))
    return network.eval()


def images(num_images: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand((num_images, *shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """Return the largest difference of two networks run in float64, as a share of the logit scale."""
    wanted, got = copy.deepcopy(a).double()(images()), copy.deepcopy(b).double()(images())
    return float((wanted - got).abs().max() / wanted.abs().max())


def timm_network(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10)


@pytest.mark.parametrize(
    ("build", "num_folded", "num_left"),
    [
        (PreActNet, 3, 2),  # block 1's first follows the stem; block 2's first and the last follow sums
        (lambda: torchvision.models.resnet18(num_classes=10), 20, 0),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 34, 0),
        (lambda: timm_network("resnet18"), 20, 0),
        (lambda: timm_network("mobilenetv3_small_100"), 34, 0),
        (lambda: timm_network("vit_tiny_patch16_224.augreg_in21k"), 0, 0),
    ],
    ids=["preact", "tv-resnet18", "tv-mobilenetv3", "timm-resnet18", "timm-mobilenetv3", "timm-vit"],
)
def test_folded_network_computes_the_same_function(build, num_folded, num_left):
    torch.manual_seed(0)
    network = with_random_norms(build())
    if num_folded == 0:
        assert fuse_batchnorm(network, input_shape=(3, 224, 224)).num_folded == 0
        return
    fused = fuse_batchnorm(network.double(), input_shape=SHAPE)
    # block 1's BatchNorm reads the stem's output, which the skip connection reads too: it must stay
    expected = (2, 3) if build is PreActNet else (num_folded, num_left)
    assert (fused.num_folded, fused.num_left) == expected
    assert largest_difference(network, fused.network) < 1e-13


def test_float32_weights_are_rounded_once():
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    conv, norm = with_random_norms(layer)
    fused = fuse_batchnorm(layer, input_shape=SHAPE).network[0]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    assert torch.equal(fused.weight, (conv.weight.double() * scale.reshape(4, 1, 1, 1)).float())
    bias = (conv.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    assert torch.equal(fused.bias, bias.float())
    assert isinstance(layer[1], nn.BatchNorm2d)  # the caller's network is untouched


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


class RunTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) * self.other(self.conv(1 - x))).mean((2, 3))


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 0] = 1.0
        return self.norm(y).mean((2, 3))


class OnTokens(nn.Module):
    """BatchNorm1d on (N, tokens, features) normalises tokens, which are not the linear layer's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(32, 96), nn.BatchNorm1d(96)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(1, 2))).mean(1)


@pytest.mark.parametrize("build", [ReadTwice, RunTwice, Overwritten, OnTokens])
def test_batchnorm_that_cannot_be_folded_stays(build):
    torch.manual_seed(0)
    network = with_random_norms(build())
    fused = fuse_batchnorm(network, input_shape=SHAPE)
    assert fused.num_folded == 0
    assert fused.num_left == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert largest_difference(network, fused.network) == 0


@pytest.mark.parametrize(
    "build",
    [
        PreActNet,
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda: timm_network("mobilenetv3_small_100"),
        lambda: timm_network("resnetv2_50"),  # a 1x1 convolution makes its logits
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7, bias=False), nn.Dropout(0.5)),
    ],
    ids=["preact", "resnet18", "mobilenetv3", "conv-classifier", "no-bias"],
)
@torch.no_grad()
def test_scaled_classifier_divides_the_logits(build):
    torch.manual_seed(0)
    network = with_random_norms(build()).double()
    scaled = scale_classifier(network, calibration_temperature=1.7, input_shape=SHAPE)
    torch.testing.assert_close(scaled(images()), network(images()) / 1.7, rtol=1e-12, atol=1e-14)


def test_network_without_a_linear_end_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7), nn.Tanh())
    with pytest.raises(FailedError, match="no single linear layer"):
        scale_classifier(network, calibration_temperature=2.0, input_shape=SHAPE)
