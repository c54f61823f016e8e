"""Layers with members: M convolutions or linear layers that share the slow weight and differ by rank-one factors.

Member m computes with `W_m = W * outer(s_m, r_m)`, in one of two forms that give the same numbers:

    activation form   y = (conv(x * r_m, W) + b) * s_m        no weight is copied; M activations are stored
    weight form       y =  conv(x, W_m) + b * s_m             M small weights are made, no activation stored for r, s

edc trains in the weight form. The activation form, which every published BatchEnsemble computes, is the reference.
All M weights of a layer are one expression. They do not change within a step: `member_weights_made` makes them once.

The factors are stored as their distance from one, rho = r - 1 and sigma = s - 1. Ordinary weight decay then pulls r and
s towards one, which is the official penalty with its 1/M if their data gradient is multiplied by M. Each member then
sees the gradient of its own mean loss instead of the mean over members.

Batches of members are member-major: row m * N + n is image n seen by member m.

Source: Wen et al. 2020 (arXiv 2002.06715); Nam et al. 2022 (arXiv 2206.15047).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.method.functions import rounded_product, scale_gradient
from edc.method.kinds import FoldKind

__all__ = ["BatchEnsembleConv2d", "BatchEnsembleLayer", "BatchEnsembleLinear", "LayerForm", "is_known"]

LayerForm = Literal["activation", "weight"]
MemberWeights = list[tuple[Tensor, Tensor | None]]
"""Weight and bias of one member after another."""

_CASTS = "timm.layers.linear.Linear"
"""Computes what nn.Linear does (it casts its weight, in scripted code alone)."""
_PADS_TO_SAME = "timm.layers.conv2d_same.Conv2dSame"
"""Computes what nn.Conv2d does, on images padded with zeros as TensorFlow pads them: by the size of the images."""


def is_known(layer: nn.Conv2d | nn.Linear) -> bool:
    """Returns whether the layers below compute what `layer` does, given its weight and bias."""
    kind: Any = type(layer)
    if isinstance(layer, nn.Linear):
        return kind.forward is nn.Linear.forward or _name(_class_of_forward(layer)) == _CASTS
    if _name(_class_of_forward(layer)) == _PADS_TO_SAME:
        return True
    return kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward


def _class_of_forward(layer: nn.Module) -> type[nn.Module]:
    """Returns the class that the forward of `layer` is written in."""
    return next(kind for kind in type(layer).__mro__ if "forward" in vars(kind))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class BatchEnsembleLayer(nn.Module):
    """The part that both layers share: slow weight, bias, factors, and the members that the next batch is for.

    Shapes: rho (M, C_in), sigma (M, C_out).
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, ensemble_size: int, form: LayerForm, in_size: int) -> None:
        super().__init__()
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self.rho = nn.Parameter(layer.weight.new_zeros(ensemble_size, in_size))
        self.sigma = nn.Parameter(layer.weight.new_zeros(ensemble_size, len(layer.weight)))
        self.was_shared = type(layer) not in (nn.Conv2d, nn.Linear)
        """Whether edc 0.1.0, which converted no subclass, left it shared: weights of then have no factors of it."""
        self.ensemble_size = ensemble_size
        self.form = form
        self.selected: Tensor | None = None
        """Which members (A,) the next batch is for; None: all. A tensor, so that a compiled layer fits every member."""
        self.rows: tuple[int, ...] | None = None
        """How many rows of the next batch each of these members has; None: all have the same number."""
        self.members: tuple[int, ...] | None = None
        """The same members as `selected`, as numbers."""
        self.made: MemberWeights | None = None
        """Weights and biases of all members, where they have been made for the calls to come."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.was_shared and f"{prefix}weight" in state_dict:
            for name, factor in (("rho", self.rho), ("sigma", self.sigma)):
                state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(factor))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns r (A, C_in) and s (A, C_out) of the selected members, with their gradients scaled by M."""
        rho: Tensor = self.rho
        sigma: Tensor = self.sigma
        if self.selected is not None:
            rho, sigma = rho.index_select(0, self.selected), sigma.index_select(0, self.selected)
        if torch.is_grad_enabled():
            rho = scale_gradient(rho, float(self.ensemble_size))
            sigma = scale_gradient(sigma, float(self.ensemble_size))
        return 1 + rho, 1 + sigma

    def forward(self, x: Tensor) -> Tensor:
        rows = self._rows_of_members(len(x))
        if self.form == "activation":
            r, s = self.factors()
            y = self.plain_forward(_scale_channels(x, r, rows, self.channel_dim), self.weight, self.bias)
            return _scale_channels(y, s, rows, self.channel_dim)
        outputs = [
            self.plain_forward(part, weight, bias)
            for part, (weight, bias) in zip(torch.split(x, rows), self._weights_of_members(), strict=True)
            if len(part)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _weights_of_members(self) -> MemberWeights:
        """Returns weight and bias of each selected member; without a graph where this layer is frozen."""
        if self.made is None or self.made[0][0].dtype != self._computed_in():
            return self.make_weights()
        made = self.made if self.members is None else [self.made[m] for m in self.members]
        if self.rho.requires_grad:  # not the slow weight's, which its owner may have frozen
            return made
        return [(weight.detach(), None if bias is None else bias.detach()) for weight, bias in made]

    def make_weights(self) -> MemberWeights:
        """Returns weight and bias of each selected member, computed in one expression for all.

        Under autocast they are rounded here, all at once, and not in each convolution.
        """
        r, s = self.factors()
        weights = _apart(self.member_weights(r, s, dtype=self._computed_in()))
        biases = [None] * len(weights) if self.bias is None else _apart(self.bias * s)
        return list(zip(weights, biases, strict=True))

    def _computed_in(self) -> torch.dtype:
        """Returns the type that autocast, if it is on, would compute this layer in."""
        kind = self.weight.device.type
        is_cast = kind != "meta" and torch.is_autocast_enabled(kind) and self.weight.dtype == torch.float32
        return torch.get_autocast_dtype(kind) if is_cast else self.weight.dtype

    def _rows_of_members(self, num_rows: int) -> list[int]:
        """Returns how many of a batch's rows each selected member has; a layer may see each row several times."""
        num_members = self.ensemble_size if self.selected is None else len(self.selected)
        rows = self.rows or (1,) * num_members
        if num_rows % sum(rows):
            raise ValueError(f"a batch of {num_rows} rows cannot be split over {num_members} members")
        return [number * (num_rows // sum(rows)) for number in rows]

    channel_dim: int

    def plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def member_weights(self, r: Tensor, s: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Returns W * outer(s_m, r_m) (A, C_out, C_in, ...) for r (A, C_in) and s (A, C_out), rounded to `dtype`."""
        return rounded_product(self.weight, self.outer(r, s), dtype or self.weight.dtype)

    def outer(self, r: Tensor, s: Tensor) -> Tensor:
        """Returns outer(s_m, r_m) in a shape that the slow weight can be multiplied with."""
        raise NotImplementedError

    def plain(self) -> nn.Module:
        """Returns a plain layer of this one's shape, place and type, its weights still to be loaded."""
        layer = self.plain_on_meta()  # draws no initial weights, so that a fold in a loop changes no random numbers
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            if parameter is not None:
                setattr(layer, name, nn.Parameter(torch.empty_like(parameter)))
        return layer.train(self.training)

    def plain_on_meta(self) -> nn.Module:
        raise NotImplementedError

    def folded(self, kind: FoldKind) -> dict[str, Tensor]:
        """Returns `weight` and `bias` of the one plain layer that stands for all members."""
        r, s = 1 + self.rho.detach(), 1 + self.sigma.detach()
        if kind == "mean_factors":
            weight = self.member_weights(r.mean(0, keepdim=True), s.mean(0, keepdim=True))[0]
        else:
            weight = self.member_weights(r, s).mean(0)
        bias = {} if self.bias is None else {"bias": self.bias.detach() * s.mean(0)}
        return {"weight": weight.detach(), **bias}


class BatchEnsembleConv2d(BatchEnsembleLayer):
    """A Conv2d (grouped and depthwise too) shared by M members: (A * N, C_in, H, W) to (A * N, C_out, H', W')."""

    channel_dim = 1

    def __init__(self, layer: nn.Conv2d, ensemble_size: int, form: LayerForm = "weight") -> None:
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
        self._plain_kind: Any = _class_of_forward(layer)
        self._pads_to_same = _name(self._plain_kind) == _PADS_TO_SAME

    def plain_on_meta(self) -> nn.Module:
        names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
        how = {name: getattr(self, name) for name in (names[:-1] if self._pads_to_same else names)}
        layer: nn.Module = self._plain_kind(
            self.in_channels, self.out_channels, bias=self.bias is not None, device="meta", **how
        )
        return layer

    def plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._pads_to_same:
            return F.conv2d(self._padded_to_same(x), weight, bias, self.stride, 0, self.dilation, self.groups)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._edges, mode=self.padding_mode)
            return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _padded_to_same(self, x: Tensor) -> Tensor:
        """Returns `x` with zeros around it, one more at the end where their number is odd, so that stride alone
        says how much smaller the output is.
        """
        edges: list[int] = []
        for dim in (1, 0):  # width first
            size, stride = x.shape[dim - 2], self.stride[dim]
            covered = (-(-size // stride) - 1) * stride + (self.kernel_size[dim] - 1) * self.dilation[dim] + 1
            missing = max(covered - size, 0)
            edges += [missing // 2, missing - missing // 2]
        return F.pad(x, edges)

    def outer(self, r: Tensor, s: Tensor) -> Tensor:
        # Row o of group j meets only the input channels of group j.
        outer = s.view(len(s), self.groups, -1, 1) * r.view(len(r), self.groups, 1, -1)
        return outer.view(len(s), self.out_channels, -1, 1, 1)


class BatchEnsembleLinear(BatchEnsembleLayer):
    """A Linear shared by M members: (A * N, ..., C_in) to (A * N, ..., C_out)."""

    channel_dim = -1

    def __init__(self, layer: nn.Linear, ensemble_size: int, form: LayerForm = "weight") -> None:
        super().__init__(layer, ensemble_size, form, layer.in_features)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def plain_on_meta(self) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")

    def plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def outer(self, r: Tensor, s: Tensor) -> Tensor:
        return s[:, :, None] * r[:, None, :]


def _apart(tensor: Tensor) -> list[Tensor]:
    """Returns the parts along the first axis; the gradient of a single one needs no copy."""
    return [tensor.squeeze(0)] if len(tensor) == 1 else list(tensor.unbind(0))


def _scale_channels(x: Tensor, factor: Tensor, rows: list[int], channel_dim: int) -> Tensor:
    """Returns member-major `x` times each member's channel `factor` (A, C), in the memory format of `x`.

    Multiplying by a factor repeated to (A * N, C) keeps channels_last, which a view to (A, N, C, H, W) would lose. The
    factor is not rounded under autocast, as it is not in the weight form; so activations are float32 there.
    """
    factor = torch.cat([f.expand(number, -1) for f, number in zip(factor, rows, strict=True)])
    shape = [x.shape[0]] + [1] * (x.ndim - 1)
    shape[channel_dim] = factor.shape[1]
    return x * factor.view(shape)
