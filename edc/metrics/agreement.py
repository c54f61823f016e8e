"""How alike predictions are, without labels: functions of log-probabilities, in float64 numpy."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["agreement", "disagreement", "mean_kl", "mean_pairwise_kl"]

Array = NDArray[np.float64]


def agreement(log_p: Array, log_q: Array) -> float:
    """Returns the share of images with the same most probable class. Shapes: both (N, K)."""
    return float(np.mean(log_p.argmax(-1) == log_q.argmax(-1)))


def disagreement(members: Array) -> float:
    """Returns the share of images on which not all members (M, N, K) have the same most probable class."""
    classes = members.argmax(-1)
    return float(np.mean((classes != classes[0]).any(0)))


def mean_kl(log_p: Array, log_q: Array) -> float:
    """Returns the mean over images of KL(p || q), in nats. Shapes: both (N, K). A class of p = 0 counts nothing."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # 0 * -inf, which is left out
        return float(np.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).mean())


def mean_pairwise_kl(members: Array) -> float:
    """Returns the mean over ordered pairs of members (M, N, K) and over images of KL(p_m || p_m'), in nats."""
    numbers = range(len(members))
    return float(np.mean([mean_kl(members[a], members[b]) for a in numbers for b in numbers if a != b]))
