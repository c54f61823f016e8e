"""Images moved to where the ensemble disagrees, before teachers and student see them.

All kinds move an image by the same root-mean-square size and differ only in the direction:

    gaussian     noise: the control that shows whether the direction matters
    ods          gradient of a random combination w of one teacher's probabilities, w ~ U(-1, 1)^K
    tdiv         gradient of H(p_j, p_i): where teacher i is surprised by teacher j
    tdiv_sdiv    gradient of H(p_j, p_i) over teachers minus the same over student members: where teachers disagree
                 and the members do not yet

Each step draws one ordered pair (i, j), i != j, for teachers and members alike, and runs only those two of each. Or
each row has a pair of its own: i is the teacher that will answer the row, j another. The number of rows that run is
the same. Gradients flow to the images alone, so no weight gradient is computed.

Source: Nam et al. 2022 (arXiv 2206.15047); ODS: Tashiro et al. 2020 (arXiv 2003.06878); docs/method.md.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.method.batch_ensemble import ensemble_size_of, select_members
from edc.method.kinds import Perturbation
from edc.method.losses import cross_entropy_between, wide

__all__ = ["draw_others", "draw_pair", "move", "perturb", "sent_to"]

Numbers = int | Tensor
"""A network for all images, or the network of each image (N,), on the CPU."""


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
    owners: Tensor | None = None,
) -> Tensor:
    """Returns images x' = clip(x + (grey_levels / 255) * sqrt(D) * g / ||g||_2, 0, 1), one step along the direction g.

    All networks are run in eval mode and left in the mode they were in.

    Args:
        images: (N, C, H, W) in [0, 1].
        teachers: networks from images in [0, 1] to logits (N, K).
        student: for `tdiv_sdiv`, the network with members that learns from the teachers.
        generator: a CPU generator; the same one on every process gives every process the same draws.
        rows: which rows of the global batch these images are (by default all). Noise is drawn for all of them, so
            that it does not depend on the number of processes.
        num_rows: images of the global batch.
        owners: i of each image (N,), on the CPU; j is another, drawn for each image. None: one pair for all images.
            For `tdiv` and `tdiv_sdiv`.
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
    pair: tuple[int, int] | tuple[Tensor, Tensor]
    if owners is None:
        pair = draw_pair(len(teachers), generator)
    else:
        pair = owners, draw_others(owners, len(teachers), generator, rows=rows, num_rows=num_rows)
    with _evaluating(*teachers):
        # A teacher that is asked both with and without a graph meets what is said below.
        quiet = torch.inference_mode if owners is None else torch.no_grad
        direction = _surprise_gradient(images, teachers, *pair, quiet=quiet)
    if kind == "tdiv_sdiv":
        if student is None:
            raise ValueError("perturb: 'tdiv_sdiv' needs the student, whose members disagree too; found none")
        members = [partial(_member_logits, student, m) for m in range(ensemble_size_of(student))]
        with _evaluating(student):
            # Not in inference mode: autocast would reuse the weights that it cast there in the pass that needs a graph.
            direction -= _surprise_gradient(images, members, *pair, quiet=torch.no_grad)
    return move(images, direction, grey_levels=grey_levels)


def draw_pair(num_members: int, generator: torch.Generator) -> tuple[int, int]:
    """Returns an ordered pair of different members, uniform over all M (M - 1)."""
    i, j = torch.randperm(num_members, generator=generator)[:2].tolist()
    return i, j


def draw_others(
    owners: Tensor, num_teachers: int, generator: torch.Generator, *, rows: slice, num_rows: int | None
) -> Tensor:
    """Returns another teacher for each row (N,): uniform over those that do not own it.

    One shift i -> i + s, modulo M, is drawn for each block of M rows. So where every teacher owns one row of a block,
    every teacher is also the other one of one row.
    """
    num_drawn = num_rows or len(owners)
    shifts = torch.randint(1, num_teachers, (-(-num_drawn // num_teachers),), generator=generator)
    return (owners + shifts.repeat_interleave(num_teachers)[:num_drawn][rows]) % num_teachers


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


def _surprise_gradient(
    images: Tensor,
    networks: Sequence[Callable[[Tensor], Tensor]],
    i: Numbers,
    j: Numbers,
    *,
    quiet: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Returns the gradient of H(p_j(x), p_i(x)), image by image, with respect to the images alone, through p_i."""
    with quiet():
        target = F.softmax(wide(_asked(networks, j, images)), dim=-1)
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        surprise = cross_entropy_between(target.clone(), wide(_asked(networks, i, x)))
        (gradient,) = torch.autograd.grad(surprise.sum(), x)
    return gradient


def _asked(networks: Sequence[Callable[[Tensor], Tensor]], numbers: Numbers, images: Tensor) -> Tensor:
    """Returns the logits (N, K) of each image's network, each of which runs once on its images."""
    if isinstance(numbers, int):
        return networks[numbers](images)
    order = numbers.argsort(stable=True)
    parts = torch.split(images[sent_to(order, images.device)], numbers.bincount(minlength=len(networks)).tolist())
    logits = torch.cat([network(part) for network, part in zip(networks, parts, strict=True) if len(part)])
    return logits[sent_to(order.argsort(), images.device)]


def _member_logits(student: nn.Module, m: int, images: Tensor) -> Tensor:
    with select_members(student, (m,)):
        logits: Tensor = student(images)
    return logits


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
