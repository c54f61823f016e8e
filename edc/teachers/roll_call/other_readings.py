"""Other ways to read a teacher of the user's, each tried on validation images: what a user may have meant."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edc.data import DataSet, Images
from edc.data.data_set import take
from edc.errors import EdcError
from edc.recipe import CheckpointSection, Recipe
from edc.teachers.class_order import known_orders
from edc.teachers.ensemble import TeacherEnsemble, load_own_teacher
from edc.teachers.normalisation import before_transform_input, in_use
from edc.teachers.reading import OwnTeacher
from edc.train.evaluate import labels_of, predict_logits
from edc.train.placement import place

__all__ = ["Attempt", "better_readings", "cross_fitted", "fitted_order", "is_clear", "other_readings"]

FIRST_IMAGES, MOST_IMAGES = 100, 1000
"""A reading that is right on no more of the first ones than the recipe's is not tried on more."""
MOST_CLASSES_LISTED = 20
USUAL_SIZE, SMALLEST, LARGEST_SURE = 224, 8, 128
"""Sides of images; teachers that are not weak are tried at no more than the last, which costs little."""
STANDARD_ERRORS, LEAST_GAIN = 3.0, 0.01

NUM_FOLDS = 10

Bools = NDArray[np.bool_]
Classes = NDArray[np.int64]
Order = tuple[int, ...] | None


@dataclass(frozen=True)
class Attempt:
    """A reading as fields of the recipe, the images on which it was tried, and which of them were right."""

    fields: str
    acc: float
    gained: int
    """Images that are right this way and wrong as the recipe has it."""
    lost: int
    num_images: int
    section: CheckpointSection
    """The checkpoint with these fields."""

    @property
    def is_clearly_better(self) -> bool:
        """Whether it is right on more images by three standard errors of the paired difference, and by one in 100."""
        gain = self.gained - self.lost
        return is_clear(gain, self.gained + self.lost) and gain > LEAST_GAIN * self.num_images


def is_clear(gain: int, num_changed: int) -> bool:
    """Returns whether so many more right answers are no chance: three standard errors of the paired difference.

    Args:
        num_changed: images that are answered rightly one way and not the other.
    """
    return gain > STANDARD_ERRORS * math.sqrt(num_changed)


def better_readings(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Returns the attempts that are clearly better than the teacher as the recipe has it."""
    return [attempt for attempt in attempts if attempt.is_clearly_better]


def other_readings(
    recipe: Recipe,
    data: DataSet,
    member: int,
    own: OwnTeacher,
    logits: NDArray[np.float32],
    images: Images,
    *,
    is_weak: bool,
    accelerator: Accelerator,
) -> list[Attempt]:
    """Returns other readings of a teacher with their accuracy, the best first.

    The known orders of classes cost nothing and are always tried. Other usual normalisations are tried where only a
    library or the data says the teacher's, and torchvision's `transform_input` wherever a file may have been made with
    it. So are half and twice the size of small images, where the recipe does not say the teacher's. For a weak teacher,
    everything is: the other weights of its file, all normalisations, and the order of classes that fits its answers
    best.

    Args:
        logits: (N, K) of the teacher as the recipe has it, on `images`.
    """
    labels = labels_of(images)
    as_it_is = recipe.teachers.checkpoints[member]
    right = labels == logits.argmax(-1)
    attempts = _orders(own, as_it_is, logits, labels, data.class_names, "", right, is_weak=is_weak)
    for fields, section in _sections(recipe, data, member, own, every=is_weak):
        try:
            other = load_own_teacher(recipe, data, member, section)
        except EdcError:  # it cannot be read so
            continue
        teacher = place(TeacherEnsemble([other.network]), accelerator.device, recipe.training)[0]
        for most in (MOST_IMAGES,) if is_weak or len(images) <= FIRST_IMAGES else (FIRST_IMAGES, MOST_IMAGES):
            few, rows = _few_of(images, most)
            right = labels[rows] == logits[rows].argmax(-1)
            found = predict_logits(teacher, few, recipe.data, recipe.training, accelerator)[0]
            tried = [_attempt(fields, section, found.argmax(-1), labels[rows], right)]
            tried += _orders(other, section, found, labels[rows], data.class_names, fields, right, is_weak=is_weak)
            if not any(attempt.gained > attempt.lost for attempt in tried):
                break
        attempts += tried
    return sorted(attempts, key=lambda attempt: -attempt.acc)


def _sections(
    recipe: Recipe, data: DataSet, member: int, own: OwnTeacher, *, every: bool
) -> Iterator[tuple[str, CheckpointSection]]:
    """Yields other sections of the checkpoint, and the fields in which they differ."""
    checkpoint, reading = recipe.teachers.checkpoints[member], own.reading
    updates: list[dict[str, Any]] = [{}]
    if every and reading.has_both:
        updates.append({"weights": "raw" if reading.is_ema else "ema"})
    normalisations: list[tuple[str, dict[str, Any]]] = [("", {})]
    if reading.normalisation_of != "the file":
        name = (checkpoint.network or recipe.teacher_network).name
        is_open = every or reading.is_assumed
        found = in_use(name, (data.mean, data.std), every=every) if is_open else {}
        if reading.in_file:
            found["the file's"] = reading.in_file
        if checkpoint.file:
            found |= before_transform_input(name, reading.normalisation_of, (reading.mean, reading.std))
        for words, (mean, std) in found.items():
            if not np.allclose((*mean, *std), (*reading.mean, *reading.std), atol=1e-3):
                fields = f"mean: {_listed(mean)}, std: {_listed(std)} ({words})"
                normalisations.append((fields, {"mean": mean, "std": std}))
    for update in updates:
        for fields, normalisation in normalisations:
            changed = update | normalisation
            if changed:
                changes = [*(f"{key}: {value}" for key, value in update.items()), fields]
                yield _joined(*changes), checkpoint.model_copy(update=changed)
    for size in _other_sizes(checkpoint, data.image_shape[1], every=every):
        yield f"input_size: {size}", checkpoint.model_copy(update={"input_size": size})


def _other_sizes(checkpoint: CheckpointSection, side: int, *, every: bool) -> list[int]:
    """Returns sizes of images that a network may have been taught at, where neither recipe nor library says its own.

    Small images are often enlarged for training. Most networks take any size, and are worse at another without a word.
    """
    if checkpoint.file is None or checkpoint.input_size is not None:
        return []
    sizes = dict.fromkeys((side // 2, 2 * side, *((USUAL_SIZE,) if every else ())))
    return [size for size in sizes if size != side and size >= SMALLEST and (every or size <= LARGEST_SURE)]


def _orders(
    own: OwnTeacher,
    section: CheckpointSection,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    fields: str,
    right: Bools,
    *,
    is_weak: bool,
) -> list[Attempt]:
    """Returns the attempts with other orders of classes, from logits in the order of the data's."""
    columns = np.arange(len(class_names)) if own.reading.class_order is None else np.array(own.reading.class_order)
    place_of = np.argsort(columns)  # the data's class in each column of the teacher's answer
    answers = columns[logits.argmax(-1)]  # as columns of the teacher's own answer
    attempts, known = [], [place_of]
    for rule, order in known_orders(class_names).items():
        if tuple(columns) != tuple(order or range(len(class_names))):
            theirs = np.argsort(order) if order else np.arange(len(class_names))
            by_rule = section.model_copy(update={"classes": rule})
            attempts.append(_attempt(_joined(fields, f"classes: {rule}"), by_rule, theirs[answers], labels, right))
            known.append(theirs)
    if is_weak:
        counts, theirs = fitted_order(answers, labels, len(class_names))
        if not any(np.array_equal(theirs, each) for each in known):
            names = ", ".join(class_names[k] for k in theirs[:MOST_CLASSES_LISTED])
            more = ", ..." if len(theirs) > MOST_CLASSES_LISTED else ""
            doubt = _doubt(counts[np.argsort(theirs)], class_names)
            words = f"classes: [{names}{more}] (the order that fits its answers best{doubt})"
            listed = section.model_copy(update={"classes": tuple(class_names[k] for k in theirs)})
            named = cross_fitted(answers, labels, len(class_names))
            attempts.append(_attempt(_joined(fields, words), listed, named, labels, right))
    return attempts


def fitted_order(answers: Classes, labels: Classes, num_classes: int) -> tuple[NDArray[np.int64], Classes]:
    """Returns how often each column (K, K) is the answer to each label, and the class of each column (K,) by which the
    most answers (N,) are right.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (answers, labels), 1)
    return counts, linear_sum_assignment(counts, maximize=True)[1]


def cross_fitted(answers: Classes, labels: Classes, num_classes: int) -> Classes:
    """Returns the classes (N,) of answers, each by the order that fits those of the other folds best.

    Of all orders some one fits the answers of a network that knows nothing: on 46 images of four classes, right on
    nearly half of them. What an order is worth is seen on images that had no part in its choice.
    """
    # Drawn, because images may come class by class in turn, and a fold would be all that there is of a class.
    folds = np.random.default_rng(0).permutation(len(labels)) % NUM_FOLDS
    named = np.empty_like(labels)
    for fold in range(NUM_FOLDS):
        others = folds != fold
        named[~others] = fitted_order(answers[others], labels[others], num_classes)[1][answers[~others]]
    return named


def _doubt(counts: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Returns which two classes may be the other way around, in words; of several, those that change least.

    Args:
        counts: (K, K) images by the class that they are given in the order that fits best, and by their label.
    """
    right = np.diag(counts)
    gain = right[:, None] + right - counts - counts.T
    changed = right[:, None] + right + counts + counts.T
    unsure = (gain <= STANDARD_ERRORS * changed**0.5) & ~np.eye(len(right), dtype=bool)
    if not unsure.any():
        return ""
    a, b = divmod(int(np.where(unsure, gain, gain.max() + 1).argmin()), len(right))
    num_others = int(unsure.sum()) // 2 - 1
    others = f", and {num_others} more pair{'s' * (num_others != 1)}" if num_others else ""
    return f"; {class_names[a]} and {class_names[b]} may be the other way around{others}: check it"


def _attempt(
    fields: str, section: CheckpointSection, answers: NDArray[np.int64], labels: NDArray[np.int64], right: Bools
) -> Attempt:
    now = answers == labels
    gained, lost = int((now & ~right).sum()), int((right & ~now).sum())
    return Attempt(fields, float(now.mean()), gained, lost, len(labels), section)


def _few_of(images: Images, most: int) -> tuple[Images, NDArray[np.int64]]:
    """Returns at most so many images, evenly spread, and which they are."""
    rows = torch.linspace(0, len(images) - 1, min(len(images), most)).long()
    return take(images, rows), rows.numpy()


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"
