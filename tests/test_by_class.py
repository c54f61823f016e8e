"""What predictions are per class: figures against scikit-learn's, and the words on a network of one or few classes."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, classification_report, f1_score

from edc import metrics

NAMES = ("ok", "crack", "dust", "shade")


def draws(num_classes: int = 6, num_images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Labels of unequal classes, of which the last has no image, and answers that are right on about two thirds."""
    generator = np.random.default_rng(5)
    frequencies = np.array([8, 4, 2, 1, 1, 0.0])
    labels = generator.choice(num_classes, num_images, p=frequencies / frequencies.sum())
    guesses = generator.integers(0, num_classes, num_images)
    return np.where(generator.random(num_images) < 0.6, labels, guesses), labels


def test_figures_are_those_of_a_users_own_script():
    predicted, labels = draws()
    log_probs = np.log(np.full((len(labels), 6), 0.05) + 0.7 * np.eye(6)[predicted])
    found = metrics.quality(log_probs, labels)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found.balanced_acc == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert abs(found.balanced_acc - found.acc) > 0.01
    by_class = metrics.by_class(predicted, labels, num_classes=6)
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    for k in range(5):
        assert by_class.precision[k] == pytest.approx(report[str(k)]["precision"], abs=1e-12)
        assert by_class.recall[k] == pytest.approx(report[str(k)]["recall"], abs=1e-12)
        assert by_class.images[k] == report[str(k)]["support"]
    assert (by_class.images[5], by_class.recall[5], by_class.precision[5]) == (0, None, 0.0)
    for label in range(6):
        expected = [int(((labels == label) & (predicted == k)).sum()) for k in range(6)]
        assert list(by_class.confusion[label]) == expected


def test_a_class_that_is_never_predicted_has_no_precision():
    found = metrics.by_class(np.array([0, 0, 1]), np.array([0, 2, 1]), num_classes=3)
    assert found.precision == (0.5, 1.0, None)
    assert found.recall == (1.0, 1.0, 0.0)
    assert metrics.by_class(np.zeros(3, np.int64), np.zeros(3, np.int64), num_classes=101).confusion is None


@pytest.mark.parametrize(
    ("images", "predicted", "words"),
    [
        ((327, 100, 60, 40), (527, 0, 0, 0), "predicts `ok` for all 527 images (`ok` alone is right on 62.0%)"),
        ((327, 100, 60, 40), (0, 527, 0, 0), "predicts `crack` for all 527 images (`ok` alone is right on 62.0%)"),
        ((327, 100, 60, 40), (525, 1, 1, 0), "predicts `ok` for 525 of 527 images (`ok` alone"),
        ((327, 100, 60, 40), (300, 0, 227, 0), "predicts `ok` and `dust` for all 527 images (`ok` alone"),
        ((327, 100, 60, 40), (340, 127, 60, 0), "never predicts `shade`, the label of 40 of 527 images"),
        ((9990, 10, 0, 0), (10_000, 0, 0, 0), "predicts `ok` for all 10,000 images (`ok` alone is right on 99.9%)"),
        ((9990, 10, 0, 0), (9990, 10, 0, 0), ""),
        ((327, 100, 60, 9), (340, 96, 60, 0), ""),
        ((500, 0, 0, 0), (500, 0, 0, 0), ""),
    ],
)
def test_a_network_that_predicts_one_or_few_classes_is_named(images, predicted, words):
    found = metrics.in_words(images, predicted, NAMES)
    assert found.startswith(words) if words else found == ""


def test_a_long_tail_that_is_rarely_predicted_is_no_collapse():
    """100 classes, of which 70 have 12 images each: the head is predicted, the tail as often as it is there."""
    images = [1000] * 30 + [12] * 70
    assert metrics.in_words(images, [1010] * 30 + [8] * 70, [f"c{k}" for k in range(100)]) == ""
    never = metrics.in_words(images, [1028] * 30 + [0] * 70, [f"c{k}" for k in range(100)])
    assert "`c" in never
    assert "more classes" in never
