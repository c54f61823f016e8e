"""Confidence intervals of means, and of ratios of means, over a few runs and many test images. numpy and scipy.

Two things are random: the runs (seeds) and the test images. All runs and all networks are measured on the same images,
so the figure of a cell (run r, image i) is

    z_ri = mean + run_r + image_i + rest_ri          Var(mean of z) = V_run / R + V_image / N + V_rest / (R N)

The variance between the means of the runs, over R, estimates the first plus the third term. The variance between the
images, over N, estimates the second plus the third. `_without_rest` subtracts the third term once.

`Draws` resamples both at once. Images are drawn with replacement, the same ones for all runs and networks. Runs are
few, so intervals from R runs drawn with replacement would be far too narrow (with 3 runs, 95 % intervals hold in about
75 %). Instead, the runs' deviations are multiplied by normal draws and by a chi draw of R - 1 degrees of freedom. So a
mean over runs alone gets the interval of Student's t.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "Draws", "Interval", "mean_interval", "mean_over_both", "ratio_over_both"]

Array = NDArray[np.float64]

CONFIDENCE, NUM_RESAMPLES = 0.95, 2000
AT_ONCE = 200
"""Resamples of the images that are multiplied at once."""

LEAST_POSITIVE = 0.999
"""Share of the resampled denominators that must be over 0 for a ratio to have an interval."""


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its 95 % interval; None: not known."""

    value: float
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        """Returns whether `value` lies outside; False if the bounds are not known."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def mean_interval(values: Array, *, confidence: float = CONFIDENCE) -> Interval:
    """Returns the mean of independent values with the interval of Student's t; one value has no interval."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


class Draws:
    """The same resamples of runs and images for all figures of one table. Shapes below: B resamples.

    Args:
        num_images: 0 if figures per image are not known; the intervals are then over runs alone.
    """

    def __init__(self, num_runs: int, num_images: int, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> None:
        generator = np.random.default_rng(seed)
        self.num_runs, self.num_images = num_runs, num_images
        # (B, R): weights of the runs' deviations from their mean.
        degrees = max(num_runs - 1, 1)
        normal = generator.standard_normal((num_resamples, num_runs))
        heavy_tails = np.sqrt(degrees / generator.chisquare(degrees, num_resamples))
        self.of_runs = normal * heavy_tails[:, None] / np.sqrt(num_runs * degrees)
        # (B, N): how many times an image was drawn; one byte each if floats would take more than 200 MB.
        is_small = num_resamples * num_images <= 50_000_000
        self.of_images = np.zeros((num_resamples, num_images), np.float32 if is_small else np.uint8)
        for b in range(num_resamples if num_images else 0):
            self.of_images[b] = np.bincount(generator.integers(num_images, size=num_images), minlength=num_images)

    def deviations(self, figures: Array, without_rest: float) -> Array:
        """Returns each mean's deviation from the mean of all, per resample: (B, C) for figures (C, R, N) or (C, R).

        Args:
            without_rest: the factor of the images' deviations.
        """
        by_run = figures.mean(-1) if figures.ndim == 3 else figures
        deviations: Array = self.of_runs @ (by_run - by_run.mean(1, keepdims=True)).T
        if figures.ndim == 3:
            by_image = figures.mean(1)
            centred = (by_image - by_image.mean(1, keepdims=True)).T / self.num_images
            for start in range(0, len(self.of_images), AT_ONCE):
                some = slice(start, start + AT_ONCE)
                counts = self.of_images[some].astype(np.float32, copy=False)
                deviations[some] += without_rest * (counts @ centred.astype(np.float32))
        return deviations


def mean_over_both(figures: Array, draws: Draws, *, confidence: float = CONFIDENCE) -> Interval:
    """Returns the mean of figures (R, N) or (R,) with its interval over the runs and the images of `draws`."""
    return ratio_over_both(figures, np.ones_like(figures), draws, confidence=confidence)


def ratio_over_both(above: Array, below: Array, draws: Draws, *, confidence: float = CONFIDENCE) -> Interval:
    """Returns mean(above) / mean(below) with its interval; both are (R, N), or (R,) if images are not known.

    The bounds are quantiles over the resamples of both means. There are none if the resampled mean(below) is not almost
    always over 0 (the ratio could be anything), nor for one run without images. NaN if mean(below) is not over 0.
    """
    means = np.array([above.mean(), below.mean()])
    if means[1] <= 0:
        return Interval(float("nan"))
    value = float(means[0] / means[1])
    if above.ndim == 1 and draws.num_runs < 2:
        return Interval(value)
    without_rest = _without_rest(above - value * below) if above.ndim == 2 else 0.0
    drawn = means + draws.deviations(np.stack([above, below]), without_rest)
    is_positive = drawn[:, 1] > 0
    if is_positive.mean() < LEAST_POSITIVE:
        return Interval(value)
    ratios = drawn[is_positive, 0] / drawn[is_positive, 1]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _without_rest(cells: Array) -> float:
    """Returns the factor of the images' deviations with which the rest of the cells (R, N) counts once.

    The mean squares estimate R V_image + V_rest (images) and V_rest (rest): two-way analysis of variance.
    """
    num_runs, num_images = cells.shape
    if num_runs < 2 or num_images < 2:
        return 1.0  # only images are resampled, so the rest of a cell is part of their term
    by_image = cells.mean(0)
    between = num_runs * float(np.var(by_image, ddof=1))
    rest = cells - cells.mean(1, keepdims=True) - by_image + cells.mean()
    of_rest = float((rest**2).sum()) / ((num_runs - 1) * (num_images - 1))
    return float(np.sqrt(max(0.0, 1 - of_rest / between))) if between > 0 else 1.0
