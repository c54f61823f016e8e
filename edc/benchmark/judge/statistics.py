"""Estimates from samples and predictions, with intervals: quantiles, ratios, accuracy differences, verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, bootstrap, norm

from edc.benchmark.workers.timing import RowSamples, Samples
from edc.deploy.onnx.parity import PairedAccuracy, paired_accuracy_drop

__all__ = [
    "MARGIN",
    "MEDIAN_SPREAD",
    "RATIO_SPREAD",
    "AccuracyComparison",
    "Estimate",
    "Verdict",
    "compare_accuracy",
    "decided",
    "design_effect",
    "has_saturated",
    "holm",
    "images_per_second",
    "least_samples",
    "median_ratio",
    "quantile",
]

Verdict = Literal["not worse", "worse", "undecided"]
Correct = NDArray[np.bool_]

NUM_RESAMPLES = 10_000
MARGIN = 0.005
"""Accuracy that a deployed network may lose without being called worse, as a share."""


MEDIAN_SPREAD = 0.025
RATIO_SPREAD = 0.015
"""Standard deviations, as shares, of a row's median and of a ratio of two medians over repeated benches, beyond the
spread of one bench's samples. Causes: where arrays are in memory, the machine's clock, and its neighbours. From
benchmarks/bench_repeat.py; results/bench_checks.md has what it found, then and on benches of its own."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; a bound is None where the samples cannot give one."""

    value: float
    low: float | None
    high: float | None

    def widened(self, spread: float, *, confidence: float, factor: float = 1.0) -> "Estimate":
        """Returns the estimate with an interval that also holds for the bench done again.

        Args:
            spread: further standard deviation of the figure's logarithm.
            confidence: with which each bound holds, so that both parts are of one kind.
            factor: by which the figure may be wrong, either way.
        """
        further = math.hypot(float(norm.ppf(confidence)) * spread, math.log(factor))
        low, high = (
            None
            if bound is None or bound <= 0
            else self.value * math.exp(sign * math.hypot(math.log(bound / self.value), further))
            for bound, sign in ((self.low, -1), (self.high, 1))
        )
        return Estimate(self.value, low, high)


def least_samples(q: float, *, confidence: float = 0.99) -> int:
    """Returns how many samples are needed for the largest (or least) to bound quantile q: 7, 44, 459 for p50, p90, p99.

    All n samples are below the quantile with probability q^n, which must not exceed 1 - confidence.
    """
    return math.ceil(math.log(1 - confidence) / math.log(max(q, 1 - q)))


def quantile(samples: RowSamples, q: float, *, confidence: float = 0.99) -> Estimate | None:
    """Returns quantile q of all samples between two order statistics, or None if there are too few for it.

    The number of samples below the true quantile is binomial, so order statistics l and u bound it, each with
    `confidence`. Samples of one round resemble each other, so the ranks are those of n / `design_effect` independent
    ones; where even the largest sample is no bound then, `high` is None.
    """
    values = np.sort(samples.all)
    if len(values) < least_samples(q, confidence=confidence):
        return None
    value = float(np.quantile(values, q))
    num_effective = max(1, int(len(values) / design_effect(samples, value, q)))
    low = int(binom.ppf(1 - confidence, num_effective, q))  # ranks from 1, of the effective samples
    high = int(binom.ppf(confidence, num_effective, q)) + 1
    scale = len(values) / num_effective
    return Estimate(
        value,
        low=float(values[max(0, math.floor(low * scale) - 1)]) if low >= 1 else None,
        high=float(values[min(len(values), math.ceil(high * scale)) - 1]) if high <= num_effective else None,
    )


def design_effect(samples: RowSamples, value: float, q: float) -> float:
    """Returns how many samples are worth one independent one: the variance of the rounds' shares below the quantile
    `value`, over what it would be if rounds did not matter; at least 1.

    Source: Kish 1965, Survey Sampling; Woodruff 1952 for the quantile.
    """
    shares = np.array([np.mean(round_samples <= value) for round_samples in samples.rounds.values()])
    sizes = np.array([len(round_samples) for round_samples in samples.rounds.values()])
    if len(shares) < 3:
        return 1.0
    of_all = np.average(shares, weights=sizes)
    # The variance of the overall share, estimated from rounds as the units that were really drawn.
    by_rounds = len(sizes) / (len(sizes) - 1) * ((sizes * (shares - of_all)) ** 2).sum() / sizes.sum() ** 2
    independent = q * (1 - q) / sizes.sum()
    return max(1.0, float(by_rounds / independent))


def median_ratio(
    baseline: RowSamples, row: RowSamples, *, seed: int, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES
) -> Estimate | None:
    """Returns how many times as fast as `baseline` the row is: the median over rounds of the ratio of their medians.

    The interval is a percentile bootstrap over the rounds that both took part in, so that what slowed down both rows
    of a round cancels. None without such a round; no interval under 5.
    """
    of_baseline, of_row = baseline.medians, row.medians
    common = [number for number in of_baseline if of_row.get(number, 0.0) > 0]
    if not common:
        return None
    ratios = np.array([of_baseline[number] / of_row[number] for number in common])
    value = float(np.median(ratios))
    if len(ratios) < 5:
        return Estimate(value, None, None)
    low, high = bootstrap(
        (ratios,),
        np.median,
        confidence_level=confidence,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(low), float(high))


def images_per_second(samples: Samples, *, batch: int) -> float | None:
    """Returns images over the time they took, outliers included; None without samples."""
    seconds = float(samples.sum()) / 1e9
    return batch * len(samples) / seconds if seconds > 0 else None


def has_saturated(throughputs: Sequence[float], *, least_gain: float = 0.05) -> bool:
    """Returns whether a sweep over growing batches can stop: the last batch gained less than `least_gain`."""
    return len(throughputs) >= 2 and throughputs[-1] < (1 + least_gain) * max(throughputs[:-1])


@dataclass(frozen=True)
class AccuracyComparison:
    """A candidate against a reference on the same images. `difference` is candidate - reference, as a share."""

    paired: PairedAccuracy
    """With McNemar's exact p that there is no difference."""
    difference: Estimate
    margin: float
    p_margin: float
    """Two-sided bootstrap p that the candidate loses exactly `margin`: what being worse, or not, is decided by."""
    verdict: Verdict
    p_corrected: float | None = None
    """`paired.p_value` after Holm's correction over all accuracy tests of the bench."""
    p_margin_corrected: float | None = None
    """`p_margin` after the same; where there is one, `verdict` follows it."""


def compare_accuracy(
    reference_correct: Correct,
    candidate_correct: Correct,
    *,
    seed: int,
    margin: float = MARGIN,
    confidence: float = 0.95,
    num_resamples: int = 2 * NUM_RESAMPLES,
) -> AccuracyComparison:
    """Returns how much more or less often the candidate is right, and whether that is worse by more than `margin`.

    The interval is a bootstrap over images, drawn as the counts of (lost, gained, same). Half an image is added to
    lost and to gained, as Agresti and Min 2005 do: without it, two classifiers that happen to agree on a small test
    set would get an interval of length zero.

    Shapes:
        reference_correct, candidate_correct (N,)
    """
    paired = paired_accuracy_drop(reference_correct, candidate_correct)
    num_images = paired.num_images
    lost, gained = ((count + 0.5) / (num_images + 1) for count in (paired.num_lost, paired.num_gained))
    same = max(0.0, 1 - lost - gained)
    drawn = np.random.default_rng(seed).multinomial(num_images, [lost, gained, same], size=num_resamples)
    differences = (drawn[:, 1] - drawn[:, 0]) / num_images
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    difference = Estimate((paired.num_gained - paired.num_lost) / num_images, float(low), float(high))
    # One is added above and below (Davison and Hinkley 1997): resamples cannot show that something never happens.
    tail = min(int((differences <= -margin).sum()), int((differences >= -margin).sum()))
    p_margin = min(1.0, 2 * (tail + 1) / (num_resamples + 1))
    verdict = decided(p_margin, difference.value, margin=margin, confidence=confidence)
    return AccuracyComparison(paired, difference, margin, p_margin, verdict)


def decided(p_margin: float, difference: float, *, margin: float, confidence: float = 0.95) -> Verdict:
    """Returns what a test of "the difference is -margin" says about candidate - reference, as shares."""
    if p_margin > 1 - confidence:
        return "undecided"
    return "not worse" if difference > -margin else "worse"


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Returns the p-values corrected for there being many, in the order given.

    Source: Holm 1979. The k-th smallest of n is multiplied by n - k + 1, and is at least as large as the one before it.
    """
    order = np.argsort(p_values)
    rising = np.maximum.accumulate(np.sort(p_values) * np.arange(len(p_values), 0, -1))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(rising, 1)
    return tuple(corrected.tolist())
