"""Intervals over a few runs and many images: against Student's t, and by how often they hold on simulated data."""

import math

import numpy as np
import pytest
import scipy.stats

from edc.metrics.intervals import Draws, Interval, mean_interval, mean_over_both, ratio_over_both


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


@pytest.mark.parametrize("num_runs", [2, 3, 10])
def test_interval_of_paired_differences_is_that_of_the_paired_t_test(num_runs):
    generator = np.random.default_rng(num_runs)
    a, b = generator.normal(size=(2, num_runs))
    expected = scipy.stats.ttest_rel(a, b)
    found = mean_interval(a - b)
    assert found.value == pytest.approx(float(np.mean(a - b)))
    assert bounds(found) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)
    assert found.excludes(0.0) == (expected.pvalue < 0.05)


def test_one_run_has_no_interval_over_runs():
    assert mean_interval(np.array([0.3])) == Interval(0.3)
    assert mean_over_both(np.array([0.3]), Draws(1, 0, seed=0)) == Interval(0.3)
    assert not Interval(0.3).excludes(0.0)


@pytest.mark.parametrize("num_runs", [2, 3, 5])
def test_resampled_runs_alone_have_the_interval_of_students_t(num_runs):
    """As wide to a few per cent: the quantiles of 20,000 draws of t with one degree of freedom are known no better."""
    values = np.random.default_rng(1).normal(size=num_runs)
    low, high = bounds(mean_over_both(values, Draws(num_runs, 0, seed=0, num_resamples=20_000)))
    wanted_low, wanted_high = bounds(mean_interval(values))
    assert high - low == pytest.approx(wanted_high - wanted_low, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.05 * (high - low))


def test_resampled_images_alone_have_the_interval_of_the_normal_distribution():
    """One run: a mean over 2,000 images, whose standard error is known."""
    cells = np.random.default_rng(2).binomial(1, 0.3, (1, 2000)).astype(float)
    low, high = bounds(mean_over_both(cells, Draws(1, 2000, seed=0)))
    assert high - low == pytest.approx(2 * 1.96 * cells.std() / math.sqrt(2000), rel=0.06)


SCENARIOS = {
    "runs differ": (0.06, 0.01, 0.01),
    "images differ": (0.0, 1.0, 0.01),
    "only single cells differ": (0.0, 0.0, 1.0),
    "all": (0.05, 0.9, 0.5),
}


def cells(generator: np.random.Generator, num_runs: int, num_images: int, spread: tuple[float, ...]) -> np.ndarray:
    """Returns 1 + run + image + rest, normal with these standard deviations."""
    of_run, of_image, rest = spread
    return (
        1
        + generator.normal(0, of_run, (num_runs, 1))
        + generator.normal(0, of_image, (1, num_images))
        + generator.normal(0, rest, (num_runs, num_images))
    )


def held(*, num_runs: int, spread: tuple[float, ...], is_ratio: bool, num_images: int = 100) -> float:
    """Returns how often of 600 times the interval held the truth; the resamples are the same, the data is not."""
    generator = np.random.default_rng(0)
    draws, num_held = Draws(num_runs, num_images, seed=1, num_resamples=1000), 0
    for _ in range(600):
        above = cells(generator, num_runs, num_images, spread)
        gain = 2 + generator.normal(0, spread[1], (1, num_images)).repeat(num_runs, 0)
        found = ratio_over_both(above, gain, draws) if is_ratio else mean_over_both(above, draws)
        low, high = bounds(found)
        num_held += low <= (0.5 if is_ratio else 1.0) <= high
    return num_held / 600


@pytest.mark.parametrize("is_ratio", [False, True], ids=["mean", "share"])
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("num_runs", [3, 5])
def test_intervals_hold_as_often_as_they_say(num_runs, name, is_ratio):
    """95 % to three standard errors of 600 trials; a little more often where runs and images both matter, as two
    uncertain spreads are added up."""
    found = held(num_runs=num_runs, spread=SCENARIOS[name], is_ratio=is_ratio)
    assert 0.923 <= found <= (0.985 if name == "all" else 0.977)


def test_runs_drawn_with_replacement_would_be_too_narrow_and_the_rest_counted_twice_too_wide():
    """That the test above would notice both: the textbook's resampling of three runs, and no correction."""
    generator = np.random.default_rng(0)
    narrow, wide = 0, 0
    draws = Draws(3, 100, seed=1, num_resamples=1000)
    rows = generator.integers(3, size=(1000, 3))
    for _ in range(600):
        means = cells(generator, 3, 100, SCENARIOS["runs differ"]).mean(1)
        low, high = np.quantile(means[rows].mean(1), [0.025, 0.975])
        narrow += low <= 1 <= high
        of_rest = cells(generator, 3, 100, SCENARIOS["only single cells differ"])
        twice = of_rest.mean() + draws.deviations(of_rest[None], 1.0)[:, 0]
        low, high = np.quantile(twice, [0.025, 0.975])
        wide += low <= 1 <= high
    assert narrow / 600 < 0.85
    assert wide / 600 > 0.977


def test_share_with_one_set_of_teachers_is_a_mean_over_a_constant():
    kept = np.array([0.9, 1.1, 1.3])
    draws = Draws(3, 0, seed=0, num_resamples=20_000)
    share, mean = ratio_over_both(0.05 * kept, np.full(3, 0.05), draws), mean_over_both(kept, draws)
    assert share.value == pytest.approx(1.1)
    assert bounds(share) == pytest.approx(bounds(mean), rel=1e-9)


def test_share_is_of_the_means_so_that_a_run_with_a_small_gain_counts_little():
    found = ratio_over_both(np.array([0.05, 0.0]), np.array([0.05, 0.001]), Draws(2, 0, seed=0))
    assert found.value == pytest.approx(0.05 / 0.051)


def test_share_of_a_gain_that_may_be_none_has_no_interval_and_of_none_no_value():
    draws = Draws(3, 0, seed=0)
    assert ratio_over_both(np.array([0.1, 0.2, 0.3]), np.array([0.1, -0.05, 0.02]), draws).low is None
    assert math.isnan(ratio_over_both(np.array([0.1, 0.2, 0.3]), np.array([-0.1, 0.0, 0.02]), draws).value)


def test_the_same_seed_gives_the_same_interval():
    data = cells(np.random.default_rng(3), 3, 50, SCENARIOS["all"])
    one, same, other = (mean_over_both(data, Draws(3, 50, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other
