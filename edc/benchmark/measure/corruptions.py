"""Images a little worse than those of the test set: noise, blur, less contrast, JPEG, each at five severities.

Made on the fly, in memory, from nothing but an image's number and a seed: the same images whatever the batches, and on
every machine with the same Pillow. Mild on purpose: severity 5 is what a poor camera does, not what breaks everything,
because the question is whether confidence goes down as accuracy does.

Source: the kinds and the levels for small images follow Hendrycks and Dietterich 2019 (arXiv 1903.12261), CIFAR-10-C,
whose figures are for 32 x 32. These are not that data set, and figures on them are not to be compared with its.
"""

import io
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edc.benchmark.backends.contract import Floats
from edc.errors import RequestError

__all__ = ["KINDS", "SEVERITIES", "CorruptionKind", "blur_sigma", "corrupt"]

CorruptionKind = Literal["gaussian_noise", "blur", "contrast", "jpeg"]
KINDS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
SEVERITIES = (1, 2, 3, 4, 5)

NOISE_STD = (0.02, 0.04, 0.06, 0.08, 0.10)
"""Of pixels in [0, 1]."""
BLUR_SHARE = (0.005, 0.010, 0.015, 0.020, 0.025)
"""Of the shorter side."""
LEAST_BLUR = 0.3
"""Pixels: a sampled Gaussian narrower than that is a single one, and an image of 8 x 8 would stay as it is."""
CONTRAST = (0.75, 0.60, 0.50, 0.40, 0.30)
"""Share of each pixel's distance from its channel's mean that is left."""
JPEG_QUALITY = (80, 65, 50, 40, 30)


def corrupt(images: Floats, kind: CorruptionKind, severity: int, *, seed: int, first_index: int = 0) -> Floats:
    """Returns the images corrupted, float32 in [0, 1]; the input is left as it is.

    Args:
        severity: 1 (barely visible) to 5.
        seed: of the noise; an image's noise is the same at every severity, only stronger.
        first_index: the number of the first image in its split, which chooses its noise: however a split is cut into
            batches, an image gets the same.

    Shapes:
        images (N, C, H, W) float32 in [0, 1], C = 1 or 3; so is the result.

    Raises:
        RequestError: another severity, shape or number of channels.
    """
    if severity not in SEVERITIES:
        raise RequestError(f"severity: {severity!r}, where 1 to 5 are expected")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise RequestError(f"images: have shape {images.shape}, where (N, 1 or 3, H, W) is expected")
    match kind:
        case "gaussian_noise":
            result = _noisy(images, NOISE_STD[severity - 1], seed=seed, first_index=first_index)
        case "blur":
            result = _blurred(images, blur_sigma(severity, min(images.shape[2:])))
        case "contrast":
            means = images.mean(axis=(2, 3), keepdims=True, dtype=np.float64)
            result = means + CONTRAST[severity - 1] * (images - means)
        case "jpeg":
            result = np.stack([_through_jpeg(image, JPEG_QUALITY[severity - 1]) for image in images])
    return np.ascontiguousarray(result.clip(0, 1), np.float32)


def blur_sigma(severity: int, side: int) -> float:
    """Returns the standard deviation, in pixels, of the Gaussian that blurs images with this shorter side."""
    return LEAST_BLUR + BLUR_SHARE[severity - 1] * side


def _noisy(images: Floats, std: float, *, seed: int, first_index: int) -> NDArray[np.floating]:
    noise = [
        np.random.default_rng((seed, first_index + row)).standard_normal(images.shape[1:], np.float32)
        for row in range(len(images))
    ]
    return images + np.float32(std) * np.stack(noise)


def _blurred(images: Floats, sigma: float) -> NDArray[np.floating]:
    from scipy.ndimage import gaussian_filter

    result: Floats = gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")
    return result


def _through_jpeg(image: Floats, quality: int) -> Floats:
    """Returns an image (C, H, W) as it comes back from a JPEG file, at Pillow's chroma subsampling."""
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        array: Floats = np.asarray(decoded, np.float32) / np.float32(255)
    return array.transpose(2, 0, 1) if array.ndim == 3 else array[None]
