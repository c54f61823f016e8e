"""Whether teachers know mirrored images, where students are to learn their answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from edc import metrics
from edc.data import Images, MemoryImages
from edc.data.batches import images_at
from edc.recipe import Recipe
from edc.teachers.ensemble import TeacherEnsemble
from edc.teachers.roll_call.other_readings import cross_fitted, is_clear
from edc.train.distributed import raised_together
from edc.train.evaluate import labels_of, predict_logits

__all__ = ["Mirrored", "OneMirrored", "mirrored"]

MOST_IMAGES, MOST_BYTES = 500, 1 << 28
LEAST_LOSS = 0.05
"""Networks that never saw a mirrored photo are right on a few fewer, and mirroring pays all the same."""


@dataclass(frozen=True)
class OneMirrored:
    """How right one teacher is on validation images, and on the same ones mirrored."""

    member: int
    acc: float
    mirrored_acc: float
    num_apart: int
    """Images that are answered rightly one way and not the other."""

    def is_clearly_worse(self, num_images: int) -> bool:
        """Whether fewer are right by three standard errors of the paired difference, and by one in twenty."""
        loss = round((self.acc - self.mirrored_acc) * num_images)
        return is_clear(loss, self.num_apart) and loss > LEAST_LOSS * num_images


@dataclass(frozen=True)
class Mirrored:
    """All teachers; `augmentation` is the recipe's, which mirrors half of the training images."""

    teachers: tuple[OneMirrored, ...]
    num_images: int
    augmentation: str

    @property
    def worse(self) -> tuple[OneMirrored, ...]:
        """Those whose answers to mirrored images are clearly worse."""
        return tuple(one for one in self.teachers if one.is_clearly_worse(self.num_images))

    @property
    def augmentation_without(self) -> str:
        """The same augmentation without mirrored images."""
        return self.augmentation.removesuffix("_flip")

    @property
    def figures(self) -> str:
        """Both accuracies of the teacher that loses most, in words."""
        most = max(self.teachers, key=lambda one: one.acc - one.mirrored_acc)
        return (
            f"teacher {most.member} is right on {100 * most.acc:.1f} % of {self.num_images:,} validation images, and "
            f"on {100 * most.mirrored_acc:.1f} % of the same ones mirrored"
        )

    @property
    def words(self) -> str:
        """What is to be said of it; "" where mirrored images are answered nearly as well."""
        if not self.worse:
            return ""
        several = (
            f" ({len(self.worse)} of {len(self.teachers)} teachers lose as clearly)" if len(self.worse) > 1 else ""
        )
        return (
            f"{self.figures}{several}. data.augmentation: {self.augmentation} mirrors half of the images that students "
            f"learn from, with such answers: data.augmentation: {self.augmentation_without} mirrors none"
        )

    def document(self) -> dict[str, Any]:
        teachers = [{"acc": one.acc, "mirrored_acc": one.mirrored_acc} for one in self.teachers]
        return {"images": self.num_images, "teachers": teachers}


def mirrored(
    recipe: Recipe,
    teachers: TeacherEnsemble,
    images: Images,
    logits: Sequence[NDArray[np.float32]],
    *,
    accelerator: Accelerator,
) -> Mirrored | None:
    """Evaluates each teacher on at most 500 images, mirrored; None if the recipe mirrors no images.

    Classes that become one another (a left hand, a right one) count as right where no student learns from labels: the
    teacher's answer to the mirrored image is then the right one.

    Args:
        logits: (1, N, K) of each teacher on the images as they are.
    """
    if not recipe.data.flips:
        return None
    most = max(1, min(MOST_IMAGES, len(images), MOST_BYTES // int(np.prod(images.image_shape))))
    rows = torch.linspace(0, len(images) - 1, most).long()
    labels = labels_of(images)[rows.numpy()]
    with raised_together(accelerator):
        pixels = images_at([images], rows, num_workers=recipe.data.num_workers).flip(-1)
    few = MemoryImages(pixels, torch.from_numpy(labels))
    may_swap = all(student.alpha == 1 for student in recipe.students.values())
    found = []
    for member, (teacher, as_they_are) in enumerate(zip(teachers.members, logits, strict=True)):
        turned = predict_logits(teacher, few, recipe.data, recipe.training, accelerator)[0]
        right = as_they_are[0, rows.numpy()].argmax(-1) == labels
        right_mirrored = _right(turned.argmax(-1), labels, turned.shape[-1], may_swap=may_swap)
        num_apart = int((right != right_mirrored).sum())
        found.append(OneMirrored(member, float(right.mean()), float(right_mirrored.mean()), num_apart))
    return Mirrored(tuple(found), most, recipe.data.augmentation)


def _right(
    answers: NDArray[np.int64], labels: metrics.Labels, num_classes: int, *, may_swap: bool
) -> NDArray[np.bool_]:
    """Returns which mirrored images are answered rightly (N,): as labelled or, if more are so, with classes swapped."""
    as_labelled = answers == labels
    swapped = cross_fitted(answers, labels, num_classes) == labels if may_swap else as_labelled
    return max((as_labelled, swapped), key=lambda right: int(right.sum()))
