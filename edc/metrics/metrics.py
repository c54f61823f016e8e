"""How good predictions are: functions of log-probabilities (N, K) and labels (N,), in float64 numpy.

Everything takes log-probabilities, so that one network (log-softmax of its logits) and an ensemble (log of the *mean of
probabilities*, never of logits) are treated alike, temperature scaling included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edc.metrics.by_class import balanced_accuracy_and_f1
from edc.metrics.calibrate import fit_member_temperature, fit_temperature
from edc.metrics.ensemble import ensemble_log_probs, log_softmax
from edc.metrics.reliability import NUM_BINS, ece_of_bins, reliability_bins

__all__ = [
    "Metrics",
    "Quality",
    "accuracy",
    "brier",
    "calibrated_log_probs",
    "dee",
    "diversity",
    "ece",
    "evaluate",
    "fit_temperatures",
    "log_probs_from_logits",
    "nll",
]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """Accuracy, negative log-likelihood (nats), expected calibration error, Brier score; and means over classes."""

    acc: float
    nll: float
    ece: float
    brier: float
    balanced_acc: float
    """Mean recall over the classes that have images."""
    macro_f1: float


@dataclass(frozen=True)
class Metrics:
    """Quality as it is and calibrated on validation images; `dee` is filled in against the ensemble.

    Calibrated: each member's logits are divided by `member_temperature`, and the logarithm of the mean of their
    probabilities by `calibration_temperature`. The first is 1 where a network has one member, and where it does not
    help.
    """

    raw: Quality
    calibrated: Quality
    calibration_temperature: float
    member_temperature: float
    validation_acc: float
    validation_nll: float
    dee: float | None = None
    diversity: float | None = None


def log_probs_from_logits(logits: NDArray[np.floating[Any]]) -> Array:
    """Returns log-softmax over the last axis, in float64."""
    return log_softmax(np.asarray(logits, np.float64))


def accuracy(log_probs: Array, labels: Labels) -> float:
    """Returns the share of images whose most probable class is the label."""
    return float(np.mean(log_probs.argmax(1) == labels))


def nll(log_probs: Array, labels: Labels) -> float:
    """Returns the mean of -log p(label), in nats."""
    return float(-np.mean(log_probs[np.arange(len(labels)), labels]))


def brier(log_probs: Array, labels: Labels) -> float:
    """Returns the mean squared distance between probabilities and the one-hot label (sum over classes, 0 to 2)."""
    probs = np.exp(log_probs)
    return float(np.mean((probs**2).sum(1) - 2 * probs[np.arange(len(labels)), labels] + 1))


def ece(log_probs: Array, labels: Labels, *, num_bins: int = NUM_BINS) -> float:
    """Returns the expected calibration error over `reliability_bins`; NaN without images."""
    found = ece_of_bins(reliability_bins(log_probs, labels, num_bins=num_bins))
    return math.nan if found is None else found


def diversity(member_log_probs: Array) -> float:
    """Returns the mean over ordered pairs of members and over images of KL(p_m || p_m'), in nats: (M, N, K)."""
    num_members = len(member_log_probs)
    if num_members < 2:
        return 0.0
    probs = np.exp(member_log_probs)
    total = sum(
        float((probs[a] * (member_log_probs[a] - member_log_probs[b])).sum(-1).mean())
        for a in range(num_members)
        for b in range(num_members)
        if a != b
    )
    return total / (num_members * (num_members - 1))


def quality(log_probs: Array, labels: Labels) -> Quality:
    """Returns the measures of one set of predictions."""
    balanced_acc, macro_f1 = balanced_accuracy_and_f1(log_probs.argmax(1), labels)
    return Quality(
        acc=accuracy(log_probs, labels),
        nll=nll(log_probs, labels),
        ece=ece(log_probs, labels),
        brier=brier(log_probs, labels),
        balanced_acc=balanced_acc,
        macro_f1=macro_f1,
    )


def evaluate(log_probs: Array, labels: Labels, *, validation_log_probs: Array, validation_labels: Labels) -> Metrics:
    """Returns test quality raw, and with the temperatures of `fit_temperatures`.

    Of several members the mean of their probabilities counts.

    Shapes: log-probabilities (N, K), or (M, N, K) of M members.
    """
    members, validation_members = (x[None] if x.ndim == 2 else x for x in (log_probs, validation_log_probs))
    validation_mean = ensemble_log_probs(validation_members)
    before, after = fit_temperatures(validation_members, validation_labels)
    return Metrics(
        raw=quality(ensemble_log_probs(members), labels),
        calibrated=quality(calibrated_log_probs(members, after, member_temperature=before), labels),
        calibration_temperature=after,
        member_temperature=before,
        validation_acc=accuracy(validation_mean, validation_labels),
        validation_nll=nll(validation_mean, validation_labels),
    )


def fit_temperatures(members: Array, labels: Labels) -> tuple[float, float]:
    """Returns the temperatures before and after the mean that calibrate members (M, N, K) best on these images.

    Two ways are tried: one temperature after the mean, and one before it (then another after it, which is near 1). The
    way with the lower NLL is taken, the first one if they are equal.
    """
    after = fit_temperature(ensemble_log_probs(members), labels)
    if len(members) == 1:
        return 1.0, after
    before = fit_member_temperature(members, labels)
    rest = fit_temperature(ensemble_log_probs(members, temperature=before), labels)
    ways = [(1.0, after), (before, rest)]
    return min(ways, key=lambda way: nll(calibrated_log_probs(members, way[1], member_temperature=way[0]), labels))


def calibrated_log_probs(members: Array, temperature: float, *, member_temperature: float = 1.0) -> Array:
    """Returns the log of the mean probabilities (N, K) of members (M, N, K), calibrated as `Metrics` describes."""
    return log_probs_from_logits(ensemble_log_probs(members, temperature=member_temperature) / temperature)


def ensemble_nll_by_size(
    teacher_log_probs: Array, labels: Labels, *, validation_log_probs: Array, validation_labels: Labels
) -> list[float]:
    """Returns the calibrated NLL of an m-teacher ensemble for m = 1..M, averaged over all subsets of that size.

    Each is calibrated as `evaluate` does. With many teachers it is some of the subsets, see `subsets_of`.
    Shapes: teacher log-probabilities (M, N, K).
    """
    by_size = []
    num_teachers = len(teacher_log_probs)
    for m in range(1, num_teachers + 1):
        values = []
        for subset in subsets_of(num_teachers, m):
            before, after = fit_temperatures(validation_log_probs[subset], validation_labels)
            calibrated = calibrated_log_probs(teacher_log_probs[subset], after, member_temperature=before)
            values.append(nll(calibrated, labels))
        by_size.append(float(np.mean(values)))
    return by_size


def subsets_of(num_teachers: int, size: int, *, most: int = 20) -> list[list[int]]:
    """Returns all subsets of a size, or if these are more than `most`, about so many in which each teacher is as often.

    They are drawn by a fixed seed: neighbours on a circle of the teachers, in several random orders. The first ones in
    the order of `combinations` would nearly all have the first teachers.
    """
    if math.comb(num_teachers, size) <= most:
        return [list(subset) for subset in combinations(range(num_teachers), size)]
    random = np.random.default_rng(0)
    orders = [random.permutation(num_teachers) for _ in range(-(-most // num_teachers))]
    return [np.roll(order, -first)[:size].tolist() for order in orders for first in range(num_teachers)]


def dee(calibrated_nll: float, ensemble_nlls: Sequence[float]) -> float:
    """Returns the deep-ensemble equivalent: the smallest real m whose m-teacher ensemble has this calibrated NLL.

    `ensemble_nlls` holds the calibrated NLL for m = 1..M. Linear in between; 0.0 means worse than one teacher, infinity
    better than all M (the true value is not observable beyond these ends).
    Source: Ashukha et al., ICLR 2020 (arXiv 2002.06470).
    """
    if calibrated_nll > ensemble_nlls[0]:
        return 0.0
    for m in range(1, len(ensemble_nlls)):
        above, below = ensemble_nlls[m - 1], ensemble_nlls[m]
        if below <= calibrated_nll <= above:
            return m + (above - calibrated_nll) / (above - below) if above > below else float(m)
    better = calibrated_nll < ensemble_nlls[-1] - 1e-6  # the ensemble itself, computed in float32, is not better
    return float("inf") if better else float(len(ensemble_nlls))
