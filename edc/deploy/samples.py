"""The images that an export looks at."""

import numpy as np
import torch
from numpy.typing import NDArray

from edc.data import DataSet, FileImages, Images
from edc.deploy.onnx_files import Samples
from edc.recipe import Recipe
from edc.seeding import generator_for

__all__ = ["sample_images", "samples_of"]

NUM_PARITY_IMAGES, NUM_CALIBRATION_IMAGES, NUM_BUDGET_IMAGES, NUM_TEST_IMAGES = 512, 512, 5000, 10_000


def sample_images(images: Images, num_images: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns drawn images (N, C, H, W) float32 in [0, 1] and labels (N,): the first may be all of one class.

    If training images may be unreadable, another of the class replaces one, as in training.
    """
    rows = torch.randperm(len(images), generator=generator_for(seed, "sample"))[:num_images]
    if isinstance(images, FileImages) and images.bad.max_fraction:
        pixels = torch.stack([images.load_or_replace(int(row), augment_seed=None)[0] for row in rows])
    else:
        pixels = torch.stack([images[int(row)][0] for row in rows])
    return (pixels.float() / 255).numpy(), images.labels[rows].numpy()


def samples_of(data: DataSet, recipe: Recipe, max_batch: int) -> Samples:
    """Returns images drawn from each split, the same ones in every export of a run."""
    validation, validation_labels = sample_images(data.validation, NUM_BUDGET_IMAGES, seed=recipe.seed)
    test, test_labels = sample_images(data.test, NUM_TEST_IMAGES, seed=recipe.seed)
    return Samples(
        parity=validation[: max(NUM_PARITY_IMAGES, max_batch)],
        calibration=sample_images(data.train, NUM_CALIBRATION_IMAGES, seed=recipe.seed)[0],
        validation=validation,
        validation_labels=validation_labels,
        test=test,
        test_labels=test_labels,
    )
