"""The roll call: every teacher on validation images before a student learns from it, and how it was read.

A teacher that is fed otherwise than it was trained (another normalisation, another order of classes, other weights of
its file) loads without a word and answers wrongly. Its accuracy gives it away, and so does another reading that fits
better. Nothing here looks at a test image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from edc import metrics
from edc.console import console
from edc.data import DataSet, Images
from edc.data.data_set import take
from edc.errors import CheckpointError
from edc.networks import normalisation_of
from edc.recipe import Recipe
from edc.teachers.ensemble import TeacherEnsemble
from edc.teachers.reading import Answered, OwnTeacher, Reading
from edc.teachers.roll_call.mirrored import Mirrored, mirrored
from edc.teachers.roll_call.other_readings import Attempt, better_readings, other_readings
from edc.teachers.roll_call.words import better_than_all, print_roll_call, what_was_tried
from edc.train.evaluate import labels_of, predict_logits

__all__ = ["FEW_IMAGES", "RollCall", "TeachersDoubtedError", "call_roll"]

MOST_IMAGES, FEW_IMAGES = 5000, 500
"""Up to the first number all are looked at, because the summary needs these logits anyway; of more, the second."""
NEAR_CHANCE = 0.1
"""Of the way from chance to all images right: less than this is near chance."""
LEAST_FOR_A_SIGMOID = 50
FAR_BELOW = 0.5
"""A teacher with less than this share of the best one's margin over chance is far below the others."""

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class RollCall:
    """All teachers, the accuracy of the mean of their probabilities, and their logits (1, N, K) on validation images.

    The logits are None if not all images were looked at.
    """

    answered: tuple[Answered, ...]
    ensemble_acc: float
    num_images: int
    logits: tuple[Logits, ...] | None
    num_apart: int
    """Images on which either the best teacher or the ensemble is right, and not both."""
    mirrored: Mirrored | None = None
    """Of teachers of the user's, where the recipe mirrors images."""

    def say(self, *, are_own: bool) -> None:
        """Prints the table, and before it whether a teacher alone is better than the ensemble."""
        words = better_than_all(self.answered, self.ensemble_acc, num_images=self.num_images, num_apart=self.num_apart)
        if words:
            console.print(words, style="bold", highlight=False, soft_wrap=True)
        print_roll_call(self.answered, num_images=self.num_images, are_own=are_own, console=console)

    def document(self) -> dict[str, Any]:
        teachers = [each.document() for each in self.answered]
        document = {"images": self.num_images, "ensemble_acc": self.ensemble_acc, "teachers": teachers}
        return document | ({"mirrored": self.mirrored.document()} if self.mirrored else {})


class TeachersDoubtedError(CheckpointError):
    """Teachers that are near chance, far below the others, or clearly better otherwise read.

    Args:
        doubted: by teacher, every other reading that was tried, the best first.
    """

    def __init__(self, message: str, roll: RollCall, doubted: Mapping[int, tuple[Attempt, ...]]) -> None:
        super().__init__(message)
        self.roll, self.doubted = roll, doubted


def call_roll(
    recipe: Recipe,
    data: DataSet,
    teachers: TeacherEnsemble,
    own: Sequence[OwnTeacher],
    *,
    accelerator: Accelerator,
    most_images: int = MOST_IMAGES,
    says: bool = True,
) -> RollCall:
    """Evaluates every teacher on validation images, prints the table if it `says` so, and returns it.

    Args:
        own: how the user's teachers were read; none if they are trained here.
        most_images: of more, a sample is looked at.

    Raises:
        TeachersDoubtedError: a teacher of the user's is near chance, far below the others, or clearly better otherwise
            read, with every reading that was tried and its accuracy, and its checkpoint has no `allow_weak`.
    """
    images, is_all = _some_of(data.validation, most_images)
    labels = labels_of(images)
    logits = [
        predict_logits(teacher, images, recipe.data, recipe.training, accelerator) for teacher in teachers.members
    ]
    readings = [one.reading.noting(_looks_like_a_sigmoid(each[0])) for one, each in zip(own, logits, strict=False)]
    readings = readings or [_as_trained(teacher, recipe, data) for teacher in teachers.members]
    answered = tuple(
        _answered(m, _name(recipe, m), logits[m], labels, reading, class_names=data.class_names)
        for m, reading in enumerate(readings)
    )
    members = np.stack([metrics.log_probs_from_logits(each[0]) for each in logits])
    ensemble = metrics.ensemble_log_probs(members)
    best = max(answered, key=lambda one: one.acc).member
    num_apart = int(((members[best].argmax(-1) == labels) != (ensemble.argmax(-1) == labels)).sum())
    ensemble_acc = metrics.accuracy(ensemble, labels)
    turned = mirrored(recipe, teachers, images, logits, accelerator=accelerator) if own else None
    roll = RollCall(answered, ensemble_acc, len(images), tuple(logits) if is_all else None, num_apart, turned)
    if says and accelerator.is_main_process:
        roll.say(are_own=bool(own))
    _require_well_read(recipe, data, own, roll, logits, images, accelerator=accelerator)
    if says and accelerator.is_main_process and turned and turned.words:
        console.print(f"warning: {turned.words}", highlight=False, soft_wrap=True)
    return roll


def _looks_like_a_sigmoid(logits: Logits) -> str:
    """Returns a word if all answers lie from 0 to 1, which the logits of a trained network do not; else ""."""
    if len(logits) < LEAST_FOR_A_SIGMOID or logits.min() < 0 or logits.max() > 1:
        return ""
    return (
        "every answer lies from 0 to 1, as if it ended in a sigmoid: taken as logits, its probabilities are nearly "
        "even, and students learn little from them; save it without"
    )


def _require_well_read(
    recipe: Recipe,
    data: DataSet,
    own: Sequence[OwnTeacher],
    roll: RollCall,
    logits: Sequence[Logits],
    images: Images,
    *,
    accelerator: Accelerator,
) -> None:
    refused, doubted, answered = [], {}, roll.answered
    for m, one in enumerate(own):
        if recipe.teachers.checkpoints[m].allow_weak:
            continue
        is_weak = _is_weak(answered[m], answered)
        tried = other_readings(recipe, data, m, one, logits[m][0], images, is_weak=is_weak, accelerator=accelerator)
        if is_weak or better_readings(tried):
            doubted[m] = tuple(tried)
            refused.append(what_was_tried(answered[m], answered, tried, field=f"teachers.checkpoints.{m}"))
    if refused:
        raise TeachersDoubtedError("\n".join(refused), roll, doubted)


def _as_trained(teacher: nn.Module, recipe: Recipe, data: DataSet) -> Reading:
    """Returns how a teacher that was trained here is fed; by the data's mean and std, if an older edc trained it."""
    fed = tuple(tuple(getattr(teacher, each).flatten().tolist()) for each in ("mean", "std"))
    of_data = (data.mean, data.std)
    for (mean, std), says in (normalisation_of(recipe.teacher_network, of_data), (of_data, "the data")):
        if np.allclose(fed, (mean, std), rtol=1e-6):
            return Reading(mean, std, says)
    if recipe.teacher_network.start_file:
        return Reading(fed[0], fed[1], "the file")
    return Reading(fed[0], fed[1], normalisation_of(recipe.teacher_network, of_data)[1])  # with its transform_input


def _is_weak(one: Answered, all_of_them: Sequence[Answered]) -> bool:
    best = max(each.margin for each in all_of_them)
    return one.margin < NEAR_CHANCE * (1 - one.chance) or one.margin < FAR_BELOW * best


def _answered(
    member: int, name: str, logits: Logits, labels: metrics.Labels, reading: Reading, *, class_names: Sequence[str]
) -> Answered:
    log_probs = metrics.log_probs_from_logits(logits[0])
    answers, num_classes = log_probs.argmax(-1), log_probs.shape[-1]
    predicted, images = (np.bincount(each, minlength=num_classes) for each in (answers, labels))
    chance = float((predicted / len(labels) * (images / len(labels))).sum())
    words = metrics.in_words(images.tolist(), predicted.tolist(), class_names)
    acc, nll = metrics.accuracy(log_probs, labels), metrics.nll(log_probs, labels)
    return Answered(member, name, acc, chance, nll, reading, words)


def _some_of(images: Images, most: int) -> tuple[Images, bool]:
    """Returns all images, or of more than `most` a few, evenly spread; and whether they are all."""
    if len(images) <= most:
        return images, True
    return take(images, torch.linspace(0, len(images) - 1, FEW_IMAGES).long()), False


def _name(recipe: Recipe, member: int) -> str:
    if not recipe.teachers.checkpoints:
        return recipe.teacher_network.name
    checkpoint = recipe.teachers.checkpoints[member]
    if checkpoint.file is not None:
        return checkpoint.file.name
    return checkpoint.network.name if checkpoint.network else ""
