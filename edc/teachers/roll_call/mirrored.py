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
from edc.train.evaluate import labels_of, predict_logits

__all__ = ["Mirrored", "mirrored"]

MOST_IMAGES = 500
STANDARD_ERRORS, LEAST_LOSS = 3.0, 0.05
"""Networks that never saw a mirrored photo are right on a few fewer, and mirroring pays all the same."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Mirrored:
    """How right the ensemble is on validation images, and on the same ones mirrored."""

    acc: float
    mirrored_acc: float
    num_apart: int
    """Images that are answered rightly one way and not the other."""
    num_images: int
    augmentation: str
    """The recipe's, which mirrors half of the training images."""

    @property
    def is_clearly_worse(self) -> bool:
        """Whether fewer are right by three standard errors of the paired difference, and by one in twenty."""
        loss = round((self.acc - self.mirrored_acc) * self.num_images)
        return loss > STANDARD_ERRORS * self.num_apart**0.5 and loss > LEAST_LOSS * self.num_images

    @property
    def augmentation_without(self) -> str:
        """The same augmentation without mirrored images."""
        return self.augmentation.removesuffix("_flip")

    @property
    def figures(self) -> str:
        """Both accuracies in words."""
        return (
            f"on {100 * self.acc:.1f} % of {self.num_images:,} validation images, and on "
            f"{100 * self.mirrored_acc:.1f} % of the same ones mirrored"
        )

    @property
    def words(self) -> str:
        """What is to be said of it; "" where mirrored images are answered nearly as well."""
        if not self.is_clearly_worse:
            return ""
        return (
            f"the ensemble is right {self.figures}, and data.augmentation: {self.augmentation} mirrors half of the "
            f"images that students learn from. Its teachers did not learn from such images: "
            f"data.augmentation: {self.augmentation_without} leaves them out"
        )

    def document(self) -> dict[str, Any]:
        return {"images": self.num_images, "acc": self.acc, "mirrored_acc": self.mirrored_acc}


def mirrored(
    recipe: Recipe,
    teachers: TeacherEnsemble,
    images: Images,
    logits: Sequence[NDArray[np.float32]],
    *,
    accelerator: Accelerator,
) -> Mirrored | None:
    """Evaluates the teachers on at most 500 images, mirrored; None if the recipe mirrors no images.

    Args:
        logits: (1, N, K) of each teacher on the images as they are.
    """
    if not recipe.data.flips:
        return None
    rows = torch.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).long()
    labels = labels_of(images)[rows.numpy()]
    pixels = images_at([images], rows, num_workers=recipe.data.num_workers).flip(-1)
    few = MemoryImages(pixels, torch.from_numpy(labels))
    turned = [predict_logits(one, few, recipe.data, recipe.training, accelerator) for one in teachers.members]
    right, right_mirrored = _right([each[:, rows.numpy()] for each in logits], labels), _right(turned, labels)
    num_apart = int((right != right_mirrored).sum())
    return Mirrored(float(right.mean()), float(right_mirrored.mean()), num_apart, len(rows), recipe.data.augmentation)


def _right(logits: Sequence[NDArray[np.float32]], labels: metrics.Labels) -> Bools:
    members = np.stack([metrics.log_probs_from_logits(each[0]) for each in logits])
    answers: Bools = metrics.ensemble_log_probs(members).argmax(-1) == labels
    return answers
