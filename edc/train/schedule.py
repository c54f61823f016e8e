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
    """Returns the recipe's optimizer; weight decay acts on every parameter (on rho and sigma: pulls r and s to 1).

    It updates all parameters in one kernel where there is one, so the network must be on its device already.
    """
    parameters = list(network.parameters())
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, training.learning_rate, weight_decay=training.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters,
        training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
        fused=fused,
    )
