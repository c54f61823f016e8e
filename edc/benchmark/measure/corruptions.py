"""Corrupted test images: noise, blur, other light, JPEG, each at five severities.

Computed in memory from an image's number and a seed alone: the same images whatever the batches, and on every machine
with the same Pillow.

Colour images of 32 x 32 get five corruptions of CIFAR-10-C under their published names and with its constants
(`cifar_c`): their accuracies, one by one, can be compared with papers. Its mean over fifteen corruptions cannot: ten of
them are not here.

Images of any other shape get edc's own four, whose names begin with edc: nothing that was published compares with them.
They are mild on purpose: severity 5 is like a poor camera and does not break everything, because the question is
whether confidence falls with accuracy.

Documents of benches before this one call edc's own four gaussian_noise, blur, contrast and jpeg at every size.
"""

import io
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edc.benchmark.backends.contract import Floats
from edc.benchmark.measure import cifar_c
from edc.benchmark.measure.cifar_c import CIFAR_C_KINDS, CifarCKind
from edc.errors import RequestError

__all__ = ["EDC_KINDS", "SEVERITIES", "CorruptionKind", "blur_sigma", "corrupt", "kinds_for"]

EdcKind = Literal["edc_noise", "edc_blur", "edc_contrast", "edc_jpeg"]
EDC_KINDS: tuple[EdcKind, ...] = get_args(EdcKind)
CorruptionKind = CifarCKind | EdcKind
SEVERITIES = (1, 2, 3, 4, 5)
Dtype = TypeVar("Dtype", bound=np.floating)

NOISE_STD = (0.02, 0.04, 0.06, 0.08, 0.10)
"""Of pixels in [0, 1]."""
BLUR_SHARE = (0.005, 0.010, 0.015, 0.020, 0.025)
"""Of the shorter side."""
LEAST_BLUR = 0.3
"""Pixels: a sampled Gaussian narrower than that is a single one, and an image of 8 x 8 would stay as it is."""
CONTRAST = (0.75, 0.60, 0.50, 0.40, 0.30)
"""Share of each pixel's distance from its channel's mean that is left."""
JPEG_QUALITY = (80, 65, 50, 40, 30)


def kinds_for(image_shape: tuple[int, ...]) -> tuple[CorruptionKind, ...]:
    """Returns the corruptions that images (C, H, W) get: those of CIFAR-10-C where its constants are for them."""
    return CIFAR_C_KINDS if image_shape == cifar_c.IMAGE_SHAPE else EDC_KINDS


def corrupt(images: Floats, kind: CorruptionKind, severity: int, *, seed: int, first_index: int = 0) -> Floats:
    """Returns the images corrupted, float32 in [0, 1]; the input is left as it is.

    Args:
        severity: 1 (barely visible) to 5.
        seed: of the noise; an image's noise is the same at every severity, only stronger.
        first_index: the number of the first image in its split, which chooses its noise: however a split is cut into
            batches, an image gets the same.

    Shapes:
        images (N, C, H, W) float32 in [0, 1], C = 1 or 3, or (N, 3, 32, 32) for CIFAR-10-C's; so is the result.

    Raises:
        RequestError: another severity, shape or number of channels.
    """
    if severity not in SEVERITIES:
        raise RequestError(f"severity: {severity!r}, where 1 to 5 are expected")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise RequestError(f"images: have shape {images.shape}, where (N, 1 or 3, H, W) is expected")
    if kind in CIFAR_C_KINDS and images.shape[1:] != cifar_c.IMAGE_SHAPE:
        raise RequestError(f"images: have shape {images.shape}, where {kind} of CIFAR-10-C expects (N, 3, 32, 32)")
    at = severity - 1
    result: NDArray[np.floating]
    match kind:
        case "edc_noise":
            result = _noisy(images, NOISE_STD[at], seed=seed, first_index=first_index)
        case "edc_blur":
            result = _blurred(images, blur_sigma(severity, min(images.shape[2:])))
        case "edc_contrast":
            result = _faded(images, CONTRAST[at])
        case "edc_jpeg":
            result = _through_jpeg(images, JPEG_QUALITY[at])
        case _:
            result = _as_in_cifar_c(images, kind, severity, seed=seed, first_index=first_index)
    return np.ascontiguousarray(result.clip(0, 1), np.float32)


def _as_in_cifar_c(
    images: Floats, kind: CifarCKind, severity: int, *, seed: int, first_index: int
) -> NDArray[np.floating]:
    pixels, at = cifar_c.from_8_bits(images), severity - 1
    match kind:
        case "gaussian_noise":
            std = cifar_c.GAUSSIAN_NOISE_STD[at]
            return cifar_c.to_8_bits(_noisy(pixels, std, seed=seed, first_index=first_index))
        case "defocus_blur":
            return cifar_c.to_8_bits(cifar_c.defocused(pixels, severity))
        case "brightness":
            return cifar_c.to_8_bits(cifar_c.brightened(pixels, severity))
        case "contrast":
            return cifar_c.to_8_bits(_faded(pixels, cifar_c.CONTRAST[at]))
        case "jpeg_compression":
            return _through_jpeg(images, cifar_c.JPEG_QUALITY[at])


def blur_sigma(severity: int, side: int) -> float:
    """Returns the standard deviation, in pixels, of edc's Gaussian blur of images with this shorter side."""
    return LEAST_BLUR + BLUR_SHARE[severity - 1] * side


def _noisy(images: NDArray[Dtype], std: float, *, seed: int, first_index: int) -> NDArray[Dtype]:
    noise = [
        np.random.default_rng((seed, first_index + row)).standard_normal(images.shape[1:], np.float32)
        for row in range(len(images))
    ]
    return images + images.dtype.type(std) * np.stack(noise)


def _blurred(images: Floats, sigma: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    result: Floats = gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")
    return result


def _faded(images: NDArray[np.floating], share: float) -> NDArray[np.float64]:
    means: NDArray[np.float64] = images.mean(axis=(2, 3), keepdims=True, dtype=np.float64)
    return means + share * (images - means)


def _through_jpeg(images: Floats, quality: int) -> Floats:
    """Returns images (N, C, H, W) as they come back from JPEG files, at Pillow's chroma subsampling."""
    return np.stack([_decoded(image, quality) for image in images])


def _decoded(image: Floats, quality: int) -> Floats:
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        array: Floats = np.asarray(decoded, np.float32) / np.float32(255)
    return array.transpose(2, 0, 1) if array.ndim == 3 else array[None]
