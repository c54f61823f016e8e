"""Intervals against their definitions, scipy, brute force, and how often they hold in simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from edc.benchmark.judge.statistics import (
    Estimate,
    compare_accuracy,
    decided,
    design_effect,
    has_saturated,
    holm,
    images_per_second,
    least_samples,
    median_ratio,
    quantile,
)
from edc.benchmark.workers.timing import RowSamples


def in_rounds(values, num_rounds=10):
    return RowSamples(dict(enumerate(np.array_split(np.asarray(values), num_rounds))))


def test_claims_need_as_many_samples_as_mlperf_says():
    assert [least_samples(q) for q in (0.5, 0.9, 0.99)] == [7, 44, 459]


@pytest.mark.parametrize(("q", "least"), [(0.5, 7), (0.9, 44), (0.99, 459)])
def test_no_quantile_under_its_least_number_of_samples(q, least):
    values = np.random.default_rng(0).permutation(least)
    assert quantile(in_rounds(values[:-1], 5), q) is None
    assert quantile(in_rounds(values, 5), q) is not None


def test_bounds_are_the_order_statistics_that_brute_force_over_the_binomial_finds():
    values = np.arange(1, 201)  # a sample's value is its rank
    found = quantile(RowSamples({0: np.random.default_rng(0).permutation(values)}), 0.9)
    below = stats.binom(200, 0.9)
    low = max(rank for rank in values if below.cdf(rank - 1) <= 0.01)  # P(X_(rank) > quantile) <= 1 %
    high = min(rank for rank in values if below.sf(rank - 1) <= 0.01)
    assert found == Estimate(np.quantile(values, 0.9), float(low), float(high))


def test_bounds_agree_with_scipys_quantile_test():
    values = np.random.default_rng(1).lognormal(size=100)
    found = quantile(RowSamples({0: values}), 0.5)
    interval = stats.quantile_test(values, q=0, p=0.5).confidence_interval(confidence_level=0.98)
    assert (found.low, found.high) == (interval.low, interval.high)


@pytest.mark.parametrize("q", [0.5, 0.9])
@pytest.mark.parametrize("round_spread", [0.0, 0.3])
def test_each_bound_of_a_quantile_holds_as_often_as_it_says(q, round_spread):
    """Samples in 30 rounds of 20, each round with its own speed: pretending that they are independent would fail."""
    rng = np.random.default_rng(0)
    truth = stats.norm.ppf(q, scale=np.hypot(1, round_spread))
    too_high = too_low = 0
    num_tries = 1000
    for _ in range(num_tries):
        values = rng.normal(size=(30, 20)) + round_spread * rng.normal(size=(30, 1))
        found = quantile(RowSamples(dict(enumerate(values))), q)
        too_high += found.low > truth
        too_low += found.high is not None and found.high < truth
    assert max(too_high, too_low) / num_tries < 0.025  # says 1 %; the design effect itself is estimated


def test_intervals_are_not_wider_than_independent_samples_need():
    def width(samples):
        found = quantile(samples, 0.5)
        return found.high - found.low

    values = np.random.default_rng(0).normal(size=(200, 600))
    assert np.mean([width(in_rounds(row, 30)) / width(RowSamples({0: row})) for row in values]) < 1.15


def test_design_effect_is_the_size_of_a_round_when_rounds_are_constant():
    rounds = RowSamples({r: np.full(25, float(r)) for r in range(40)})
    assert design_effect(rounds, 19.5, 0.5) == pytest.approx(25, rel=0.05)
    assert design_effect(RowSamples({0: np.arange(9.0)}), 4, 0.5) == 1


def test_a_bound_that_the_samples_cannot_give_is_none():
    """A hundred samples of three rounds that have nothing in common are worth three."""
    found = quantile(RowSamples({r: 100.0 * r + np.arange(33) for r in range(3)}), 0.5)
    assert found == Estimate(116, None, None)


def test_median_ratio_is_paired_by_round():
    """Rounds differ tenfold; the row is always twice as fast; only pairing sees that exactly."""
    speeds = 10 ** np.random.default_rng(0).random(20)
    baseline = RowSamples({r: 2000 * speed * np.ones(5) for r, speed in enumerate(speeds)})
    row = RowSamples({r: 1000 * speed * np.ones(5) for r, speed in enumerate(speeds)})
    assert median_ratio(baseline, row, seed=0) == Estimate(2, 2, 2)


def test_median_ratio_takes_only_rounds_that_both_have():
    baseline = RowSamples({r: np.array([100 * (r + 1)]) for r in range(8)})
    row = RowSamples({r: np.array([100]) for r in range(4, 12)})
    assert median_ratio(baseline, row, seed=0) == Estimate(6.5, None, None)
    assert median_ratio(baseline, RowSamples({9: np.array([1])}), seed=0) is None


def test_median_ratio_interval_is_a_bootstrap_over_rounds():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0.7, 0.1, (25, 9)), rng.lognormal(0.0, 0.1, (25, 9))
    found = median_ratio(RowSamples(dict(enumerate(a))), RowSamples(dict(enumerate(b))), seed=0)
    ratios = np.median(a, axis=1) / np.median(b, axis=1)
    drawn = [np.median(rng.choice(ratios, len(ratios))) for _ in range(20_000)]
    assert found.value == pytest.approx(np.median(ratios))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=5e-3)


def test_median_ratio_interval_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    num_held = 0
    num_tries = 500
    for _ in range(num_tries):
        machine = rng.lognormal(0, 0.2, (30, 1))  # what both rows of a round share
        a = 1.1 * machine * rng.lognormal(0, 0.05, (30, 15)) * rng.lognormal(0, 0.03, (30, 1))
        b = machine * rng.lognormal(0, 0.05, (30, 15)) * rng.lognormal(0, 0.03, (30, 1))
        found = median_ratio(RowSamples(dict(enumerate(a))), RowSamples(dict(enumerate(b))), seed=0, num_resamples=500)
        num_held += found.low <= 1.1 <= found.high
    assert 0.92 <= num_held / num_tries <= 0.99


def test_images_per_second_counts_every_sample():
    assert images_per_second(np.array([10**6, 10**6, 10**9]), batch=8) == pytest.approx(24 / 1.002)
    assert images_per_second(np.empty(0, np.int64), batch=8) is None


def test_sweep_stops_when_a_larger_batch_gains_too_little():
    assert not has_saturated([100])
    assert not has_saturated([100, 106])
    assert has_saturated([100, 104])
    assert has_saturated([100, 200, 150])


def masks(lost, gained, both_right, both_wrong):
    reference = np.repeat([True, False, True, False], [lost, gained, both_right, both_wrong])
    candidate = np.repeat([False, True, True, False], [lost, gained, both_right, both_wrong])
    return reference, candidate


def test_accuracy_difference_and_mcnemar_on_known_counts():
    found = compare_accuracy(*masks(30, 12, 900, 58), seed=0)
    assert found.difference.value == pytest.approx(-0.018)
    assert found.paired.p_value == pytest.approx(stats.binomtest(12, 42, 0.5).pvalue)
    assert found.difference.low < -0.018 < found.difference.high < 0


def test_accuracy_interval_is_scipys_paired_bootstrap_on_many_images():
    reference, candidate = masks(60, 50, 1800, 90)
    found = compare_accuracy(reference, candidate, seed=0)
    wanted = stats.bootstrap(
        (candidate.astype(float) - reference,), np.mean, method="percentile", n_resamples=20_000, rng=0, batch=1000
    ).confidence_interval
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(wanted), abs=5e-4)


@pytest.mark.parametrize(("lost", "gained"), [(0.004, 0.004), (0.03, 0.01), (0.1, 0.1)])
def test_accuracy_interval_holds_as_often_as_it_says(lost, gained):
    rng = np.random.default_rng(0)
    num_held = 0
    for counts in rng.multinomial(500, [lost, gained, 0.8, 0.2 - lost - gained], size=400):
        found = compare_accuracy(*masks(*counts), seed=0, num_resamples=1000)
        num_held += found.difference.low <= gained - lost <= found.difference.high
    assert num_held / 400 >= 0.93


def test_agreement_on_a_small_test_set_proves_little():
    found = compare_accuracy(*masks(0, 0, 95, 5), seed=0)
    assert found.difference.value == 0
    assert found.difference.low < 0 < found.difference.high
    assert found.verdict == "undecided"
    assert compare_accuracy(*masks(0, 0, 9500, 500), seed=0).verdict == "not worse"


@pytest.mark.parametrize("counts", [(30, 12, 1900, 58), (12, 2, 1986, 0), (20, 1, 1979, 0), (8, 8, 1984, 0)])
def test_p_against_the_margin_is_small_when_the_interval_leaves_the_margin_out(counts):
    """The interval's own definition: p is under 5 % where the margin is outside the 95 % interval, and only there."""
    found = compare_accuracy(*masks(*counts), seed=0)
    outside = not found.difference.low <= -found.margin <= found.difference.high
    assert (found.p_margin < 0.05) == outside == (found.verdict != "undecided")


@pytest.mark.parametrize(
    ("p", "difference", "verdict"),
    [(0.01, -0.004, "not worse"), (0.06, -0.004, "undecided"), (0.01, -0.006, "worse"), (0.01, 0.01, "not worse")],
)
def test_verdict_takes_a_side_of_the_margin_only_when_the_test_does(p, difference, verdict):
    assert decided(p, difference, margin=0.005) == verdict


def test_holm_rejects_what_the_step_down_procedure_rejects():
    """The procedure itself, for every level: go up the sorted p-values while p <= level / (hypotheses left)."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 5):
        p_values = (rng.random(size) ** 2).tolist()
        corrected = holm(p_values)
        for level in np.linspace(0.001, 0.999, 200):
            rejected = set()
            for rank, index in enumerate(np.argsort(p_values)):
                if p_values[index] > level / (size - rank):
                    break
                rejected.add(int(index))
            assert {i for i, p in enumerate(corrected) if p <= level} == rejected


def test_holm_keeps_the_order_given_and_does_not_care_for_it():
    p_values = [0.01, 0.04, 0.03, 0.005]
    wanted = dict(zip(p_values, holm(p_values), strict=True))
    assert wanted == pytest.approx({0.005: 0.02, 0.01: 0.03, 0.03: 0.06, 0.04: 0.06})
    for order in itertools.permutations(p_values):
        assert holm(order) == tuple(wanted[p] for p in order)
    assert holm([]) == ()
