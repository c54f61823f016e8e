"""For how long, and how, a student of a proposed recipe learns."""

from dataclasses import dataclass

from edc.recipe.training_section import Optimizer

__all__ = ["Schedule", "schedule_for"]

MOST_EPOCHS = 1000
VALIDATIONS = 100
"""Looks at the validation images in a long training, at least: each costs time, and so does an epoch of few images."""


@dataclass(frozen=True)
class Schedule:
    """Fields of the section `training`."""

    epochs: int
    warmup_epochs: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    validate_every: int = 1


def schedule_for(*, from_weights: bool, has_batchnorm: bool, num_labelled: int, num_extra: int = 0) -> Schedule:
    """Returns a schedule for so many images. An epoch goes once through the labelled ones.

    With extra images half of each batch are of those (`extra_share`), so an epoch has twice the steps. Epochs are then
    so many that the training is as long as on as many labelled images as there are in all.

    From weights with AdamW: SGD at 0.01 forgot what they know, and 0.003 was the best rate for networks with BatchNorm
    (results/learning_rate.md). With 1,000 images, 56 epochs were 3.6 points better than 28 (results/finetune_lite0.md).
    """
    num_images = num_labelled + num_extra

    def passes(num: int) -> int:
        return max(30, min(60, 300_000 // num)) if from_weights else 100

    epochs = passes(num_labelled)
    if num_extra:
        epochs = min(MOST_EPOCHS, max(epochs, round(passes(num_images) * num_images / (2 * num_labelled))))
    sizes = ((16, 320), (32, 2_000), (64, 20_000))
    batch_size = min(next((size for size, most in sizes if num_images < most), 128), num_labelled)
    validate_every = max(1, epochs // VALIDATIONS)
    if from_weights:
        return Schedule(epochs, 2, batch_size, "adamw", 0.003 if has_batchnorm else 0.001, 0.01, validate_every)
    return Schedule(epochs, 5, batch_size, "sgd", 0.05, 5e-4, validate_every)
