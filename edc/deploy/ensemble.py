"""The mean of an ensemble's probabilities, in torch, and the network that computes it for its members."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["EnsembleNetwork", "ensemble_log_probs", "ensemble_network"]


def ensemble_log_probs(member_logits: Tensor) -> Tensor:
    """Returns the log of the mean of the members' probabilities, as `edc.metrics.ensemble_log_probs` does in numpy.

    softmax(output) is the ensemble's mean probability exactly, so the output can stand wherever a single network's
    logits do. The logarithms are never taken of a probability that has already rounded to zero.

    Shapes:
        member_logits (M, N, K) -> (N, K)
    """
    return torch.logsumexp(torch.log_softmax(member_logits, dim=-1), dim=0) - math.log(len(member_logits))


class EnsembleNetwork(nn.Module):
    """The members of an ensemble side by side on one input, their probabilities averaged by `ensemble_log_probs`.

    Shapes:
        images (N, C, H, W) -> (N, K)
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return ensemble_log_probs(torch.stack([member(images).float() for member in self.members]))


def ensemble_network(members: Sequence[nn.Module]) -> nn.Module:
    """Returns one network that computes the mean probability of `members`, as `EnsembleNetwork` describes."""
    if not members:
        raise ValueError("an ensemble needs at least one member")
    return EnsembleNetwork(members).eval()
