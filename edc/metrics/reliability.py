"""How often a network is right, by its confidence: the bins that ECE adds up."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_BINS", "ReliabilityBin", "ece_of_bins", "reliability_bins"]

NUM_BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose top-1 confidence is in (low, high]: their mean confidence, and how many are right."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability_bins(
    log_probs: NDArray[np.float64], labels: NDArray[np.int64], *, num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Returns equal bins, (low, high], of the top-1 confidence.

    Shapes:
        log_probs (N, K), labels (N,)
    """
    confidence, right = np.exp(log_probs.max(1)), log_probs.argmax(1) == labels
    # ceil puts a confidence on a bin's upper edge into that bin; 1.0 (or a rounding above) is in the last one.
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    found = []
    for number in range(num_bins):
        inside = bins == number
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (None, None)
        found.append(ReliabilityBin(number / num_bins, (number + 1) / num_bins, count, *means))
    return tuple(found)


def ece_of_bins(bins: Iterable[ReliabilityBin]) -> float | None:
    """Returns the mean over images of |accuracy - confidence| of their bin; None without images."""
    total, gap = 0, 0.0
    for each in bins:
        total += each.count
        if each.confidence is not None and each.accuracy is not None:
            gap += each.count * abs(each.accuracy - each.confidence)
    return gap / total if total else None
