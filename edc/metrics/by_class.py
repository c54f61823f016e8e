"""What predictions are per class, and whether they are of one or few classes. The figures are scikit-learn's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ByClass", "balanced_accuracy_and_f1", "by_class", "in_words", "majority_of"]

MOST_CLASSES = 100
"""Of a confusion matrix, which grows with their square."""
ALMOST_ALL = 0.99
"""Share of the images whose classes are counted: a few stray answers do not make another network."""
ENOUGH_IMAGES = 10
"""Of a class that is worth naming if it is never predicted."""
MOST_NAMED = 3

Classes = NDArray[np.int64]


@dataclass(frozen=True)
class ByClass:
    """What a network makes of the images of each class, in the order of the classes; all are K long."""

    images: tuple[int, ...]
    """With this label."""
    predicted: tuple[int, ...]
    """Images for which this class was the most probable one."""
    precision: tuple[float | None, ...]
    """Share of these that are right; None: there are none."""
    recall: tuple[float | None, ...]
    """Share of the images with this label that are recognised; None: there are none."""
    confusion: tuple[tuple[int, ...], ...] | None
    """Images by label (rows) and predicted class (columns); None with more than 100 classes."""


def balanced_accuracy_and_f1(predicted: Classes, labels: Classes) -> tuple[float, float]:
    """Returns the mean recall over classes that have images, and the mean F1 over those or predicted ones.

    They are what `balanced_accuracy_score` and `f1_score(average="macro")` of scikit-learn return. Shapes: both (N,).
    """
    from sklearn.metrics import f1_score, recall_score  # workers import `edc.metrics`, and do without it

    balanced = recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    return float(balanced), float(f1_score(labels, predicted, average="macro", zero_division=0))


def by_class(predicted: Classes, labels: Classes, *, num_classes: int) -> ByClass:
    """Returns the figures of each of K classes. Shapes: both (N,)."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, predicted, labels=np.arange(num_classes))
    right, images, answers = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return ByClass(
        images=tuple(images.tolist()),
        predicted=tuple(answers.tolist()),
        precision=tuple(None if n == 0 else k / n for k, n in zip(right.tolist(), answers.tolist(), strict=True)),
        recall=tuple(None if n == 0 else k / n for k, n in zip(right.tolist(), images.tolist(), strict=True)),
        confusion=tuple(map(tuple, matrix.tolist())) if num_classes <= MOST_CLASSES else None,
    )


def majority_of(labels: Classes, names: Sequence[str]) -> tuple[str, float]:
    """Returns the most frequent class of the labels (N,), and its share: the accuracy of always saying so."""
    largest, share = _largest(np.bincount(labels, minlength=len(names)).tolist())
    return names[largest], share


def _largest(images: Sequence[int]) -> tuple[int, float]:
    largest = int(np.argmax(images))
    return largest, images[largest] / sum(images)


def in_words(images: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> str:
    """Returns, for people, that a network predicts one or few classes, or leaves one out; "" if it does neither.

    Few: at most half as many as the labels have, both counted without the rarest hundredth of the images.

    Args:
        images: how many have each label (K,).
        predicted: for how many each class is predicted (K,).
    """
    total, (most, share) = sum(images), _largest(images)
    if sum(number > 0 for number in images) < 2:
        return ""
    answers = [int(k) for k in np.argsort(predicted, kind="stable")[::-1] if predicted[k]]
    zero_line = f"{_quoted(names, [most])} alone is right on {share:.1%}"
    if len(answers) == 1:
        return f"predicts {_quoted(names, answers)} for all {total:,} images ({zero_line})"
    few = _covering(predicted)
    if few <= _covering(images) / 2:
        held = sum(predicted[k] for k in answers[:few])
        of_all = f"all {total:,}" if held == total else f"{held:,} of {total:,}"
        return f"predicts {_quoted(names, answers[:few])} for {of_all} images ({zero_line})"
    absent = [k for k in range(len(images)) if images[k] >= ENOUGH_IMAGES and not predicted[k]]
    absent.sort(key=lambda k: -images[k])
    if not absent:
        return ""
    of_them = sum(images[k] for k in absent)
    return f"never predicts {_quoted(names, absent, 'or')}, the label of {of_them:,} of {total:,} images"


def _covering(numbers: Sequence[int]) -> int:
    """Returns the least number of classes that hold almost all of the images."""
    shares = np.cumsum(sorted(numbers, reverse=True)) / sum(numbers)
    return int(np.searchsorted(shares, ALMOST_ALL - 1e-9)) + 1


def _quoted(names: Sequence[str], classes: Sequence[int], last: str = "and") -> str:
    shown = [f"`{names[k]}`" for k in classes[:MOST_NAMED]]
    if len(classes) > MOST_NAMED:
        shown.append(f"{len(classes) - MOST_NAMED} more classes")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"
