"""The training step in the official order of work, as the yardstick of `step_cost.py`.

What the authors' code computes, written down in torch: members in activation space, as one joint batch; and a
perturbation for which all M teachers and all M members are run and differentiated, although two of each matter. Loss,
images and gradients are those of `edc.method.step.StudentStep` in its joint form (tests/test_official_order.py: equal
to 1e-10 in float64); only the order of work differs.

Source: Nam et al. 2022 (arXiv 2206.15047) and its published code, read as METHOD; nothing is copied from it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.method.losses import cross_entropy_between, latent_be_loss, wide
from edc.method.perturb import draw_pair, move
from edc.method.step import Batch
from edc.teachers.ensemble import TeacherEnsemble

__all__ = ["official_loss"]


def official_loss(
    network: nn.Module, teachers: TeacherEnsemble, batch: Batch, *, num_members: int, temperature: float = 4.0
) -> Tensor:
    """Returns the loss of one step of LatentBE + TDiv-SDiv.

    Args:
        network: takes member-major rows (M * N, C, H, W), in activation form.
    """
    images = _perturbed(network, teachers, batch, num_members)
    with torch.no_grad():
        teacher_logits = wide(teachers(images))
    return latent_be_loss(_member_logits(network, images, num_members), teacher_logits, temperature=temperature)


def _perturbed(network: nn.Module, teachers: TeacherEnsemble, batch: Batch, num_members: int) -> Tensor:
    i, j = draw_pair(len(teachers), batch.generator)
    network.eval()
    x = batch.images.detach().requires_grad_()
    diversity = _disagreement(wide(teachers(x)), i, j) - _disagreement(_member_logits(network, x, num_members), i, j)
    (direction,) = torch.autograd.grad(diversity.sum(), x)
    network.train()
    return move(batch.images, direction, grey_levels=1.0)


def _disagreement(logits: Tensor, i: int, j: int) -> Tensor:
    """Returns H(sg p_j, p_i) of each image (N,), for logits (M, N, K)."""
    probs = F.softmax(logits, dim=-1)
    return cross_entropy_between(probs[j].detach(), logits[i])


def _member_logits(network: nn.Module, images: Tensor, num_members: int) -> Tensor:
    logits: Tensor = network(images.repeat(num_members, 1, 1, 1))
    return wide(logits).view(num_members, len(images), -1)
