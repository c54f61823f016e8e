"""What predictions become: figures, diagrams, disagreements, curves."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make_tiny_run

from edc import metrics
from edc.benchmark.backends.contract import OnnxSource
from edc.benchmark.measure.curves import CurvePoint, training_curves
from edc.benchmark.measure.disagreements import disagreements
from edc.benchmark.measure.quality import Predictions, predict_all, score_all
from edc.benchmark.workers.pool import NotRun, RowSpec
from edc.data import DataSet, MemoryImages
from edc.metrics import reliability_bins
from edc.subject import Subject
from edc.teachers.ensemble import teacher_key

STUDENT = RowSpec(Subject("student", name="student"), "onnxruntime", OnnxSource(()))
ENSEMBLE = RowSpec(Subject("ensemble", ensemble_form="merged"), "onnxruntime", OnnxSource(()))
BROKEN = RowSpec(Subject("teacher", member=0), "onnxruntime", OnnxSource(()))


def images_of(labels):
    """Images whose pixels are their labels."""
    return MemoryImages(labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).clone(), labels)


@pytest.mark.parametrize(("limit", "num_images"), [(None, 60), (20, 20), (100, 60)])
def test_each_drawn_image_is_held_against_its_own_label(limit, num_images):
    """The pool here reads the label off the image, so anything but 100 % means that labels and images came apart."""
    images = images_of(torch.arange(60) % 4)
    data = DataSet(images, images, images, tuple("abcd"), (3, 8, 8), (0.5,) * 3, (0.5,) * 3)

    class Oracle:
        def predict(self, specs, batches):
            seen = np.concatenate([np.round(batch[:, 0, 0, 0] * 255).astype(int) for batch in batches])
            return {STUDENT: (10 * np.eye(4)[seen]).astype(np.float32)}

    predictions = predict_all(Oracle(), [STUDENT], data, limit=limit, seed=0)
    found = score_all(predictions, [STUDENT])
    assert found.quality[STUDENT].raw.acc == 1.0
    assert len(found.correct[STUDENT]) == num_images
    assert len(set(predictions.test_indices.tolist())) == num_images
    np.testing.assert_array_equal(predictions.test_indices % 4, predictions.test_labels)


def test_bins_are_those_that_the_calibration_error_sums_over():
    rng = np.random.default_rng(0)
    log_probs = metrics.log_probs_from_logits(rng.normal(size=(500, 6)) * 2)
    labels = rng.integers(6, size=500)
    bins = reliability_bins(log_probs, labels)
    assert len(bins) == 15
    assert sum(each.count for each in bins) == 500
    assert [(each.low, each.high) for each in bins] == [(i / 15, (i + 1) / 15) for i in range(15)]
    gaps = [each.count * abs(each.confidence - each.accuracy) for each in bins if each.count]
    assert sum(gaps) / 500 == pytest.approx(metrics.ece(log_probs, labels))
    assert all(each.low < each.confidence <= each.high for each in bins if each.count)
    empty = [each for each in bins if not each.count]
    assert empty
    assert all(each.confidence is each.accuracy is None for each in empty)


def predictions_of(outputs, labels):
    images = images_of(torch.from_numpy(labels))
    return Predictions(outputs, outputs, images, 7 + np.arange(len(labels)), labels, labels)


def two_rows(num_images=100):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=num_images)
    ensemble = (3 * np.eye(4)[labels] + rng.normal(size=(num_images, 4))).astype(np.float32)
    student = ensemble.copy()
    student[:30, :] = student[:30, ::-1]
    return predictions_of({STUDENT: student, ENSEMBLE: ensemble, BROKEN: NotRun("it broke")}, labels)


def test_losses_and_confidences_are_with_the_rows_own_temperature():
    predictions = two_rows()
    found = score_all(predictions, [STUDENT, ENSEMBLE, BROKEN])
    for spec in (STUDENT, ENSEMBLE):
        quality = found.quality[spec]
        logits = predictions.test[spec].astype(np.float64) / quality.calibration_temperature
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found.confidences[spec], probs.max(1))
        assert found.losses[spec].mean() == pytest.approx(quality.calibrated.nll)
        assert found.correct[spec].mean() == quality.raw.acc
    assert found.quality[ENSEMBLE].agreement == 1
    assert found.quality[STUDENT].agreement == (found.answers[STUDENT] == found.answers[ENSEMBLE]).mean() < 1
    assert found.quality[BROKEN] == NotRun("it broke")
    assert BROKEN not in found.correct


def test_agreement_is_with_the_ensemble_wherever_it_ran():
    """A TorchScript member keeps the ensemble in torch; what both answer can be compared all the same."""
    on_torch = RowSpec(ENSEMBLE.subject, "torch", ENSEMBLE.source)
    outputs = two_rows().test
    labels = two_rows().test_labels
    predictions = predictions_of({STUDENT: outputs[STUDENT], on_torch: outputs[ENSEMBLE]}, labels)
    found = score_all(predictions, [STUDENT, on_torch])
    assert found.quality[STUDENT].agreement == (found.answers[STUDENT] == found.answers[on_torch]).mean() < 1


def test_disagreements_show_images_on_which_the_answers_differ():
    predictions = two_rows()
    qualities = score_all(predictions, [STUDENT, ENSEMBLE])
    found = disagreements(predictions, qualities, student=STUDENT, ensemble=ENSEMBLE, seed=0)
    differ = np.flatnonzero(predictions.test[STUDENT].argmax(1) != predictions.test[ENSEMBLE].argmax(1))
    assert (found.num_images, found.num_disagree) == (100, len(differ))
    assert len(found.images) == 16 < len(differ)
    assert {image.index - 7 for image in found.images} <= set(differ.tolist())
    for image in found.images:
        row = image.index - 7
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.png_base64))))
        np.testing.assert_array_equal(pixels, np.full((8, 8, 3), image.label))
        assert image.label == predictions.test_labels[row]
        assert image.student.class_index == predictions.test[STUDENT][row].argmax()
        assert image.ensemble.class_index != image.student.class_index
        assert image.ensemble.probability == qualities.confidences[ENSEMBLE][row]
    labels = predictions.test_labels
    assert {image.label for image in found.images} == set(labels[differ].tolist()), "no class is left out"
    again = disagreements(predictions, qualities, student=STUDENT, ensemble=ENSEMBLE, seed=0)
    other = disagreements(predictions, qualities, student=STUDENT, ensemble=ENSEMBLE, seed=1)
    assert found == again != other


def test_grey_images_and_no_disagreement_at_all():
    labels = np.zeros(5, np.int64)
    logits = np.eye(4, dtype=np.float32)[labels]
    predictions = predictions_of({STUDENT: logits, ENSEMBLE: logits}, labels)
    qualities = score_all(predictions, [STUDENT, ENSEMBLE])
    found = disagreements(predictions, qualities, student=STUDENT, ensemble=ENSEMBLE, seed=0)
    assert (found.num_disagree, found.images) == (0, ())
    from edc.benchmark.measure.disagreements import png_base64

    grey = MemoryImages(torch.full((1, 1, 4, 6), 9, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    image = Image.open(io.BytesIO(base64.b64decode(png_base64(grey, 0))))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("L", (6, 4), 9)


def test_curves_are_the_runs_own_metrics(tmp_path):
    recipe, data = make_tiny_run(tmp_path / "runs/tiny")
    lines = [{"epoch": 0, "loss": 2.5, "validation_acc": 0.1, "seconds": 1}, {"epoch": 1, "loss": 2.25}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "runs/tiny/students/kd/metrics.jsonl").write_text(text + '{"epoch": 2, "lo')
    (tmp_path / "runs/teachers" / teacher_key(recipe, data, 1)[0] / "metrics.jsonl").write_text(text)
    curve = (CurvePoint(0, 2.5, 0.1), CurvePoint(1, 2.25, None))
    assert training_curves(tmp_path / "runs/tiny", recipe, data) == {
        Subject("teacher", member=1): curve,
        Subject("student", name="kd"): curve,
    }
    assert training_curves(tmp_path / "gone", recipe, data) == {}
