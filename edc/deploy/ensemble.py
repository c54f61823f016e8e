"""The mean of an ensemble's probabilities, in torch, and the network that computes it for its members."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["EnsembleNetwork", "ensemble_log_probs", "ensemble_network"]


def ensemble_log_probs(member_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Returns the log of the mean of the members' probabilities, as `edc.metrics.ensemble_log_probs` does in numpy.

    softmax(output) is the ensemble's mean probability exactly, so the output can stand wherever a single network's
    logits do. The logarithms are never taken of a probability that has already rounded to zero.

    Args:
        temperature: divides each member's logits.

    Shapes:
        member_logits (M, N, K) -> (N, K)
    """
    if temperature != 1:
        member_logits = member_logits / temperature
    return torch.logsumexp(torch.log_softmax(member_logits, dim=-1), dim=0) - math.log(len(member_logits))


class EnsembleNetwork(nn.Module):
    """The members of an ensemble side by side on one input, their probabilities averaged by `ensemble_log_probs`.

    Shapes:
        images (N, C, H, W) -> (N, K)
    """

    def __init__(self, members: Sequence[nn.Module], *, temperature: float = 1.0) -> None:
        super().__init__()
        self.members, self.temperature = nn.ModuleList(members), temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([member(images).float() for member in self.members])
        return ensemble_log_probs(logits, temperature=self.temperature)


def ensemble_network(members: Sequence[nn.Module], *, temperature: float = 1.0) -> nn.Module:
    """Returns one network that computes the mean probability of `members`, as `EnsembleNetwork` describes."""
    if not members:
        raise ValueError("an ensemble needs at least one member")
    return EnsembleNetwork(members, temperature=temperature).eval()
