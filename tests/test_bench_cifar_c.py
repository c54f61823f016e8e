"""Corruptions of CIFAR-10-C: the published constants, and what they do to pixels by independent implementations."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from edc.benchmark.measure.cifar_c import CIFAR_C_KINDS
from edc.benchmark.measure.corruptions import EDC_KINDS, SEVERITIES, corrupt, kinds_for
from edc.benchmark.measure.robustness import levels_for
from edc.errors import RequestError

# By severity, copied once more from make_cifar_c.py of github.com/hendrycks/robustness.
NOISE_STD = dict(zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True))
DISK = dict(zip(SEVERITIES, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), strict=True))
BRIGHTNESS = dict(zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True))
CONTRAST = dict(zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True))
QUALITY = dict(zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True))


def photographs(num_images: int) -> np.ndarray:
    """Smooth images with sharp edges, as uint8 pixels / 255, with black and white corners."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, size=(num_images, 3, 8, 8), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=2).repeat(4, axis=3)
    pixels[:, :, :2, :2], pixels[:, :, -2:, -2:] = 0, 255
    return (pixels / 255).astype(np.float32)


def levels(images: np.ndarray) -> np.ndarray:
    """Pixels as the whole numbers that they stand for."""
    numbers = images.astype(np.float64) * 255
    np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-4)
    return np.rint(numbers)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_published_spread(severity: int):
    images = np.full((100, 3, 32, 32), 128 / 255, np.float32)
    noise = levels(corrupt(images, "gaussian_noise", severity, seed=0)) - 128
    rounding = 1 / 12  # variance of what rounding down to whole numbers takes away, which is half a one in the mean
    assert noise.std() == pytest.approx(np.hypot(255 * NOISE_STD[severity], np.sqrt(rounding)), rel=0.01)
    assert noise.mean() == pytest.approx(-0.5, abs=4 * noise.std() / np.sqrt(noise.size))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_the_smoothed_disk_and_mirrors_the_border(severity: int):
    radius, edge_std = DISK[severity]
    grid = np.arange(-8, 9)
    disk = np.array([[float(x * x + y * y <= radius**2) for x in grid] for y in grid])
    weights = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * edge_std**2))
    weights /= weights.sum()
    for axis in (0, 1):
        disk = sum(weight * np.roll(disk, shift, axis) for weight, shift in zip(weights, (-1, 0, 1), strict=True))
    disk /= disk.sum()
    images = photographs(2)
    padded = np.pad(levels(images) / 255, ((0, 0), (0, 0), (8, 8), (8, 8)), mode="reflect")
    expected = sum(disk[y, x] * padded[:, :, y : y + 32, x : x + 32] for y in range(17) for x in range(17))
    found = levels(corrupt(images, "defocus_blur", severity, seed=0))
    np.testing.assert_array_equal(found, np.floor(255 * expected + 1e-6))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_added_to_the_value_of_hsv(severity: int):
    images = photographs(3)
    found = levels(corrupt(images, "brightness", severity, seed=0))
    for image, result in zip(levels(images) / 255, found, strict=True):
        for y, x in np.ndindex(32, 32):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x])
            expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + BRIGHTNESS[severity]))
            assert result[:, y, x].tolist() == np.floor(255 * np.array(expected) + 1e-6).tolist()
    black = corrupt(np.zeros((1, 3, 32, 32), np.float32), "brightness", severity, seed=0)
    assert np.unique(levels(black)) == [np.floor(255 * BRIGHTNESS[severity] + 1e-9)]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_leaves_the_published_share_and_the_mean_of_each_channel(severity: int):
    images = photographs(3)
    found = levels(corrupt(images, "contrast", severity, seed=0))
    for image, result in zip(levels(images) / 255, found, strict=True):
        for channel, faded in zip(255 * image, result, strict=True):
            mean = channel.sum() / 1024
            expected = mean + CONTRAST[severity] * (channel - mean)
            np.testing.assert_array_equal(faded, np.floor(expected + 1e-6))
            assert -1 <= faded.mean() - mean <= 0


def test_jpeg_compression_is_pillows_at_the_published_quality():
    images = photographs(3)
    for severity, quality in QUALITY.items():
        for image, result in zip(images, corrupt(images, "jpeg_compression", severity, seed=0), strict=True):
            file = io.BytesIO()
            pixels = np.round(255 * image).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(io.BytesIO(file.getvalue()))).transpose(2, 0, 1)
            np.testing.assert_array_equal(levels(result), expected)


@pytest.mark.parametrize("kind", CIFAR_C_KINDS)
def test_an_image_is_corrupted_alike_in_any_batch_and_more_at_higher_severities(kind):
    images = photographs(10)
    before = images.copy()
    whole = corrupt(images, kind, 3, seed=5)
    pieces = [corrupt(images[start : start + 3], kind, 3, seed=5, first_index=start) for start in range(0, 10, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    np.testing.assert_array_equal(images, before)
    assert (whole.dtype, whole.shape) == (np.float32, images.shape)
    distances = [np.abs(corrupt(images, kind, severity, seed=0) - images).mean() for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert len(set(distances)) == 5


def test_published_names_are_for_the_shape_whose_constants_were_published():
    assert kinds_for((3, 32, 32)) == CIFAR_C_KINDS
    for shape in ((1, 32, 32), (3, 8, 8), (3, 224, 224), (3, 32, 33)):
        assert kinds_for(shape) == EDC_KINDS
    assert all(kind.startswith("edc_") for kind in EDC_KINDS)
    assert len(levels_for((3, 32, 32))) == 1 + 5 * 5
    with pytest.raises(RequestError, match=r"images: have shape \(2, 3, 8, 8\), where contrast of CIFAR-10-C expects"):
        corrupt(np.zeros((2, 3, 8, 8), np.float32), "contrast", 1, seed=0)
