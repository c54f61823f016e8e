"""One temperature, fitted on validation data."""

import numpy as np
from numpy.typing import NDArray

from edc.metrics.ensemble import log_softmax

__all__ = ["fit_temperature"]


def fit_temperature(log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the t in [0.05, 20] that minimises the NLL of softmax(log_probs / t).

    Source: Guo et al. 2017 (arXiv 1706.04599). The NLL is convex in 1 / t, so a bounded search finds the minimum.
    """
    from scipy.optimize import minimize_scalar  # workers import `edc.metrics`, and do without it

    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return float(-np.mean(log_softmax(log_probs / np.exp(log_t))[rows, labels]))

    result = minimize_scalar(nll, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(result.x))
