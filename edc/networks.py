"""Networks: small-image ResNets of the papers, torchvision and timm by name, all taking images in [0, 1].

Source: wide ResNets, Zagoruyko and Komodakis 2016 (pre-activation, He et al. 2016); CIFAR ResNets, He et al. 2015;
both in the form of the authors' framework giung2-jax: He initialisation from a truncated normal, no bias before a
norm, the projection shortcut reads the block's raw input. (Their running variance is the biased one; torch's is not.)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.errors import CheckpointError, FailedError, RecipeError, first_line
from edc.recipe import NETWORK_NAME, NetworkSection

__all__ = ["Classifier", "build_network", "count_parameters", "load_weights", "require_logits"]


class Classifier(nn.Module):
    """A network with its own normalisation: images (N, C, H, W) in [0, 1] to logits (N, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def build_network(
    section: NetworkSection,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Classifier:
    """Returns a freshly initialised network (or the library's weights if `pretrained`) for images in [0, 1].

    Args:
        mean, std: the data's statistics, used unless the section has its own.

    Raises:
        RecipeError: no such network, or one that does not take such images.
        FailedError: the library's weights could not be fetched.
    """
    channels = image_shape[0]
    mean, std = section.mean or mean, section.std or std
    if len(mean) != channels or len(std) != channels:
        raise RecipeError(f"{section.name}: mean has {len(mean)} values, the images have {channels} channels")
    match = NETWORK_NAME.match(section.name)
    library, _, name = section.name.partition("/")
    if library in ("timm", "torchvision"):
        build = _build_timm if library == "timm" else _build_torchvision
        try:
            network = build(name, section.pretrained, num_classes, image_shape)
        except (OSError, RuntimeError) as error:
            if not section.pretrained:
                raise
            raise FailedError(
                f"{section.name}: pretrained: the library's weights could not be fetched ({first_line(error)}). "
                "Fetch them on a machine with a network (TORCH_HOME and HF_HOME say where they are kept), or set "
                "pretrained to false."
            ) from None
    elif match and match["depth"]:
        network = WideResNet(int(match["depth"]), int(match["width"]), num_classes, channels)
    else:
        depth, _, widen = section.name.removeprefix("cifar_resnet").partition("x")
        network = CifarResNet(int(depth), int(widen or 1), num_classes, channels)
    return Classifier(network, mean, std)


def count_parameters(network: nn.Module) -> int:
    """Returns the number of values in all parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in network.parameters())


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


def _build_timm(name: str, pretrained: bool, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5])
        raise RecipeError(f"timm/{name}: timm has no such network{f' (it has {near}, ...)' if near else ''}")
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": image_shape[0]}
    try:
        network: nn.Module = timm.create_model(name, **options, img_size=image_shape[1])
    except TypeError:  # convolutional networks take any size and have no such argument
        network = timm.create_model(name, **options)
    return network


def _build_torchvision(name: str, pretrained: bool, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise RecipeError(f"torchvision/{name}: torchvision has no such classification network")
    network: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None)
    _replace_last_linear(network, num_classes)
    _replace_stem(network, image_shape[0])
    return network


def _replace_last_linear(network: nn.Module, num_classes: int) -> None:
    path, last = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if not isinstance(last, nn.Linear):
        raise RecipeError(f"{type(network).__name__}: its classifier is not a linear layer; use the timm version")
    if last.out_features != num_classes:
        _set_submodule(network, path, nn.Linear(last.in_features, num_classes, last.bias is not None))


def _replace_stem(network: nn.Module, in_channels: int) -> None:
    path, stem = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if stem.in_channels == in_channels:
        return
    size: Any = stem.kernel_size
    stride: Any = stem.stride
    padding: Any = stem.padding
    stem = nn.Conv2d(in_channels, stem.out_channels, size, stride, padding, bias=stem.bias is not None)
    _set_submodule(network, path, stem)


def _set_submodule(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def require_logits(network: nn.Module, image_shape: tuple[int, int, int], num_classes: int, *, source: str) -> None:
    """Raises `RecipeError` unless the network, in train and eval mode, makes (2, K) logits of two such images."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    device = next(network.parameters()).device
    for training in (True, False):
        network.train(training)
        try:
            with torch.no_grad():
                logits = network(torch.zeros(2, *image_shape, device=device))
        except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
            raise RecipeError(f"{source}: does not take images of {image_shape} ({first_line(error)})") from None
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise RecipeError(f"{source}: returns {found} for two images, expected logits (2, {num_classes})")
    network.load_state_dict(state)  # a forward in train mode moves running statistics


def load_weights(network: Classifier, state: dict[str, Tensor], *, source: str, num_classes: int) -> None:
    """Loads `state` into `network`, strictly; a bare timm or torchvision state dict fits too.

    Raises:
        CheckpointError: with the first keys or shapes that differ.
    """
    wrappers = ("module.", "_orig_mod.")  # DataParallel and torch.compile leave these, in any order
    while prefix := next((w for w in wrappers if state and all(key.startswith(w) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    target: nn.Module = network if "mean" in state and "std" in state else network.network
    expected = target.state_dict()
    classifier = [key for key, value in expected.items() if value.ndim == 2 and key.endswith("weight")][-1:]
    for key in classifier:  # in the order of the modules: the last matrix makes the logits
        if key in state and state[key].ndim == 2 and len(state[key]) != num_classes:
            raise CheckpointError(
                f"{source}: a classifier of {len(state[key])} classes ({key}), the data has {num_classes}"
            )
    problems = [f"{key}: missing in the file" for key in expected.keys() - state.keys()]
    problems += [f"{key}: not in the network" for key in state.keys() - expected.keys()]
    problems += [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{source}: these weights do not fit {type(network.network).__name__} as the recipe describes it\n  "
            + "\n  ".join(sorted(problems)[:5])
            + more
        )
    target.load_state_dict(state)
