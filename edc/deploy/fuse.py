"""Computing BatchNorm and the calibration temperature once, at export, instead of at every inference.

A BatchNorm in eval mode is an affine map per channel, and so is what a convolution or a linear layer ends with, so

    gamma * ((W x + b) - mean) / sqrt(var + eps) + beta  =  (a W) x + a (b - mean) + beta,   a = gamma / sqrt(var + eps)

Which BatchNorm directly follows which layer is found by running the network once and watching every torch call: the
tensor that BatchNorm receives must be the very tensor that the layer returned, and nothing else may read it. Unlike
symbolic tracing this copes with any Python in a forward, and pre-activation networks need no special case.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edc.deploy.ensemble import ensemble_network
from edc.errors import FailedError

__all__ = ["Fused", "fuse_batchnorm", "scale_classifier", "tempered_ensemble"]

# Exact types only: a subclass may standardise or mask its weight before using it (timm's StdConv2d does).
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LAYER_CALLS = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)


@dataclass(frozen=True)
class Fused:
    """A network in eval mode, and how many of its BatchNorms went into the layer before them."""

    network: nn.Module
    num_folded: int
    num_left: int


def fuse_batchnorm(network: nn.Module, *, input_shape: tuple[int, int, int]) -> Fused:
    """Returns a copy of `network` in eval mode with every BatchNorm that follows a layer directly folded into it.

    The products are taken in float64 and rounded once, to the dtype of the weight. A BatchNorm stays where it follows
    something else (a sum, a pooling), where the layer's output is read twice, where layer or BatchNorm run more than
    once, and where it has no running statistics.

    Args:
        input_shape: (C, H, W) of the images the network takes.
    """
    fused = copy.deepcopy(network).eval()
    calls, _ = _watch(fused, input_shape)
    num_folded = 0
    for layer, norm in list(_pairs(fused, calls)):
        _fold(layer, norm)
        _replace(fused, norm, _after_folding(norm))
        num_folded += 1
    num_left = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())
    return Fused(network=fused, num_folded=num_folded, num_left=num_left)


def scale_classifier(
    network: nn.Module, *, calibration_temperature: float, input_shape: tuple[int, int, int]
) -> nn.Module:
    """Returns a copy of `network` in eval mode whose classifier is divided by `calibration_temperature`.

    Each candidate for "the layer that makes the logits" is tried and kept only when the whole network's output really
    comes out divided; a network that does not end in one linear layer or 1x1 convolution is an error.

    Raises:
        FailedError: no layer has that property.
    """
    scaled = copy.deepcopy(network).eval()
    calls, before = _watch(scaled, input_shape)
    if not isinstance(before, Tensor):
        raise FailedError(f"network: its output is a {type(before).__name__}, expected one tensor of logits")
    for layer in _classifier_candidates(scaled, calls, before):
        # Tried at 2, which rounds nothing and cannot pass by being close to 1, then set to what is asked for.
        _divide(layer, 2.0)
        halved = torch.allclose(2 * _run(scaled, input_shape), before, rtol=0, atol=1e-6 * float(before.abs().max()))
        _divide(layer, 0.5 * (calibration_temperature if halved else 1.0))
        if halved:
            return scaled
    raise FailedError(
        "network: no single linear layer makes its logits, so the calibration temperature cannot be folded; "
        "export with the temperature left to the consumer"
    )


def tempered_ensemble(
    members: Sequence[nn.Module], temperature: float, *, input_shape: tuple[int, int, int]
) -> nn.Module:
    """Returns what `ensemble_network` does, with the temperature in the members' classifiers, where it costs nothing.

    If a member's logits do not come from one linear layer, the division stays in the network.
    """
    if temperature == 1:
        return ensemble_network(members)
    try:
        scaled = [
            scale_classifier(each, calibration_temperature=temperature, input_shape=input_shape) for each in members
        ]
    except FailedError:
        return ensemble_network(members, temperature=temperature)
    return ensemble_network(scaled)


@dataclass
class _Calls(TorchFunctionMode):
    """What ran: which layer made a tensor, which BatchNorm read one, and how often each tensor was read."""

    made_by: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (output, weight) of each layer call, in order
    normed: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (input, running mean) of each BatchNorm call
    num_reads: Counter[int] = field(default_factory=Counter)
    alive: list[Any] = field(default_factory=list)  # an id stays unique only while its object lives

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # `x.shape` and the like read no values; `x[...] = y` returns nothing but changes x.
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)) or func is Tensor.__setitem__:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.alive.extend(inputs)
            self.num_reads.update({id(tensor) for tensor in inputs})
        if func in _LAYER_CALLS:
            self.made_by.append((result, args[1] if len(args) > 1 else kwargs["weight"]))
        elif func is F.batch_norm and len(args) > 1 and args[1] is not None:
            self.normed.append((args[0], args[1]))
        return result


def _sample(network: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """Returns two seeded noise images in [0, 1] where the network lives: only the wiring is of interest."""
    like = next(network.parameters())
    noise = torch.rand((2, *input_shape), generator=torch.Generator().manual_seed(0))
    return noise.to(device=like.device, dtype=like.dtype)


def _run(network: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(_sample(network, input_shape))
    return output


def _watch(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[_Calls, Any]:
    """Returns the calls of one forward pass, and its output."""
    images = _sample(network, input_shape)
    with torch.no_grad(), _Calls() as calls:
        output = network(images)
    return calls, output


def _pairs(network: nn.Module, calls: _Calls) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yields each (layer, BatchNorm) that can become one layer."""
    layers = {id(module.weight): module for module in network.modules() if type(module) in _LAYERS}
    norms = {
        id(module.running_mean): module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _foldable(module)
    }
    weights = {id(output): weight for output, weight in calls.made_by}
    for normed, running_mean in calls.normed:
        weight = weights.get(id(normed))
        layer, norm = layers.get(id(weight)), norms.get(id(running_mean))
        if layer is None or norm is None or weight is None:
            continue
        once = all(calls.num_reads[id(tensor)] == 1 for tensor in (normed, weight, running_mean))
        # A linear layer's channels are its last axis, BatchNorm's are axis 1: the same one only for matrices.
        if once and (normed.ndim == 2 or not isinstance(layer, nn.Linear)):
            yield layer, norm


def _foldable(norm: nn.Module) -> bool:
    return type(norm) in _PLAIN_NORMS or _has_activation(norm)


def _has_activation(norm: nn.Module) -> bool:
    """Returns whether this is timm's BatchNorm with dropout and activation inside."""
    return type(norm).__module__.startswith("timm.") and type(norm).__name__ == "BatchNormAct2d"


def _after_folding(norm: nn.Module) -> nn.Module:
    """Returns what remains of a BatchNorm whose affine map went elsewhere."""
    if not _has_activation(norm):
        return nn.Identity()
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))


def _fold(layer: Any, norm: Any) -> None:
    """Multiplies the BatchNorm into the layer, in place."""
    ones = torch.ones_like(norm.running_mean, dtype=torch.float64)
    gamma = ones if norm.weight is None else norm.weight.detach().double()
    beta = 0 * ones if norm.bias is None else norm.bias.detach().double()
    bias = 0 * ones if layer.bias is None else layer.bias.detach().double()
    scale = gamma / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = layer.weight.detach()
    folded = weight.double() * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    folded_bias = (bias - norm.running_mean.double()) * scale + beta
    layer.bias = nn.Parameter(folded_bias.to(weight.dtype), requires_grad=False)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` is registered, under whatever name."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


@torch.no_grad()
def _divide(layer: nn.Module, divisor: float) -> None:
    """Divides weight and bias, in place, through float64."""
    for parameter in layer.parameters():
        parameter.copy_((parameter.double() / divisor).to(parameter.dtype))


def _classifier_candidates(network: nn.Module, calls: _Calls, output: Tensor) -> list[nn.Module]:
    """Returns the layers that could be the classifier, likeliest first (timm has some 1x1 convolutions there)."""
    by_weight = {id(module.weight): module for module in network.modules() if isinstance(module, _LAYERS)}
    made_output = [by_weight.get(id(weight)) for made, weight in calls.made_by if made is output]
    named = [getattr(network, name, None) for name in ("fc", "classifier", "head")]
    get_classifier = getattr(network, "get_classifier", None)
    timm_says = [get_classifier()] if callable(get_classifier) else []
    last_ran = [by_weight.get(id(weight)) for _, weight in calls.made_by if id(weight) in by_weight][-1:]
    found = [module for module in (*made_output, *timm_says, *named, *last_ran) if isinstance(module, _LAYERS)]
    return list(dict.fromkeys(found))
