"""Images moved to where the ensemble disagrees, before teachers and student see them.

All kinds move an image by the same root-mean-square size and differ only in the direction:

    gaussian     noise: the control that shows whether the direction matters
    ods          gradient of a random combination w of one teacher's probabilities, w ~ U(-1, 1)^K
    tdiv         gradient of H(p_j, p_i): where teacher i is surprised by teacher j
    tdiv_sdiv    gradient of H(p_j, p_i) over teachers minus the same over student members: where teachers disagree
                 and the members do not yet

Each step draws one ordered pair (i, j), i != j, for teachers and members alike, and runs only those two of each.
Gradients flow to the images alone, so no weight gradient is computed.

Source: Nam et al. 2022 (arXiv 2206.15047); ODS: Tashiro et al. 2020 (arXiv 2003.06878); docs/method.md.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.method.batch_ensemble import select_members
from edc.method.kinds import Perturbation
from edc.method.losses import cross_entropy_between, wide

__all__ = ["draw_pair", "move", "perturb", "sent_to"]


def perturb(
    images: Tensor,
    kind: Perturbation,
    *,
    teachers: Sequence[nn.Module],
    student: nn.Module | None = None,
    grey_levels: float = 1.0,
    generator: torch.Generator,
    rows: slice = slice(None),
    num_rows: int | None = None,
) -> Tensor:
    """Returns images x' = clip(x + (grey_levels / 255) * sqrt(D) * g / ||g||_2, 0, 1), one step along the direction g.

    All networks are run in eval mode and left in the mode they were in.

    Args:
        images: (N, C, H, W) in [0, 1].
        teachers: networks from images in [0, 1] to logits (N, K).
        student: for `tdiv_sdiv`, the network with members that learns from the teachers.
        generator: a CPU generator; the same one on every process gives every process the same draws.
        rows, num_rows: which rows of the global batch of `num_rows` images these are (noise is drawn for all of them,
            so that it does not depend on the number of processes).
    """
    if kind == "none":
        return images
    if kind == "gaussian":
        noise = torch.randn((num_rows or len(images), *images.shape[1:]), generator=generator)[rows]
        return move(images, sent_to(noise, images.device).to(images.dtype), grey_levels=grey_levels)
    if kind == "ods":
        i = int(torch.randint(len(teachers), (), generator=generator))
        with _evaluating(teachers[i]):
            return move(images, _ods_gradient(images, teachers[i], generator), grey_levels=grey_levels)
    i, j = draw_pair(len(teachers), generator)
    with _evaluating(teachers[i], teachers[j]):
        with torch.inference_mode():
            target = F.softmax(wide(teachers[j](images)), dim=-1)
        direction = _surprise_gradient(images, teachers[i], target.clone())
    if kind == "tdiv_sdiv":
        if student is None:
            raise ValueError("perturb: 'tdiv_sdiv' needs the student, whose members disagree too; found none")
        with _evaluating(student):
            # Not in inference mode: autocast would reuse the weights that it cast there in the pass that needs a graph.
            with torch.no_grad(), select_members(student, (j,)):
                target = F.softmax(wide(student(images)), dim=-1)
            with select_members(student, (i,)):
                direction -= _surprise_gradient(images, student, target)
    return move(images, direction, grey_levels=grey_levels)


def draw_pair(num_members: int, generator: torch.Generator) -> tuple[int, int]:
    """Returns an ordered pair of different members, uniform over all M (M - 1)."""
    i, j = torch.randperm(num_members, generator=generator)[:2].tolist()
    return i, j


def move(images: Tensor, direction: Tensor, *, grey_levels: float) -> Tensor:
    """Returns `images` moved by `grey_levels` (root-mean-square, of 255) along `direction`, within [0, 1].

    An image whose direction is zero or not finite stays where it is (the official code divides by zero there).
    """
    g = wide(direction).flatten(1)
    # Scaled by the largest entry first: the squares of small float32 gradients would underflow to a zero norm.
    g = g / g.abs().amax(1, keepdim=True)
    unit = g / g.norm(dim=1, keepdim=True)
    unit = torch.where(unit.isfinite().all(1, keepdim=True), unit, 0.0)
    step = grey_levels / 255 * g.shape[1] ** 0.5 * unit
    moved: Tensor = images + step.view_as(images).to(images.dtype)
    return moved.clamp(0, 1)


def _surprise_gradient(images: Tensor, network: nn.Module, target: Tensor) -> Tensor:
    """Returns the gradient of H(target, softmax(network(x))), image by image, with respect to the images alone."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy_between(target, wide(network(x))).sum(), x)
    return gradient


def _ods_gradient(images: Tensor, network: nn.Module, generator: torch.Generator) -> Tensor:
    """Returns the gradient of a random combination of the network's probabilities, image by image."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        logits = wide(network(x))
        # One w per step, not one per image: independent of how the batch is divided over processes.
        w = sent_to(torch.rand(logits.shape[-1], generator=generator) * 2 - 1, logits.device).to(logits.dtype)
        (gradient,) = torch.autograd.grad((F.softmax(logits, dim=-1) @ w).sum(), x)
    return gradient


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Within the block, the networks are in eval mode and frozen; after it all is as it was, module by module.

    Not `network.train()`: it would unfreeze what a user has frozen, a BatchNorm for example. Parameters must not
    require gradients: a compiled network computes the gradients of all that do, whatever is asked for.
    """
    training = [module for network in networks for module in network.modules() if module.training]
    learning = [p for network in networks for p in network.parameters() if p.requires_grad]
    for module in training:
        module.training = False
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def sent_to(drawn: Tensor, device: torch.device) -> Tensor:
    """Returns what was `drawn` on the CPU on `device`, without waiting for a GPU's queue."""
    if device.type == "cuda":
        drawn = drawn.pin_memory()  # a copy from anywhere else waits
    return drawn.to(device, non_blocking=True)
