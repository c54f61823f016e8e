"""The optimizer and the learning rate of every step."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from edc.method.member_layers import BatchEnsembleLayer
from edc.networks import Classifier
from edc.recipe import TrainingSection

__all__ = ["build_optimizer", "layers_of", "learning_rate_at"]


def learning_rate_at(step: int, training: TrainingSection, steps_in_epoch: int) -> float:
    """Returns the learning rate of a step: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup, total = training.warmup_epochs * steps_in_epoch, training.epochs * steps_in_epoch
    if step < warmup:
        return training.learning_rate * step / warmup
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build_optimizer(network: nn.Module, training: TrainingSection) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer; weight decay acts on every parameter (on rho and sigma: pulls r and s to 1).

    With `layer_decay` each layer is a group of its own, whose `lr_scale` its learning rate is multiplied by; with
    `factor_rate` the factors of each are, too.
    It updates all parameters of a group in one kernel where there is one, so the network must be on its device already.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in network.parameters())
    parameters: Any = list(network.parameters())
    if training.layer_decay is not None or training.factor_rate is not None:
        parameters = _groups(network, training.layer_decay, training.factor_rate)
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


def layers_of(network: nn.Module) -> dict[str, int]:
    """Returns the number of the layer that each parameter is in: 0 at the images, the largest at the logits.

    For networks of timm it is what timm counts (`group_matcher`). For others, layers are the network's children in
    their order, the parts of `Sequential` and `ModuleList` in place of those; one without a matrix, a norm for
    example, belongs to the layer before it. Members' factors are in the layer of the weight that they multiply.
    """
    prefix, inner = ("network.", network.network) if isinstance(network, Classifier) else ("", network)
    names = [name for name, _ in inner.named_parameters()]
    matcher: Any = getattr(inner, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        numbers = group_parameters(inner, matcher(coarse=False), reverse=True)
        last = max(numbers.values())
        found = {name: numbers.get(name, last) for name in names}
    else:
        found = _numbers_of_parts(inner)
    for name in names:
        parent, _, kind = name.rpartition(".")
        if kind in ("rho", "sigma") and f"{parent}.weight" in found:
            found[name] = found[f"{parent}.weight"]
    return {prefix + name: found[name] for name in names}


def _numbers_of_parts(network: nn.Module) -> dict[str, int]:
    numbers: dict[str, int] = {}
    number = -1
    for name, part in _parts(network):
        number += any(parameter.ndim > 1 for parameter in part.parameters())
        numbers |= {f"{name}.{parameter}": max(number, 0) for parameter, _ in part.named_parameters()}
    return {name: numbers.get(name, 0) for name, _ in network.named_parameters()}  # its own, a token say: the first


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _groups(network: nn.Module, layer_decay: float | None, factor_rate: float | None) -> list[dict[str, Any]]:
    """Returns the parameters by what their learning rate is multiplied by: the decay of their layer, and for factors
    `factor_rate`."""
    layers = layers_of(network) if layer_decay is not None else {}
    last = max(layers.values(), default=0)
    members = [module for module in network.modules() if isinstance(module, BatchEnsembleLayer)]
    factors = {id(factor) for layer in members for factor in (layer.rho, layer.sigma)}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        is_slower = factor_rate is not None and id(parameter) in factors
        groups.setdefault((layers.get(name, 0), is_slower), []).append(parameter)
    return [
        {
            "params": groups[layer, is_slower],
            "lr_scale": (layer_decay or 1.0) ** (last - layer) * ((factor_rate or 1.0) if is_slower else 1.0),
        }
        for layer, is_slower in sorted(groups)
    ]
