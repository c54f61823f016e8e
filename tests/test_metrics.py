"""Metrics against hand-computed cases and independent implementations, in float64."""

import math

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss

from edc import metrics
from edc.metrics.calibrate import fit_temperature
from edc.metrics.metrics import subsets_of

LABELS = np.array([0, 1, 2, 2, 0, 1, 1, 0])


def some_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(shape)


def log_probs_of(probs: list[list[float]]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z)
    return e / e.sum(-1, keepdims=True)


def test_log_probs_are_those_of_the_softmax_even_for_large_logits():
    logits = np.array([[1000.0, 998.0, -1000.0]])
    expected = -math.log(1 + math.exp(-2))
    assert metrics.log_probs_from_logits(logits)[0] == pytest.approx(
        [expected, expected - 2, expected - 2000], abs=1e-12
    )


def test_float32_logits_are_taken_in_float64():
    logits = some_logits(50, 10).astype(np.float32)
    assert metrics.log_probs_from_logits(logits).dtype == np.float64
    expected = np.log(softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(metrics.log_probs_from_logits(logits), expected, rtol=0, atol=1e-12)


def test_accuracy_nll_and_brier_by_hand():
    log_probs = log_probs_of([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]])
    labels = np.array([0, 1, 2, 2])
    assert metrics.accuracy(log_probs, labels) == 0.5
    assert metrics.nll(log_probs, labels) == pytest.approx(-math.log(0.7 * 0.3 * 0.8 * 0.25) / 4, abs=1e-12)
    brier = (0.09 + 0.04 + 0.01) + (0.25 + 0.49 + 0.04) + (0.01 + 0.01 + 0.04) + (0.0625 + 0.25 + 0.5625)
    assert metrics.brier(log_probs, labels) == pytest.approx(brier / 4, abs=1e-12)


def test_nll_and_brier_equal_independent_implementations():
    probs = softmax(some_logits(8, 3))
    assert metrics.nll(np.log(probs), LABELS) == pytest.approx(log_loss(LABELS, probs), abs=1e-12)
    one_hot = np.eye(3)[LABELS]
    assert metrics.brier(np.log(probs), LABELS) == pytest.approx(np.mean(np.sum((probs - one_hot) ** 2, 1)), abs=1e-12)


def ece_by_loop(probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """The definition, bin by bin: (lo, hi], |mean confidence - accuracy| weighted by the bin's share."""
    confidence, correct, total = probs.max(1), probs.argmax(1) == labels, 0.0
    for b in range(num_bins):
        inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return float(total)


def test_ece_equals_the_loop_over_bins():
    probs = softmax(some_logits(500, 4, scale=3.0))
    labels = np.random.default_rng(1).integers(0, 4, 500)
    assert metrics.ece(np.log(probs), labels) == pytest.approx(ece_by_loop(probs, labels), abs=1e-12)
    assert metrics.ece(np.log(probs), labels, num_bins=7) == pytest.approx(ece_by_loop(probs, labels, 7), abs=1e-12)


def test_ece_by_hand():
    # 0.9 and 0.92 share bin (13/15, 14/15], one of them right; 0.6 is alone in (8/15, 9/15], right.
    log_probs = log_probs_of([[0.9, 0.1], [0.08, 0.92], [0.6, 0.4]])
    expected = 2 / 3 * abs(0.91 - 0.5) + 1 / 3 * abs(0.6 - 1)
    assert metrics.ece(log_probs, np.array([0, 0, 0])) == pytest.approx(expected, abs=1e-12)


def test_confidence_on_an_edge_belongs_to_the_lower_bin():
    # With 2 bins 0.5 is in (0, 0.5]: two bins of gaps 0.5 and 0.25. In one bin the gaps would cancel to |0.625 - 0.5|.
    log_probs = log_probs_of([[0.5, 0.5], [0.75, 0.25]])
    labels = np.array([0, 1])
    assert metrics.ece(log_probs, labels, num_bins=2) == pytest.approx((0.5 + 0.75) / 2, abs=1e-12)


def test_confidence_of_exactly_one_is_in_the_last_bin():
    # 0.95 and 1.0 share the last of 15 bins; torchmetrics' extra bin would give (0.05 + 1.0) / 2 instead.
    log_probs = log_probs_of([[0.95, 0.05], [1.0, 0.0]])
    assert metrics.ece(log_probs, np.array([0, 1])) == pytest.approx(abs((0.95 + 1.0) / 2 - 0.5), abs=1e-12)
    rounded_above = np.array([[1e-16, -40.0]])
    assert metrics.ece(rounded_above, np.array([0])) == pytest.approx(0.0, abs=1e-12)


def test_ensemble_is_the_mean_of_probabilities_and_not_of_logits():
    logits = some_logits(3, 8, 4)
    expected = np.log(softmax(logits).mean(0))
    found = metrics.ensemble_log_probs(metrics.log_probs_from_logits(logits))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(expected - np.log(softmax(logits.mean(0)))).max() > 0.01


def test_ensemble_of_certain_and_opposite_members_stays_finite():
    logits = np.array([[[2000.0, 0.0]], [[0.0, 2000.0]]])
    found = metrics.ensemble_log_probs(metrics.log_probs_from_logits(logits))
    assert found[0] == pytest.approx([math.log(0.5)] * 2, abs=1e-12)


def test_diversity_is_the_mean_pairwise_kl():
    probs = softmax(some_logits(3, 5, 4))
    total = 0.0
    for a in range(3):
        for b in range(3):
            for n in range(5):
                total += sum(probs[a, n, k] * math.log(probs[a, n, k] / probs[b, n, k]) for k in range(4))
    assert metrics.diversity(np.log(probs)) == pytest.approx(total / (6 * 5), abs=1e-12)
    assert metrics.diversity(np.log(probs[:1])) == 0.0


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 2.5])
def test_temperature_is_the_minimum_of_a_grid_search(true_temperature):
    rng = np.random.default_rng(0)
    honest = some_logits(400, 5)
    labels = np.array([rng.choice(5, p=p) for p in softmax(honest)])
    log_probs = np.log(softmax(honest * true_temperature))

    def nll_at(t: float) -> float:
        return metrics.nll(np.log(softmax(log_probs / t)), labels)

    found = fit_temperature(log_probs, labels)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4000))
    best = grid[np.argmin([nll_at(t) for t in grid])]
    assert found == pytest.approx(best, rel=3e-3)
    assert nll_at(found) <= min(nll_at(t) for t in grid) + 1e-9
    assert found == pytest.approx(true_temperature, rel=0.25)


@pytest.mark.parametrize("num_teachers", [2, 4, 6, 7, 8, 16, 30])
def test_ensembles_of_each_size_have_each_teacher_equally_often(num_teachers):
    """The first 20 of many combinations had teachers 0 and 1 in nearly all: the DEE depended on the teachers' order."""
    for size in range(1, num_teachers + 1):
        subsets = subsets_of(num_teachers, size)
        assert all(len(set(subset)) == size for subset in subsets)
        often = np.bincount(np.concatenate(subsets), minlength=num_teachers)
        assert set(often) == {len(subsets) * size / num_teachers}
        assert len(subsets) == math.comb(num_teachers, size) or 20 <= len(subsets) < 20 + num_teachers


def test_images_that_are_all_answered_right_give_no_temperature():
    log_probs = metrics.log_probs_from_logits(np.array([[5.0, 0.0], [0.0, 5.0]]))
    right = np.array([0, 1])
    assert fit_temperature(log_probs, right) == 1.0  # the NLL only falls towards 0
    assert fit_temperature(log_probs, 1 - right) > 1000  # and here towards infinity: both classes alike
    assert metrics.fit_temperatures(np.stack([log_probs] * 2), right) == (1.0, 1.0)


def test_a_network_that_is_right_on_all_images_is_never_behind_one_that_is_not():
    """It has no temperature, and a student of temperature 4 is unsure: one with a mistake, calibrated, won over it."""
    labels = np.arange(300) % 4
    logits = 3.0 * np.eye(4)[labels]
    mistaken = logits.copy()
    mistaken[0] = mistaken[1]

    def figures(logits: np.ndarray) -> tuple[float, float]:
        log_probs = metrics.log_probs_from_logits(logits)
        calibrated = metrics.calibrated_log_probs(log_probs[None], fit_temperature(log_probs, labels))
        return metrics.accuracy(log_probs, labels), metrics.nll(calibrated, labels)

    (perfect, nll), (wrong, lower) = figures(logits), figures(mistaken)
    assert (perfect, wrong) == (1.0, 299 / 300)
    assert lower < nll  # what the choice was made by
    scores = [metrics.selection_score(*figures(each)) for each in (1.1 * logits, logits, mistaken)]
    assert scores == sorted(scores)
    assert scores[2] == lower  # with a mistake, it is the calibrated NLL
    assert metrics.selection_score(0.5, float("nan")) == math.inf


def test_members_that_would_best_vote_keep_their_probabilities():
    """Each of three is wrong on one of three images, as surely as right: the NLL is lowest for t -> 0, at 2 of 3 votes.

    An image that got no vote for its class would have the probability 0 then.
    """
    labels = np.array([0, 0, 0])
    members = metrics.log_probs_from_logits(
        np.array([[[-1.0 if m == n else 1.0, 0.0] for n in range(3)] for m in range(3)])
    )
    assert metrics.fit_member_temperature(members, labels) == 1.0


@pytest.mark.parametrize("scale", [1e-3, 0.02, 1, 300])
def test_temperature_of_logits_of_any_scale_is_found(scale):
    """A search within [0.05, 20] took 0.05 for a network whose logits were 0.02 of honest ones, and said nothing."""
    honest, rng = some_logits(400, 5), np.random.default_rng(0)
    labels = np.array([rng.choice(5, p=p) for p in softmax(honest)])
    at_one = fit_temperature(metrics.log_probs_from_logits(honest), labels)
    scaled = metrics.log_probs_from_logits(scale * honest)
    assert fit_temperature(scaled, labels) == pytest.approx(scale * at_one, rel=1e-3)
    assert metrics.fit_member_temperature(np.stack([scaled, scaled]), labels) == pytest.approx(scale * at_one, rel=1e-3)


def test_evaluate_fits_on_validation_and_reports_test():
    test, validation = some_logits(8, 3, seed=1), some_logits(8, 3, seed=2)
    validation_labels = np.array([2, 2, 1, 0, 0, 1, 0, 2])
    found = metrics.evaluate(
        metrics.log_probs_from_logits(test),
        LABELS,
        validation_log_probs=metrics.log_probs_from_logits(validation),
        validation_labels=validation_labels,
    )
    t = fit_temperature(metrics.log_probs_from_logits(validation), validation_labels)
    assert found.calibration_temperature == t
    assert found.raw.nll == pytest.approx(log_loss(LABELS, softmax(test)), abs=1e-12)
    assert found.calibrated.nll == pytest.approx(log_loss(LABELS, softmax(test / t)), abs=1e-12)
    assert found.calibrated.ece == pytest.approx(ece_by_loop(softmax(test / t), LABELS), abs=1e-12)
    assert found.calibrated.acc == found.raw.acc == np.mean(test.argmax(1) == LABELS)
    assert found.validation_nll == pytest.approx(log_loss(validation_labels, softmax(validation)), abs=1e-12)
    assert found.validation_acc == np.mean(validation.argmax(1) == validation_labels)


def calibrated_nll(test: np.ndarray, validation: np.ndarray) -> float:
    """Returns the NLL of an ensemble (M, N, K) in the way of calibrating it that is better on `validation`."""
    befores = [1.0, metrics.fit_member_temperature(validation, LABELS)] if len(validation) > 1 else [1.0]
    ways = []
    for before in befores:
        means = [np.log(softmax(x / before).mean(0)) for x in (validation, test)]
        after = fit_temperature(means[0], LABELS)
        ways.append(tuple(log_loss(LABELS, softmax(mean / after)) for mean in means))
    return min(ways)[1]


def test_ensemble_nll_by_size_is_the_mean_over_all_subsets():
    test, validation = np.log(softmax(some_logits(3, 8, 3))), np.log(softmax(some_logits(3, 8, 3, seed=4)))
    found = metrics.ensemble_nll_by_size(test, LABELS, validation_log_probs=validation, validation_labels=LABELS)
    subsets = {1: [[0], [1], [2]], 2: [[0, 1], [0, 2], [1, 2]], 3: [[0, 1, 2]]}
    for m, rows in subsets.items():
        values = [calibrated_nll(test[row], validation[row]) for row in rows]
        assert found[m - 1] == pytest.approx(np.mean(values), abs=1e-10)


@pytest.mark.parametrize(
    ("nll", "by_size", "expected"),
    [
        (0.9, [1.0, 0.8, 0.7], 1.5),
        (0.75, [1.0, 0.8, 0.7], 2.5),
        (1.0, [1.0, 0.8, 0.7], 1.0),
        (0.8, [1.0, 0.8, 0.7], 2.0),
        (0.7, [1.0, 0.8, 0.7], 3.0),
        (0.6, [1.0, 0.8, 0.7], math.inf),
        (1.1, [1.0, 0.8, 0.7], 0.0),
        (0.8, [0.8], 1.0),
        (0.7, [0.8], math.inf),
        (0.8, [1.0, 0.8, 0.8], 2.0),  # the smallest m of a plateau
        (0.85, [1.0, 0.8, 0.9, 0.7], 1.75),  # the smallest m where the curve is not monotonic
        (0.75, [0.8, 0.9, 0.7], 2.75),
    ],
)
def test_dee_is_the_smallest_ensemble_size_with_that_nll(nll, by_size, expected):
    assert metrics.dee(nll, by_size) == pytest.approx(expected, abs=1e-12)


def overconfident_members(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Members (3, N, 4) that are each four times as sure as they should be, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, num_images)
    truth = 1.5 * np.eye(4)[labels] + random.normal(size=(num_images, 4))
    logits = 4 * (truth + 0.8 * random.normal(size=(3, num_images, 4)))
    return scipy.special.log_softmax(logits, axis=-1), labels


def test_temperature_before_the_mean_is_the_best_on_a_fine_grid():
    """Against a search in scipy's words, one temperature after another."""
    members, labels = overconfident_members(400, 0)
    grid = np.exp(np.linspace(np.log(0.5), np.log(12), 2000))
    nlls = [-np.log(scipy.special.softmax(members / t, axis=-1).mean(0)[np.arange(400), labels]).mean() for t in grid]
    best = grid[int(np.argmin(nlls))]
    assert 1.5 < best < 8
    assert metrics.fit_member_temperature(members, labels) == pytest.approx(best, rel=2e-3)


def test_members_are_calibrated_in_the_way_that_is_better_on_validation_images():
    (members, labels), (validation, validation_labels) = overconfident_members(400, 0), overconfident_members(300, 1)
    found = metrics.evaluate(members, labels, validation_log_probs=validation, validation_labels=validation_labels)
    mean, validation_mean = (np.log(np.exp(x).mean(0)) for x in (members, validation))
    after = metrics.fit_temperature(validation_mean, validation_labels)
    before = metrics.fit_member_temperature(validation, validation_labels)
    test_before, validation_before = (
        np.log(scipy.special.softmax(x / before, axis=-1).mean(0)) for x in (members, validation)
    )
    rest = metrics.fit_temperature(validation_before, validation_labels)
    tempered = {
        "mean": [scipy.special.log_softmax(x / after, axis=-1) for x in (mean, validation_mean)],
        "members": [scipy.special.log_softmax(x / rest, axis=-1) for x in (test_before, validation_before)],
    }
    on_validation = {way: metrics.nll(both[1], validation_labels) for way, both in tempered.items()}
    assert on_validation["members"] < on_validation["mean"] - 1e-3, "the case shows nothing"
    assert found.member_temperature == pytest.approx(before)
    assert found.calibration_temperature == pytest.approx(rest)
    assert found.calibrated.nll == pytest.approx(metrics.nll(tempered["members"][0], labels), abs=1e-12)
    assert found.raw.nll == pytest.approx(metrics.nll(mean, labels), abs=1e-12)
    one = metrics.evaluate(
        members[:1], labels, validation_log_probs=validation[:1], validation_labels=validation_labels
    )
    assert one.member_temperature == 1
    by_size = metrics.ensemble_nll_by_size(
        members, labels, validation_log_probs=validation, validation_labels=validation_labels
    )
    assert by_size[0] == pytest.approx(
        np.mean(
            [
                metrics.evaluate(m, labels, validation_log_probs=v, validation_labels=validation_labels).calibrated.nll
                for m, v in zip(members, validation, strict=True)
            ]
        )
    )
    assert by_size[2] == pytest.approx(found.calibrated.nll)
