"""Images moved to where the ensemble disagrees, before teachers and student see them.

All kinds move an image by the same root-mean-square size and differ only in the direction:

    gaussian     noise: the control that says whether the direction matters
    ods          gradient of a random combination w of one teacher's probabilities, w ~ U(-1, 1)^K
    tdiv         gradient of H(p_j, p_i): where teacher i is surprised by teacher j
    tdiv_sdiv    gradient of H(p_j, p_i) over teachers minus the same over student members: where teachers disagree
                 and the members do not yet

One ordered pair (i, j), i != j, is drawn for a step, the same for teachers and members, and only those two of each are
run. Gradients flow to the images alone, so no weight gradient is computed.

Source: Nam et al. 2022 (arXiv 2206.15047); ODS: Tashiro et al. 2020 (arXiv 2003.06878).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.method.batch_ensemble import select_members
from edc.method.losses import cross_entropy_between, wide
from edc.recipe import Perturbation
from edc.teachers.ensemble import TeacherEnsemble

__all__ = ["draw_pair", "move", "perturb"]


def draw_pair(num_members: int, generator: torch.Generator) -> tuple[int, int]:
    """Returns an ordered pair of different members, uniform over all M (M - 1)."""
    i, j = torch.randperm(num_members, generator=generator)[:2].tolist()
    return i, j


def perturb(
    images: Tensor,
    kind: Perturbation,
    *,
    teachers: TeacherEnsemble,
    student: nn.Module,
    grey_levels: float,
    generator: torch.Generator,
    rows: slice = slice(None),
    num_rows: int | None = None,
) -> Tensor:
    """Returns images x' = clip(x + (grey_levels / 255) * sqrt(D) * g / ||g||_2, 0, 1), one step along the direction g.

    The student is run in eval mode and left in the mode it was in.

    Args:
        images: (N, C, H, W) in [0, 1].
        generator: a CPU generator; the same one on every process gives every process the same draws.
        rows, num_rows: which rows of the global batch of `num_rows` images these are (noise is drawn for all of them,
            so that it does not depend on the number of processes).
    """
    if kind == "none":
        return images
    if kind == "gaussian":
        shape = (num_rows or len(images), *images.shape[1:])
        noise = torch.randn(shape, generator=generator)[rows]
        return move(images, _sent_to(noise, images), grey_levels=grey_levels)
    was_training = student.training
    student.eval()
    try:
        direction = _direction(images, kind, teachers, student, generator)
    finally:
        student.train(was_training)
    return move(images, direction, grey_levels=grey_levels)


def _sent_to(drawn: Tensor, other: Tensor) -> Tensor:
    """Returns what was `drawn` on the CPU in the place and type of `other`, without waiting for a GPU's queue."""
    if other.is_cuda:
        drawn = drawn.pin_memory()  # a copy from anywhere else waits
    return drawn.to(other.device, non_blocking=True).to(other.dtype)


def _direction(
    images: Tensor, kind: Perturbation, teachers: TeacherEnsemble, student: nn.Module, generator: torch.Generator
) -> Tensor:
    """Returns the gradient with respect to the images (N, C, H, W) of the quantity to climb.

    Teachers and student one after the other, so that only one network's activations are kept at a time.
    """
    if kind == "ods":
        i = int(torch.randint(len(teachers), (), generator=generator))

        def combination(logits: Tensor) -> Tensor:
            # One w a step, not one an image: independent of how the batch is divided over processes.
            w = torch.rand(logits.shape[-1], generator=generator) * 2 - 1
            return F.softmax(logits, dim=-1) @ _sent_to(w, logits)

        return _input_gradient(teachers[i], images, combination)
    i, j = draw_pair(len(teachers), generator)
    with torch.inference_mode():
        target = F.softmax(wide(teachers[j](images)), dim=-1)
    direction = _input_gradient(teachers[i], images, partial(cross_entropy_between, target.clone()))
    if kind == "tdiv_sdiv":
        # Not in inference mode: autocast would keep the weights it casts there for the pass that needs a graph.
        with torch.no_grad(), select_members(student, (j,)):
            target = F.softmax(wide(student(images)), dim=-1)
        with select_members(student, (i,)):
            direction -= _input_gradient(student, images, partial(cross_entropy_between, target))
    return direction


def _input_gradient(network: nn.Module, images: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the gradient of `objective(logits)` (N,), summed, with respect to the images alone."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(wide(network(x))).sum(), x)
    return gradient


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
