"""Corrupted images: what each kind does, that batches do not matter, and quality with the clean temperature."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_onnx import CHANNELS, NUM_CLASSES, SIZE, tiny_images, write_tiny_onnx

from edc.benchmark.backends.contract import OnnxSource, TorchSource
from edc.benchmark.judge.statistics import compare_accuracy
from edc.benchmark.measure.corruptions import (
    BLUR_SHARE,
    CONTRAST,
    EDC_KINDS,
    JPEG_QUALITY,
    LEAST_BLUR,
    NOISE_STD,
    SEVERITIES,
    corrupt,
)
from edc.benchmark.measure.robustness import levels_for, robustness, robustness_of, robustness_specs, robustness_subset
from edc.benchmark.saved.old import subject_of_label
from edc.benchmark.workers.pool import RowSpec, WorkerPool
from edc.data import MemoryImages
from edc.errors import RequestError


def smooth_images(num_images: int, channels: int, side: int) -> np.ndarray:
    """Random low-frequency images in [0.2, 0.8], so that mild noise is not cut off."""
    coarse = np.random.default_rng(3).random((num_images, channels, 4, 4))
    images = coarse.repeat(side // 4, axis=2).repeat(side // 4, axis=3)
    return (0.2 + 0.6 * images).astype(np.float32)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_stated_spread_and_no_mean(severity: int):
    images = np.full((20, 3, 64, 64), 0.5, np.float32)
    noise = corrupt(images, "edc_noise", severity, seed=0).astype(np.float64) - 0.5
    assert noise.std() == pytest.approx(NOISE_STD[severity - 1], rel=0.01)
    assert abs(noise.mean()) < 4 * NOISE_STD[severity - 1] / np.sqrt(noise.size)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("side", [8, 32, 96])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_a_gaussian_whose_width_follows_the_size_of_the_image(side: int, severity: int):
    images = np.random.default_rng(6).random((2, 3, side, side), np.float32)
    sigma = LEAST_BLUR + BLUR_SHARE[severity - 1] * side
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    expected = images.astype(np.float64)
    for axis in (2, 3):
        width = [(radius, radius) if number == axis else (0, 0) for number in range(4)]
        padded = np.pad(expected, width, mode="edge")
        expected = sum(
            weight * np.take(padded, range(shift, shift + side), axis=axis) for shift, weight in enumerate(weights)
        )
    np.testing.assert_allclose(corrupt(images, "edc_blur", severity, seed=0), expected, atol=2e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_draws_pixels_to_the_mean_of_their_channel(severity: int):
    images = smooth_images(3, 3, 8)
    corrupted = corrupt(images, "edc_contrast", severity, seed=0)
    for image, result in zip(images, corrupted, strict=True):
        for channel, faded in zip(image, result, strict=True):
            mean = sum(channel.ravel().tolist()) / channel.size
            np.testing.assert_allclose(faded, mean + CONTRAST[severity - 1] * (channel - mean), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_what_pillow_writes_and_reads(mode: str):
    images = np.random.default_rng(1).random((3, len(Image.new(mode, (1, 1)).getbands()), 16, 24), np.float32)
    for severity, quality in zip(SEVERITIES, JPEG_QUALITY, strict=True):
        corrupted = corrupt(images, "edc_jpeg", severity, seed=0)
        for image, result in zip(images, corrupted, strict=True):
            bands = [Image.fromarray(np.round(255 * channel).astype(np.uint8)) for channel in image]
            file = io.BytesIO()
            Image.merge(mode, bands).save(file, format="JPEG", quality=quality)
            decoded = Image.open(io.BytesIO(file.getvalue())).split()
            for channel, band in zip(result, decoded, strict=True):
                assert np.array_equal(np.rint(channel * 255), np.asarray(band))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", EDC_KINDS)
def test_an_image_is_corrupted_alike_in_any_batch_and_the_input_is_left_alone(kind, channels: int):
    images = smooth_images(10, channels, 8)
    before = images.copy()
    whole = corrupt(images, kind, 3, seed=5)
    pieces = [corrupt(images[start : start + 3], kind, 3, seed=5, first_index=start) for start in range(0, 10, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    np.testing.assert_array_equal(images, before)
    assert (whole.dtype, whole.shape) == (np.float32, images.shape)
    assert 0 <= whole.min() < whole.max() <= 1


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("kind", EDC_KINDS)
def test_higher_severities_change_images_more_and_the_first_one_does_already(kind, side: int):
    images = np.random.default_rng(2).random((30, 1, side, side), np.float32)
    distances = [float(np.abs(corrupt(images, kind, severity, seed=0) - images).mean()) for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[0] > 1 / 255
    assert len(set(distances)) == 5


def test_another_seed_is_other_noise():
    images = smooth_images(2, 1, 8)
    first, second = (corrupt(images, "edc_noise", 1, seed=seed) for seed in (0, 1))
    assert (first != second).mean() > 0.99


@pytest.mark.parametrize(
    ("shape", "severity", "message"),
    [
        ((2, 3, 8, 8), 0, "severity: 0, where 1 to 5 are expected"),
        ((2, 3, 8, 8), 6, "severity: 6, where 1 to 5 are expected"),
        ((2, 4, 8, 8), 1, r"images: have shape \(2, 4, 8, 8\), where \(N, 1 or 3, H, W\)"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(shape, severity: int, message: str):
    with pytest.raises(RequestError, match=message):
        corrupt(np.zeros(shape, np.float32), "edc_blur", severity, seed=0)


def test_calibrated_figures_use_the_temperature_that_is_given():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(4, size=50)
    record = robustness_of(logits, labels, kind="edc_blur", severity=2, calibration_temperature=2.0)

    def nll(values: np.ndarray) -> float:
        probs = np.exp(values.astype(np.float64))
        return float(-np.log(probs[np.arange(50), labels] / probs.sum(1)).mean())

    assert (record["corruption"], record["severity"]) == ("edc_blur", 2)
    assert record["acc"] == np.mean(logits.argmax(1) == labels)
    assert record["nll"] == pytest.approx(nll(logits), rel=1e-9)
    assert record["calibrated_nll"] == pytest.approx(nll(logits / 2), rel=1e-6)
    without = robustness_of(logits, labels, kind="edc_blur", severity=2, calibration_temperature=None)
    assert without == record | dict.fromkeys(("calibrated_nll", "calibrated_ece", "calibrated_brier"))


def test_record_holds_the_row_against_the_ensemble_on_the_same_images():
    labels = np.array([0, 1, 2, 0])
    ensemble, row = (np.eye(3, dtype=np.float32)[answers] for answers in ([0, 1, 2, 1], [0, 1, 0, 0]))
    given = {"kind": "edc_blur", "severity": 1, "calibration_temperature": None}
    record = robustness_of(row, labels, **given, ensemble_outputs=ensemble, seed=3)
    assert (record["num_images"], record["agreement"]) == (4, 0.5)
    wanted = compare_accuracy(ensemble.argmax(1) == labels, row.argmax(1) == labels, seed=3).difference
    assert record["acc_difference"] == {"value": 0.0, "low": wanted.low, "high": wanted.high}
    alone = robustness_of(row, labels, **given)
    assert (alone["agreement"], alone["acc_difference"]) == (None, None)


def test_one_backend_of_each_subject_is_enough_and_students_in_8_bits_are_subjects():
    onnx, torch_source = OnnxSource(()), TorchSource(run=None, subject=None)  # type: ignore[arg-type]
    on_torch = [
        RowSpec(subject_of_label(name), "torch", torch_source)
        for name in ("teacher 0", "ensemble, in turn", "kd", "student")
    ]
    names = ("teacher 0", "ensemble, in turn", "ensemble, merged", "student", "student (int8)")
    on_openvino, on_ort = (
        [RowSpec(subject_of_label(name), backend, onnx) for name in names] for backend in ("openvino", "onnxruntime")
    )
    other = RowSpec(subject_of_label("student"), "openvino", onnx, artifact="other")
    chosen = robustness_specs([*on_torch, *on_openvino, *on_ort, other])
    assert [spec.key for spec in chosen] == [
        "kd on torch",
        "teacher 0 on onnxruntime",
        "ensemble, merged on onnxruntime",
        "student on onnxruntime",
        "student (int8) on onnxruntime",
        "other: student on openvino",
    ]
    assert [spec.key for spec in robustness_specs(on_torch)] == [spec.key for spec in on_torch]


def test_the_subset_is_drawn_in_order_and_small_for_large_images():
    num_images = 3000
    images = torch.arange(num_images).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    small = MemoryImages(images.to(torch.uint8), torch.arange(num_images))
    for quick, size in ((True, 500), (False, 2000)):
        indices = robustness_subset(small, quick=quick, seed=1).labels
        assert len(indices) == size
        assert (indices.diff() > 0).all()
        assert indices[-1] > 0.9 * num_images
    large = MemoryImages(torch.zeros((1, 1, 224, 224), dtype=torch.uint8).expand(num_images, -1, -1, -1), small.labels)
    assert len(robustness_subset(large, quick=False, seed=1)) == 334


def test_rows_are_run_over_every_corruption_of_the_same_images(tmp_path):
    member = write_tiny_onnx(tmp_path / "member.onnx")
    spec = RowSpec(subject_of_label("student"), "onnxruntime", OnnxSource((member.path,)))
    gone = RowSpec(subject_of_label("gone"), "onnxruntime", OnnxSource((tmp_path / "gone.onnx",)))
    pixels = np.random.default_rng(4).integers(256, size=(300, CHANNELS, SIZE, SIZE), dtype=np.uint8)
    labels = np.random.default_rng(5).integers(NUM_CLASSES, size=300)
    images = MemoryImages(torch.from_numpy(pixels), torch.from_numpy(labels))
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        for each in (spec, gone):
            pool.load(each)
        found = robustness(pool, [spec, gone], images, temperatures={spec: 1.5}, quick=True, seed=0)
    assert list(found) == [spec.key]
    records = found[spec.key]
    levels = levels_for((CHANNELS, SIZE, SIZE))
    assert [(record["corruption"], record["severity"]) for record in records] == list(levels)
    assert len(levels) == 1 + 4 * 5
    floats = pixels.astype(np.float32) / 255
    for record in records:  # 300 images are two batches
        kind, severity = record["corruption"], record["severity"]
        seen = floats if kind == "none" else corrupt(floats, kind, severity, seed=0)
        expected = robustness_of(member.logits(seen), labels, kind=kind, severity=severity, calibration_temperature=1.5)
        assert record == {
            key: value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=5e-4)
            for key, value in expected.items()
        }
