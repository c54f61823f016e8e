"""Temperatures, fitted on validation data: of a network's logits, and of each member's before they are averaged."""

import numpy as np
from numpy.typing import NDArray

from edc.metrics.ensemble import ensemble_log_probs, log_softmax

__all__ = ["fit_member_temperature", "fit_temperature"]

LOWEST, HIGHEST = np.log(0.05), np.log(20.0)


def fit_temperature(log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the t in [0.05, 20] that minimises the NLL of softmax(log_probs / t).

    Source: Guo et al. 2017 (arXiv 1706.04599). The NLL is convex in 1 / t, so a bounded search finds the minimum.
    """
    from scipy.optimize import minimize_scalar  # workers import `edc.metrics`, and do without it

    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return float(-np.mean(log_softmax(log_probs / np.exp(log_t))[rows, labels]))

    result = minimize_scalar(nll, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(result.x))


def fit_member_temperature(member_log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the t in [0.05, 20] that minimises the NLL of mean_m softmax(log_probs_m / t), for (M, N, K).

    Averaged probabilities are softer than their members', so one temperature after the mean calibrates an ensemble of
    overconfident members less well. The NLL need not be convex in t here, so a coarse search comes first.
    Sources: Rahaman and Thiery 2021 (arXiv 2007.08792), Wu and Gales 2021 (arXiv 2101.05397).
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return float(-np.mean(ensemble_log_probs(member_log_probs, temperature=np.exp(log_t))[rows, labels]))

    grid = np.linspace(LOWEST, HIGHEST, 13)
    best = int(np.argmin([nll(log_t) for log_t in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    result = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return float(np.exp(result.x))
