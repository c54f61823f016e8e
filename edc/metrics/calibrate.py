"""Temperatures, fitted on validation data: of a network's logits, and of each member's before they are averaged."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edc.metrics.ensemble import ensemble_log_probs, log_softmax

__all__ = ["fit_member_temperature", "fit_temperature", "selection_score"]

LOWEST, HIGHEST = np.log(1e-4), np.log(1e4)
"""Bounds of the search in log(t): logits that a stranger's network divides or multiplies by thousands are fitted."""
GRID = np.linspace(LOWEST, HIGHEST, 41)


def fit_temperature(log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the t that minimises the NLL of softmax(log_probs / t) for (N, K); 1 where there is none.

    Where every image is answered right, the NLL falls for ever as t goes to 0: images that are all right say nothing of
    how sure a network may be. It then keeps the probabilities that it has.
    Source: Guo et al. 2017 (arXiv 1706.04599). The NLL is convex in 1 / t, so a bounded search finds the minimum.
    """
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return float(-np.mean(log_softmax(log_probs / np.exp(log_t))[rows, labels]))

    return _lowest(nll, (LOWEST, HIGHEST), at_zero=_nll_of_votes(log_probs[None], labels))


def fit_member_temperature(member_log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the t that minimises the NLL of mean_m softmax(log_probs_m / t), for (M, N, K); 1 where there is none.

    There is none where the NLL is lowest for t -> 0, where members only vote: an image that gets no vote for its class
    would have no probability at all.
    Averaged probabilities are softer than their members', so one temperature after the mean calibrates an ensemble of
    overconfident members less well. The NLL need not be convex in t here, so a coarse search comes first.
    Sources: Rahaman and Thiery 2021 (arXiv 2007.08792), Wu and Gales 2021 (arXiv 2101.05397).
    """
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return float(-np.mean(ensemble_log_probs(member_log_probs, temperature=np.exp(log_t))[rows, labels]))

    best = int(np.argmin([nll(log_t) for log_t in GRID]))
    bounds = GRID[max(best - 1, 0)], GRID[min(best + 1, len(GRID) - 1)]
    return _lowest(nll, bounds, at_zero=_nll_of_votes(member_log_probs, labels))


def selection_score(acc: float, calibrated_nll: float) -> float:
    """Returns what networks are chosen by on the images that calibrated them; lower is better. NaN is the worst.

    The NLL in nats, except of a network that is right on all images. No temperature is fitted to it, so its NLL is that
    of the probabilities it has, and a network with a mistake, calibrated, could have a lower one. At the temperature
    that it lacks, its NLL would be as close to 0 as one likes: it gets a score below 0, by its own NLL among such ones.
    """
    if not math.isfinite(calibrated_nll):
        return math.inf
    return -1 / (1 + calibrated_nll) if acc == 1 else calibrated_nll


def _lowest(nll: Callable[[float], float], bounds: tuple[float, float], *, at_zero: float) -> float:
    """Returns the t within `bounds` of log(t) where `nll` is lowest; 1 if it is not lower than for t -> 0."""
    from scipy.optimize import minimize_scalar  # workers import `edc.metrics`, and do without it

    result = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return 1.0 if at_zero <= result.fun + 1e-9 else float(np.exp(result.x))


def _nll_of_votes(member_log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns the NLL for t -> 0, in which each member (M, N, K) has its first class alone, or equal first ones.

    Infinite as soon as no member is right on some image.
    """
    first = member_log_probs == member_log_probs.max(-1, keepdims=True)
    shares = (first / first.sum(-1, keepdims=True)).mean(0)[np.arange(len(labels)), labels]
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(shares)))
