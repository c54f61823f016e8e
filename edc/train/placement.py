"""Device, memory format and precision of networks and images in training."""

from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from edc.method.step import autocast_to
from edc.recipe import TrainingSection

__all__ = ["autocast", "autocast_dtype", "place", "to_device"]

Network = TypeVar("Network", bound=nn.Module)


def autocast_dtype(training: TrainingSection) -> torch.dtype | None:
    """Returns the type for autocast: bfloat16 if the recipe says so, None for float32 alone."""
    return torch.bfloat16 if training.precision == "bf16" else None


def autocast(device: torch.device, training: TrainingSection) -> AbstractContextManager[object]:
    """Returns the context in which networks run."""
    return autocast_to(autocast_dtype(training), device)


def place(network: Network, device: torch.device, training: TrainingSection) -> Network:
    """Returns the network on `device`, its convolutions channels last if the recipe says so."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if training.channels_last else network


def to_device(pixels: Tensor, device: torch.device, training: TrainingSection) -> Tensor:
    """Returns uint8 pixels as float32 images in [0, 1] on `device`, channels last if the recipe says so."""
    images = pixels.to(device, non_blocking=True).float().div_(255)
    return images.contiguous(memory_format=torch.channels_last) if training.channels_last else images
