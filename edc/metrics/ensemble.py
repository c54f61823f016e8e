"""The mean of an ensemble's probabilities, in numpy.

The workers of a benchmark import this before they time anything, so it imports numpy alone.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ensemble_log_probs", "log_softmax"]

Dtype = TypeVar("Dtype", bound=np.floating[Any])


def log_softmax(logits: NDArray[Dtype]) -> NDArray[Dtype]:
    """Returns log-softmax over the last axis, in the type of the logits."""
    log_probs: NDArray[Dtype] = logits - logits.max(axis=-1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
    return log_probs


def ensemble_log_probs(
    members: Sequence[NDArray[Dtype]] | NDArray[Dtype], *, temperature: float = 1.0
) -> NDArray[Dtype]:
    """Returns the log of the mean of the members' probabilities, in the type of what it is given.

        output = log( 1/M sum_m softmax(logits_m / t) ) = logsumexp_m( log_softmax(logits_m / t) ) - log M

    Its time counts when an ensemble is run member by member, so it takes only a few calls.

    Args:
        temperature: t, which divides each member's logits.

    Shapes:
        members (M, N, K), logits or log-probabilities -> (N, K)
    """
    logits = np.stack(tuple(members))
    if temperature != 1:
        logits /= temperature
    log_probs = log_softmax(logits)
    result: NDArray[Dtype] = np.logaddexp.reduce(log_probs, axis=0) - math.log(len(members))
    return result
