"""BatchEnsemble: M members that share every slow weight and differ by rank-one factors; and their fold.

Member m of a convolution or linear layer computes with `W_m = W * outer(s_m, r_m)`:

    activation form   y = (conv(x * r_m, W) + b) * s_m        no weight is copied; M activations are kept
    weight form       y =  conv(x, W_m) + b * s_m             M small weights are made; no activation is kept for r, s

The factors are stored as their distance from one, rho = r - 1 and sigma = s - 1. Ordinary weight decay then pulls r and
s towards one, which is the official penalty with its 1/M, provided that their data gradient is multiplied by M: each
member sees the gradient of its own mean loss instead of the mean over members.

Batches of members are member-major: row m * N + n is image n seen by member m.

Source: Wen et al. 2020 (arXiv 2002.06715); Nam et al. 2022 (arXiv 2206.15047).
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.errors import RecipeError

__all__ = [
    "BatchEnsembleConv2d",
    "BatchEnsembleLinear",
    "ensemble_size_of",
    "fold",
    "member_logits",
    "member_state",
    "select_members",
    "shared_layers",
    "to_batch_ensemble",
]

MemberForm = Literal["activation", "weight"]
FoldKind = Literal["mean_weights", "mean_factors"]


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


class _BatchEnsembleLayer(nn.Module):
    """What the two layers share: slow weight, bias, factors, and which members the next batch is for.

    Shapes: rho (M, C_in), sigma (M, C_out).
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, ensemble_size: int, form: MemberForm, in_size: int) -> None:
        super().__init__()
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self.rho = nn.Parameter(layer.weight.new_zeros(ensemble_size, in_size))
        self.sigma = nn.Parameter(layer.weight.new_zeros(ensemble_size, len(layer.weight)))
        self.ensemble_size = ensemble_size
        self.form = form
        self.members: tuple[int, ...] = tuple(range(ensemble_size))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns r (A, C_in) and s (A, C_out) of the selected members, with their gradients scaled by M."""
        rho: Tensor = self.rho
        sigma: Tensor = self.sigma
        if self.members != tuple(range(self.ensemble_size)):
            rho, sigma = rho[list(self.members)], sigma[list(self.members)]
        if torch.is_grad_enabled():
            rho = _ScaleGradient.apply(rho, float(self.ensemble_size))
            sigma = _ScaleGradient.apply(sigma, float(self.ensemble_size))
        return 1 + rho, 1 + sigma

    def forward(self, x: Tensor) -> Tensor:
        num_members = len(self.members)
        if x.shape[0] % num_members:
            raise ValueError(f"a batch of {x.shape[0]} rows cannot be split over {num_members} members")
        r, s = self.factors()
        if self.form == "activation":
            y = self.plain_forward(_scale_channels(x, r, self.channel_dim), self.weight, self.bias)
            return _scale_channels(y, s, self.channel_dim)
        outputs = [
            self.plain_forward(rows, self.member_weight(r[m], s[m]), None if self.bias is None else self.bias * s[m])
            for m, rows in enumerate(x.chunk(num_members))
        ]
        return torch.cat(outputs)

    channel_dim: int

    def plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def member_weight(self, r: Tensor, s: Tensor) -> Tensor:
        """Returns W * outer(s, r) for r (C_in,) and s (C_out,), in the shape of W."""
        raise NotImplementedError

    def folded(self, kind: FoldKind) -> dict[str, Tensor]:
        """Returns `weight` and `bias` of the one plain layer that stands for all members."""
        r, s = 1 + self.rho.detach(), 1 + self.sigma.detach()
        if kind == "mean_factors":
            weight = self.member_weight(r.mean(0), s.mean(0))
        else:
            members = [self.member_weight(r[m], s[m]) for m in range(self.ensemble_size)]
            weight = torch.stack(members).mean(0)
        bias = {} if self.bias is None else {"bias": self.bias.detach() * s.mean(0)}
        return {"weight": weight.detach(), **bias}

    def member(self, m: int) -> dict[str, Tensor]:
        """Returns `weight` and `bias` of member m as a plain layer."""
        r, s = 1 + self.rho.detach()[m], 1 + self.sigma.detach()[m]
        bias = {} if self.bias is None else {"bias": self.bias.detach() * s}
        return {"weight": self.member_weight(r, s).detach(), **bias}


class BatchEnsembleConv2d(_BatchEnsembleLayer):
    """A Conv2d (grouped and depthwise too) shared by M members: (A * N, C_in, H, W) to (A * N, C_out, H', W')."""

    channel_dim = 1

    def __init__(self, layer: nn.Conv2d, ensemble_size: int, form: MemberForm = "weight") -> None:
        super().__init__(layer, ensemble_size, form, layer.in_channels)
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        self.padding_mode = layer.padding_mode
        self._edges = layer._reversed_padding_repeated_twice

    def plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            x = F.pad(x, self._edges, mode=self.padding_mode)
            return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def member_weight(self, r: Tensor, s: Tensor) -> Tensor:
        # Row o of group j meets only the input channels of group j.
        r_of_row = r.view(self.groups, -1).repeat_interleave(self.out_channels // self.groups, dim=0)
        return self.weight * (s[:, None] * r_of_row)[:, :, None, None]


class BatchEnsembleLinear(_BatchEnsembleLayer):
    """A Linear shared by M members: (A * N, ..., C_in) to (A * N, ..., C_out)."""

    channel_dim = -1

    def __init__(self, layer: nn.Linear, ensemble_size: int, form: MemberForm = "weight") -> None:
        super().__init__(layer, ensemble_size, form, layer.in_features)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def member_weight(self, r: Tensor, s: Tensor) -> Tensor:
        return self.weight * torch.outer(s, r)


def _scale_channels(x: Tensor, factor: Tensor, channel_dim: int) -> Tensor:
    """Returns member-major `x` times each member's channel `factor` (A, C), in the dtype and memory format of `x`.

    Multiplying by a factor repeated to (A * N, C) keeps channels_last, which a view to (A, N, C, H, W) would lose.
    """
    factor = factor.to(x.dtype).repeat_interleave(x.shape[0] // factor.shape[0], dim=0)
    shape = [x.shape[0]] + [1] * (x.ndim - 1)
    shape[channel_dim] = factor.shape[1]
    return x * factor.view(shape)


def to_batch_ensemble(
    network: nn.Module, ensemble_size: int, *, form: MemberForm = "weight", example: Tensor | None = None
) -> nn.Module:
    """Returns a copy of `network` in which every Conv2d and Linear, at any depth, has `ensemble_size` members.

    All members start equal to `network`. Left shared, and named by `shared_layers`: subclasses with a forward of their
    own, layers whose weight is read without calling them (torch's attention and encoder layers; with `example`, all
    that a forward does not call), and layers that are tied to another by one weight.

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
    layers: set[nn.Module] = {module for module in network.modules() if type(module) in (nn.Conv2d, nn.Linear)}
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            layers -= set(module.children())  # torch's fast paths read their weights and pass their forward by
    owners = Counter(id(module.weight) for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    layers = {layer for layer in layers if owners[id(layer.weight)] == 1}
    if example is None:
        return layers
    called: set[nn.Module] = set()
    handles = [layer.register_forward_hook(lambda module, *_: called.add(module)) for layer in layers]
    was_training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(was_training)
    for handle in handles:
        handle.remove()
    return layers & called


def _layers(network: nn.Module) -> Iterator[tuple[str, _BatchEnsembleLayer]]:
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchEnsembleLayer):
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
def select_members(network: nn.Module, members: tuple[int, ...]) -> Iterator[None]:
    """Within the block, a batch of `network` is for these members only, in this order."""
    before = [(layer, layer.members) for _, layer in _layers(network)]
    for layer, _ in before:
        layer.members = members
    try:
        yield
    finally:
        for layer, previous in before:
            layer.members = previous


def member_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Returns logits (M, N, K) of all members on the same images (N, C, H, W); (1, N, K) for a plain network."""
    ensemble_size = ensemble_size_of(network)
    logits: Tensor = network(images.repeat(ensemble_size, 1, 1, 1) if ensemble_size > 1 else images)
    return logits.view(ensemble_size, len(images), -1)


def fold(network: nn.Module, plain: nn.Module, *, kind: FoldKind = "mean_weights") -> nn.Module:
    """Returns `plain` with the members of `network` averaged into it: one network, no extra cost.

    `mean_weights` is the mean of the member weights, W * mean_m outer(s_m, r_m); `mean_factors` is what the official
    code computes, W * outer(mean s, mean r). They differ by the covariance of s and r. Everything else (norms, running
    statistics, tokens) is shared by the members and copied. The weights must fit `plain` strictly.
    """
    state = _plain_state(network, {name: layer.folded(kind) for name, layer in _layers(network)})
    plain.load_state_dict(state, strict=True)
    return plain.eval()


def member_state(network: nn.Module, m: int) -> dict[str, Tensor]:
    """Returns the state dict of member m as a plain network."""
    return _plain_state(network, {name: layer.member(m) for name, layer in _layers(network)})


def _plain_state(network: nn.Module, replacements: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    state = network.state_dict()
    for name, tensors in replacements.items():
        prefix = f"{name}." if name else ""
        del state[f"{prefix}rho"], state[f"{prefix}sigma"]
        state.update({f"{prefix}{key}": value for key, value in tensors.items()})
    return state
