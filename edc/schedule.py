"""The optimizer and the learning rate of every step."""

import math

import torch
from torch import nn

from edc.recipe import TrainingSection

__all__ = ["build_optimizer", "learning_rate_at"]


def learning_rate_at(step: int, training: TrainingSection, steps_in_epoch: int) -> float:
    """Returns the learning rate of a step: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup, total = training.warmup_epochs * steps_in_epoch, training.epochs * steps_in_epoch
    if step < warmup:
        return training.learning_rate * step / warmup
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build_optimizer(network: nn.Module, training: TrainingSection) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer; weight decay acts on every parameter (on rho and sigma: pulls r and s to 1)."""
    if training.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
