"""BatchEnsemble: networks with one member per teacher, which share every slow weight; and their fold.

Their layers are in `member_layers`. Source: Wen et al. 2020 (arXiv 2002.06715); Nam et al. 2022 (arXiv 2206.15047).
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from edc.errors import RecipeError
from edc.method.kinds import FoldKind
from edc.method.member_layers import (
    BatchEnsembleConv2d,
    BatchEnsembleLayer,
    BatchEnsembleLinear,
    LayerForm,
    is_known,
)

__all__ = [
    "BatchEnsembleConv2d",
    "BatchEnsembleLinear",
    "batchnorm_momentum_shared",
    "ensemble_size_of",
    "fold",
    "member_logits",
    "member_weights_made",
    "select_members",
    "shared_layers",
    "to_batch_ensemble",
]


def to_batch_ensemble(
    network: nn.Module, ensemble_size: int, *, form: LayerForm = "weight", example: Tensor | None = None
) -> nn.Module:
    """Returns a copy of `network` in which every Conv2d and Linear, at any depth, has `ensemble_size` members.

    All members start equal to `network`. Some layers stay shared, and `shared_layers` names them: subclasses that
    compute something else, layers whose weight is read without calling them (torch's attention and encoder layers), and
    layers that share one weight. With `example` also layers that a forward does not call, or calls on something other
    than the batch. A table of relative positions, for example, has the same rows for every member.

    Args:
        example: a batch (N, C, H, W) to try the network on.

    Raises:
        RecipeError: the network has no layer to convert.
    """
    # Wrapped, so that a network that is itself one layer is replaced like any other.
    holder = nn.ModuleDict({"network": copy.deepcopy(network)})
    convertible = _convertible_layers(holder["network"], example)
    converted: dict[nn.Module, nn.Module] = {}
    for parent in list(holder.modules()):
        # Not named_children(): it hides a module's second name in the same parent.
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if child in convertible and child not in converted:
                if isinstance(child, nn.Conv2d):
                    converted[child] = BatchEnsembleConv2d(child, ensemble_size, form)
                elif isinstance(child, nn.Linear):
                    converted[child] = BatchEnsembleLinear(child, ensemble_size, form)
            if child in converted:
                setattr(parent, name, converted[child])
    if not converted:
        raise RecipeError(f"network: {type(network).__name__} has no Conv2d or Linear layer that could become members")
    return holder["network"].train(network.training)


def _convertible_layers(network: nn.Module, example: Tensor | None) -> set[nn.Module]:
    """Returns the layers that can have members: plain ones that are called, each with a weight of its own."""
    layers: set[nn.Module] = {module for module in network.modules() if _is_plain(module)}
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            layers -= set(module.children())  # torch's fast paths read their weights and pass their forward by
    owners = Counter(id(module.weight) for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    layers = {layer for layer in layers if owners[id(layer.weight)] == 1}
    if example is None:
        return layers
    once, twice = (_rows_seen(network, layers, images) for images in (example, torch.cat([example, example])))
    return {layer for layer, rows in once.items() if twice[layer] == [2 * number for number in rows]}


def _is_plain(module: nn.Module) -> bool:
    """Returns whether `module` is a layer of a known kind, with a weight that is a parameter.

    Weights that another module computes (of `nn.utils.parametrize`, for example) are no parameters.
    """
    is_layer = isinstance(module, nn.Conv2d | nn.Linear) and is_known(module)
    return is_layer and module._parameters.get("weight") is not None


def _rows_seen(network: nn.Module, layers: set[nn.Module], images: Tensor) -> dict[nn.Module, list[int]]:
    """Returns the number of rows that each called layer gets in each call when the network runs on `images`."""
    rows: dict[nn.Module, list[int]] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.setdefault(layer, []).append(len(inputs[0]) if inputs else -1)  # by keyword: not as members are called

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    was_training = network.training
    with torch.no_grad():
        network.eval()(images)
    network.train(was_training)
    for handle in handles:
        handle.remove()
    return rows


def _layers(network: nn.Module) -> Iterator[tuple[str, BatchEnsembleLayer]]:
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, BatchEnsembleLayer):
            yield name, module


def ensemble_size_of(network: nn.Module) -> int:
    """Returns M of a converted network, 1 of a plain one."""
    return next((layer.ensemble_size for _, layer in _layers(network)), 1)


def shared_layers(network: nn.Module) -> list[str]:
    """Returns the names of weight matrices that all members share because their layer could not be converted."""
    own = {id(layer.weight) for _, layer in _layers(network)} | {
        id(factor) for _, layer in _layers(network) for factor in (layer.rho, layer.sigma)
    }
    return [name for name, p in network.named_parameters() if p.ndim >= 2 and id(p) not in own]


@contextmanager
def select_members(
    network: nn.Module, members: tuple[int, ...] | None, *, rows: tuple[int, ...] | None = None
) -> Iterator[None]:
    """Within the block, a batch of `network` is for these members only, in this order; None: for all.

    Args:
        rows: how many rows of the batch each of them has, one after another; by default all have the same number.
    """
    before = [(layer, layer.selected, layer.members, layer.rows) for _, layer in _layers(network)]
    for layer, *_ in before:
        layer.selected = None if members is None else _index(members, layer.rho.device)
        layer.members, layer.rows = members, rows
    try:
        yield
    finally:
        for layer, selected, members_before, rows_before in before:
            layer.selected, layer.members, layer.rows = selected, members_before, rows_before


@contextmanager
def member_weights_made(network: nn.Module, autocast: AbstractContextManager[object]) -> Iterator[None]:
    """Within the block the weights of all members are made only once, here, from the parameters as they are now.

    They have the type that `autocast` would compute them in.
    A call of a layer that is frozen meanwhile gets them without their graph. No parameter may change within the block.
    """
    layers = {layer for _, layer in _layers(network) if layer.form == "weight"}
    try:
        with autocast, record_function("edc:forward"):
            for layer in layers:
                layer.made = layer.make_weights()
        yield
    finally:
        for layer in layers:
            layer.made = None


@cache
def _index(members: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns `members` as a tensor; cached, and copied to a GPU from pinned memory, so that no step waits for it."""
    with torch.inference_mode(False):
        index = torch.tensor(members)
        return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


@contextmanager
def batchnorm_momentum_shared(network: nn.Module, num_updates: int) -> Iterator[None]:
    """Within the block, running statistics move in smaller updates, `num_updates` of which weigh as much as one."""
    norms: list[Any] = [module for module in network.modules() if num_updates > 1 and _averages(module)]
    momenta: list[float] = [norm.momentum for norm in norms]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = 1 - (1 - momentum) ** (1 / num_updates)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _averages(module: nn.Module) -> bool:
    """Returns whether `module` keeps moving averages, whatever library its class is from."""
    return getattr(module, "running_mean", None) is not None and isinstance(getattr(module, "momentum", None), float)


def member_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Returns logits (M, N, K) of all members on the same images (N, C, H, W); (1, N, K) for a plain network."""
    ensemble_size = ensemble_size_of(network)
    logits: Tensor = network(images.repeat(ensemble_size, 1, 1, 1) if ensemble_size > 1 else images)
    return logits.view(ensemble_size, len(images), -1)


def fold(network: nn.Module, plain: nn.Module | None = None, *, kind: FoldKind = "mean_weights") -> nn.Module:
    """Returns the members of `network` averaged into one plain network; it costs as much as one of them.

    `mean_weights` is the mean of the member weights, W * mean_m outer(s_m, r_m); `mean_factors` is what the official
    code computes, W * outer(mean s, mean r). They differ by the covariance of s and r. Everything else (norms, running
    statistics, tokens) is shared by the members and copied.

    Args:
        plain: where to load the weights, strictly; by default a copy of `network` with plain layers for its members.
    """
    plain = _plain_copy(network) if plain is None else plain
    state = _plain_state(network, {name: layer.folded(kind) for name, layer in _layers(network)})
    plain.load_state_dict(state, strict=True)
    return plain.eval()


def _plain_copy(network: nn.Module) -> nn.Module:
    """Returns a copy of `network` in which every layer with members is the plain layer that it was made from."""
    holder = nn.ModuleDict({"network": copy.deepcopy(network)})
    plain: dict[nn.Module, nn.Module] = {}
    for parent in list(holder.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, BatchEnsembleLayer):
                setattr(parent, name, plain.setdefault(child, child.plain()))
    return holder["network"]


def _plain_state(network: nn.Module, replacements: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    state = network.state_dict()
    for name, tensors in replacements.items():
        prefix = f"{name}." if name else ""
        del state[f"{prefix}rho"], state[f"{prefix}sigma"]
        state.update({f"{prefix}{key}": value for key, value in tensors.items()})
    return state
