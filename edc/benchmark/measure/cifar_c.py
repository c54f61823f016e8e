"""Five of the fifteen corruptions of CIFAR-10-C, with its constants, for colour images of 32 x 32.

At least one of each of its four groups: noise, blur, weather (brightness), digital (contrast, JPEG). Like its images,
these are rounded down to eight bits. The noise is other noise, and Pillow writes the JPEG files. So accuracies agree
with those on the published files within their interval, not to the last image.

Source: Hendrycks and Dietterich 2019 (arXiv 1903.12261); constants of ImageNet-C/create_c/make_cifar_c.py in
github.com/hendrycks/robustness.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["CIFAR_C_KINDS", "IMAGE_SHAPE", "CifarCKind", "brightened", "defocused", "from_8_bits", "to_8_bits"]

CifarCKind = Literal["gaussian_noise", "defocus_blur", "brightness", "contrast", "jpeg_compression"]
CIFAR_C_KINDS: tuple[CifarCKind, ...] = get_args(CifarCKind)
IMAGE_SHAPE = (3, 32, 32)
"""What the constants are for: other sizes have others."""

GAUSSIAN_NOISE_STD = (0.04, 0.06, 0.08, 0.09, 0.10)
"""Of pixels in [0, 1]."""
DEFOCUS_DISK = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
"""Radius, and standard deviation of the Gaussian that smooths the edge of the disk, in pixels."""
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)
"""What is added to the value, V of HSV in [0, 1]."""
CONTRAST = (0.75, 0.50, 0.40, 0.30, 0.15)
"""Share of each pixel's distance from its channel's mean that is left."""
JPEG_QUALITY = (80, 65, 58, 50, 40)

Pixels = NDArray[np.float64]


def from_8_bits(images: NDArray[np.floating[Any]]) -> Pixels:
    """Returns images in [0, 1] as they are on disk: multiples of 1/255, in float64."""
    result: Pixels = np.rint(images.astype(np.float64) * 255) / 255
    return result


def to_8_bits(images: Pixels) -> Pixels:
    """Returns images cut to [0, 1] and rounded down to multiples of 1/255, as the published images were.

    A whole number that a rounding error has put slightly below itself stays that number.
    """
    result: Pixels = np.floor(images.clip(0, 1) * 255 + 1e-6) / 255
    return result


def brightened(images: Pixels, severity: int) -> Pixels:
    """Returns images whose value in HSV is higher; hue and saturation stay.

    R, G and B are the value, the largest of them, times what hue and saturation make of them. So all three grow by the
    factor by which the value grows. Black has no hue and becomes grey.

    Shapes:
        images (N, 3, H, W) in [0, 1]
    """
    value = images.max(axis=1, keepdims=True)
    higher = np.minimum(value + BRIGHTNESS[severity - 1], 1)
    result: Pixels = np.where(value > 0, images * (higher / np.where(value > 0, value, 1)), higher)
    return result


def defocused(images: Pixels, severity: int) -> Pixels:
    """Returns images (N, C, H, W) spread over a disk; at the border they are mirrored, the edge pixel once."""
    from scipy.ndimage import convolve

    kernel = _disk(*DEFOCUS_DISK[severity - 1])
    result: Pixels = convolve(images, kernel[None, None], mode="mirror")
    return result


def _disk(radius: float, edge_std: float) -> Pixels:
    """Returns a disk of sum 1 on the grid of pixels, smoothed by a Gaussian of 3 x 3 pixels."""
    from scipy.ndimage import convolve

    at = np.arange(-3, 4)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    gaussian = np.exp(-0.5 * (np.arange(-1, 2) / edge_std) ** 2)
    gaussian /= gaussian.sum()
    smoothed: Pixels = convolve(disk / disk.sum(), np.outer(gaussian, gaussian), mode="constant")
    return smoothed
