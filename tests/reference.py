"""Layers and one step of docs/method.md written down straight, in float64: what the package is held against.

Written from equations and from no code of the package. Where the package is clever this is not: members are a leading
axis and a loop, r and s are stored as r and s, all M teachers and members run in the perturbation, weight decay is the
official penalty, the optimiser is three lines. The network is `small_networks.SmallNetwork`, spelled out again.

Letters: M members, N images, K classes. Shapes: images (N, C, H, W); activations (M, N, C, H, W).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, BN_MOMENTUM = 1e-5, 0.1
GROUPS = {"body.0.depthwise": 12, "head.mix": 3}
STRIDE = {"body.0.conv1": 2, "body.0.shortcut": 2}
PADDING = {"stem": 1, "body.0.conv1": 1, "body.0.depthwise": 1}
LAYERS = ("stem", "body.0.conv1", "body.0.depthwise", "body.0.shortcut", "head.mix", "classifier")


@dataclass
class Network:
    """Shared weights `w[name]`, rank-one factors `r[name]` (M, C_in) and `s[name]` (M, C_out), BatchNorm statistics."""

    w: dict[str, Tensor]
    r: dict[str, Tensor]
    s: dict[str, Tensor]
    statistics: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    velocity: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_members(self) -> int:
        return len(self.r["stem"])


def network_from_state(state: dict[str, Tensor], num_members: int) -> Network:
    """Returns the network of a plain state dict, its members all equal: r = s = 1."""
    state = {key: value.detach().clone() for key, value in state.items()}
    mean, std = state.pop("mean"), state.pop("std")
    statistics = {key: state.pop(key) for key in list(state) if "running" in key or "num_batches" in key}
    statistics = {key: value for key, value in statistics.items() if "running" in key}
    c_in = {name: state[f"{name}.weight"].shape[1] * GROUPS.get(name, 1) for name in LAYERS}
    c_out = {name: state[f"{name}.weight"].shape[0] for name in LAYERS}
    r = {name: torch.ones(num_members, c_in[name], dtype=torch.float64) for name in LAYERS}
    s = {name: torch.ones(num_members, c_out[name], dtype=torch.float64) for name in LAYERS}
    return Network(state, r, s, statistics, mean, std)


def conv(net: Network, name: str, x: Tensor) -> Tensor:
    """y_m = ((x_m * r_m) conv W + b) * s_m, one group at a time."""
    weight, bias, groups = net.w[f"{name}.weight"], net.w.get(f"{name}.bias"), GROUPS.get(name, 1)
    outputs = []
    for m in range(net.num_members):
        scaled = x[m] * net.r[name][m].view(1, -1, 1, 1)
        parts = [
            F.conv2d(inputs, rows, stride=STRIDE.get(name, 1), padding=PADDING.get(name, 0))
            for inputs, rows in zip(scaled.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
        ]
        y = torch.cat(parts, 1)
        if bias is not None:
            y = y + bias.view(1, -1, 1, 1)
        outputs.append(y * net.s[name][m].view(1, -1, 1, 1))
    return torch.stack(outputs)


def linear(net: Network, name: str, x: Tensor) -> Tensor:
    """y_m = ((x_m * r_m) W^T + b) * s_m."""
    return torch.stack(
        [
            ((x[m] * net.r[name][m]) @ net.w[f"{name}.weight"].T + net.w[f"{name}.bias"]) * net.s[name][m]
            for m in range(net.num_members)
        ]
    )


def batch_norm(net: Network, name: str, x: Tensor, *, train: bool) -> Tensor:
    """Fully shared; batch statistics are joint over members and images, and move the running ones."""
    c = (1, 1, -1, 1, 1)
    if train:
        count = x.numel() / x.shape[2]
        mean = x.sum((0, 1, 3, 4)) / count
        variance = (x - mean.view(c)).square().sum((0, 1, 3, 4)) / count
        with torch.no_grad():
            for key, value in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
                old = net.statistics[f"{name}.{key}"]
                net.statistics[f"{name}.{key}"] = (1 - BN_MOMENTUM) * old + BN_MOMENTUM * value
    else:
        mean, variance = net.statistics[f"{name}.running_mean"], net.statistics[f"{name}.running_var"]
    y = (x - mean.view(c)) / torch.sqrt(variance.view(c) + EPS)
    return y * net.w[f"{name}.weight"].view(c) + net.w[f"{name}.bias"].view(c)


def forward(net: Network, images: Tensor, *, train: bool) -> Tensor:
    """Logits (M, N, K): every member on the same images, normalisation inside."""
    x = torch.stack([(images - net.mean) / net.std] * net.num_members)
    x = conv(net, "stem", x)
    y = conv(net, "body.0.conv1", batch_norm(net, "body.0.norm1", x, train=train).clamp_min(0))
    y = conv(net, "body.0.depthwise", batch_norm(net, "body.0.norm2", y, train=train).clamp_min(0))
    y = y + conv(net, "body.0.shortcut", x)
    y = batch_norm(net, "head.norm", conv(net, "head.mix", y), train=train).clamp_min(0)
    return linear(net, "classifier", y.mean((3, 4)))


def log_softmax(z: Tensor) -> Tensor:
    shifted = z - z.max(-1, keepdim=True).values
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def cross_entropy(target: Tensor, log_probs: Tensor) -> Tensor:
    """H(target, p) over the last axis."""
    return -(target * log_probs).sum(-1)


def tdiv_sdiv_direction(teachers: list[Network], student: Network, images: Tensor, pair: tuple[int, int]) -> Tensor:
    """d(tdiv - sdiv)/dx, all networks in eval mode, no temperature, the gradient stopped on member j."""
    i, j = pair
    x = images.clone().requires_grad_()
    teacher_log_probs = torch.cat([log_softmax(forward(teacher, x, train=False)) for teacher in teachers])
    student_log_probs = log_softmax(forward(student, x, train=False))
    tdiv = cross_entropy(teacher_log_probs[j].exp().detach(), teacher_log_probs[i])
    sdiv = cross_entropy(student_log_probs[j].exp().detach(), student_log_probs[i])
    return torch.autograd.grad((tdiv - sdiv).sum(), x)[0]


def perturbed(images: Tensor, direction: Tensor, *, grey_levels: float = 1.0) -> Tensor:
    """x' = clip(x + (1/255) sqrt(D) g / ||g||_2, 0, 1), image by image; an image with g = 0 stays."""
    result = []
    for x, g in zip(images, direction, strict=True):
        norm = g.square().sum().sqrt()
        step = grey_levels / 255 * g.numel() ** 0.5 * g / norm if norm > 0 else torch.zeros_like(g)
        result.append((x + step).clamp(0, 1))
    return torch.stack(result)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 mean_{m,n} H(softmax(z_teacher_m / T), softmax(z_student_m / T)): member m learns from teacher m only."""
    num_members, num_images, _ = student_logits.shape
    total = torch.zeros((), dtype=student_logits.dtype)
    for m in range(num_members):
        for n in range(num_images):
            target = log_softmax(teacher_logits[m, n] / temperature).exp()
            total = total + cross_entropy(target, log_softmax(student_logits[m, n] / temperature))
    return temperature**2 * total / (num_members * num_images)


def train_step(
    student: Network,
    teachers: list[Network],
    images: Tensor,
    labels: Tensor,
    *,
    pair: tuple[int, int],
    temperature: float,
    alpha: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """One step of LatentBE + TDiv-SDiv; changes `student`, returns the loss (without penalty) and the images used."""
    x = perturbed(images, tdiv_sdiv_direction(teachers, student, images, pair))
    with torch.no_grad():
        teacher_logits = torch.cat([forward(teacher, x, train=False) for teacher in teachers])
    groups = (student.w, student.r, student.s)
    for group in groups:
        for key in group:
            group[key] = group[key].detach().requires_grad_()
    student_logits = forward(student, x, train=True)
    ce = -torch.stack([log_softmax(logits)[range(len(labels)), labels].mean() for logits in student_logits]).mean()
    loss = (1 - alpha) * ce + alpha * distillation_loss(student_logits, teacher_logits, temperature)

    # The official penalty: ordinary on everything but r and s, which are pulled towards one with 1 / M.
    num_members = student.num_members
    penalty = sum(0.5 * weight_decay * value.square().sum() for value in student.w.values())
    for factors in (student.r, student.s):
        penalty = penalty + sum(
            0.5 * weight_decay / num_members * (1 - value).square().sum() for value in factors.values()
        )
    (loss + penalty).backward()
    for scale, letter, group in zip((1, num_members, num_members), "wrs", groups, strict=True):
        for key, value in group.items():
            gradient = value.grad * scale  # after backward, the gradients of r and s are multiplied by M
            velocity = student.velocity.get(f"{letter}.{key}", torch.zeros_like(gradient)) * momentum + gradient
            student.velocity[f"{letter}.{key}"] = velocity
            group[key] = (value - learning_rate * (gradient + momentum * velocity)).detach()
    return loss.detach(), x


def folded(net: Network, kind: str) -> dict[str, Tensor]:
    """The plain state dict that stands for all members, entry by entry.

    `mean_weights`: W[o, c] * mean_m(s_m[o] * r_m[c]); `mean_factors`: W[o, c] * mean_m(s_m[o]) * mean_m(r_m[c]).
    Row o of group j meets the input channels of group j only. A bias is multiplied by mean_m(s_m).
    """
    state = {key: value.detach().clone() for key, value in net.w.items()} | dict(net.statistics)
    for name in LAYERS:
        weight, r, s = net.w[f"{name}.weight"].detach(), net.r[name].detach(), net.s[name].detach()
        result = torch.empty_like(weight)
        rows_of_group = weight.shape[0] // GROUPS.get(name, 1)
        for o in range(weight.shape[0]):
            for c in range(weight.shape[1]):
                channel = o // rows_of_group * weight.shape[1] + c
                if kind == "mean_weights":
                    factor = (s[:, o] * r[:, channel]).mean()
                else:
                    factor = s[:, o].mean() * r[:, channel].mean()
                result[o, c] = weight[o, c] * factor
        state[f"{name}.weight"] = result
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = net.w[f"{name}.bias"].detach() * s.mean(0)
    return state


def member_state(network: nn.Module, m: int) -> dict[str, Tensor]:
    """The state dict of member m as a plain network: each weight W[o, c] * s_m[o] * r_m[c], each bias times s_m.

    Of any network with members, whose state has `rho` = r - 1 (M, C_in) and `sigma` = s - 1 (M, C_out) beside `weight`.
    """
    state = dict(network.state_dict())
    for key in [key for key in state if key.rpartition(".")[2] == "rho"]:
        layer = key.removesuffix("rho")
        r, s = 1 + state.pop(f"{layer}rho")[m], 1 + state.pop(f"{layer}sigma")[m]
        weight = state[f"{layer}weight"]
        groups = getattr(network.get_submodule(layer.removesuffix(".")), "groups", 1)
        of_row = torch.stack([r.view(groups, -1)[o * groups // len(weight)] for o in range(len(weight))])
        factors = s[:, None] * of_row
        state[f"{layer}weight"] = weight * factors.view(*factors.shape, *[1] * (weight.ndim - 2))
        if f"{layer}bias" in state:
            state[f"{layer}bias"] = state[f"{layer}bias"] * s
    return state
