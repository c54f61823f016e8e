"""Images as the files of an artifact take them: the one place that turns images in [0, 1] into a file's input."""

import numpy as np
from numpy.typing import NDArray

from edc.deploy.artifact.manifest import Preprocessing

__all__ = ["Fed", "as_fed"]

Fed = NDArray[np.float32] | NDArray[np.uint8]
"""A batch as a file takes it."""


def as_fed(images: NDArray[np.float32], how: Preprocessing | None) -> Fed:
    """Returns images (N, C, H, W) in [0, 1] in the type, range and order of axes that `how` says; None: as they are.

    Pixels in uint8 are the nearest grey levels, which for an image file are its own.
    """
    if how is None:
        return np.ascontiguousarray(images)
    ordered = images.transpose(0, 2, 3, 1) if how.layout == "NHWC" else images
    if how.dtype == "uint8":
        return np.ascontiguousarray(np.rint(ordered * np.float32(255)).clip(0, 255).astype(np.uint8))
    low, high = how.value_range
    return np.ascontiguousarray(ordered * np.float32(high - low) + np.float32(low))
