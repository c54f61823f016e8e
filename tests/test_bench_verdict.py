"""Which file is shipped, and the two sentences that say so."""

import dataclasses

import numpy as np
import pytest

from edc.bench.rows import Against, Row
from edc.bench.statistics import AccuracyComparison, Estimate
from edc.bench.verdict import loss_difference, row_to_ship, verdict_on
from edc.deploy.parity import PairedAccuracy

STUDENTS = {
    "kd on onnxruntime": "fp32",
    "kd on openvino": "fp32",
    "kd (int8) on onnxruntime": "int8",
    "kd on torch": "fp32",
}


def accuracy_of(verdict):
    paired = PairedAccuracy(0.976, 0.976, 0.0, 1, 1, 1.0, 500)
    return AccuracyComparison(paired, Estimate(0.0, -0.008, 0.008), 0.005, verdict)


def row_of(key, ms, *verdicts, batch=1):
    """A row of STUDENTS with one comparison for each verdict: with the ensemble, then with its fp32 file."""
    subject, backend = key.split(" on ")
    names = (("ensemble, merged", "ensemble"), (subject.removesuffix(" (int8)"), "fp32"))
    against = tuple(
        Against(f"{name} on {backend}", basis, Estimate(4.03, 3.95, 4.14), accuracy_of(verdict))
        for (name, basis), verdict in zip(names, verdicts, strict=False)
    )
    return Row(subject=subject, backend=backend, batch=batch, p50_ms=Estimate(ms, None, None), against=against)


ACC = dict.fromkeys(STUDENTS, 0.97)


def shipped(*rows, acc=ACC):
    found = row_to_ship(rows, students=STUDENTS, validation_acc=acc)
    return found and (found.key, found.batch)


def test_fastest_file_is_shipped_whatever_test_images_say():
    rows = (
        row_of("kd on onnxruntime", 2.0, "not worse"),
        row_of("kd on openvino", 3.0, "not worse"),
        row_of("kd (int8) on onnxruntime", 1.0, "worse", "worse"),
    )
    assert shipped(*rows) == ("kd (int8) on onnxruntime", 1)
    assert shipped(*rows[:2]) == ("kd on onnxruntime", 1)


@pytest.mark.parametrize(("acc", "chosen"), [(0.9651, "kd (int8) on onnxruntime"), (0.9649, "kd on onnxruntime")])
def test_eight_bits_may_lose_half_a_point_of_validation_accuracy(acc, chosen):
    fp32, int8 = row_of("kd on onnxruntime", 2.0, "worse"), row_of("kd (int8) on onnxruntime", 1.0, "not worse")
    assert shipped(fp32, int8, acc=ACC | {"kd (int8) on onnxruntime": acc})[0] == chosen


def test_torch_is_no_file_unless_there_is_nothing_else():
    torch = row_of("kd on torch", 0.1, "not worse")
    assert shipped(torch, row_of("kd on openvino", 2.0, "undecided")) == ("kd on openvino", 1)
    assert shipped(torch) == ("kd on torch", 1)


def test_speed_is_that_of_the_smallest_batch():
    rows = [row_of("kd on onnxruntime", ms, "not worse", batch=batch) for batch, ms in ((8, 5.0), (64, 1.0))]
    other = [row_of("kd on openvino", ms, "not worse", batch=batch) for batch, ms in ((8, 4.0), (64, 2.0))]
    assert shipped(*rows, *other) == ("kd on openvino", 8)


def test_no_verdict_without_a_student_and_an_ensemble_that_ran():
    assert shipped() is None
    assert shipped(row_of("kd on onnxruntime", 2.0)) is None
    broken = dataclasses.replace(row_of("kd on onnxruntime", 2.0, "not worse"), p50_ms=None)
    assert verdict_on([broken], students=STUDENTS, files={}, validation_acc=ACC, losses={}, seed=0) is None
    of_another_artifact = dataclasses.replace(row_of("kd on onnxruntime", 1.0, "not worse"), artifact="other")
    assert shipped(of_another_artifact) is None


@pytest.mark.parametrize(
    ("verdict", "words"), [("undecided", "not decided"), ("not worse", "not worse"), ("worse", "worse")]
)
def test_sentences_have_the_figures_and_their_intervals(verdict, words):
    row = row_of("kd on onnxruntime", 2.0, verdict)
    losses = {row.key: np.array([0.1, 0.3, 0.2]), "ensemble, merged on onnxruntime": np.array([0.1, 0.1, 0.1])}
    found = verdict_on(
        [row], students=STUDENTS, files={row.key: "student.onnx"}, validation_acc=ACC, losses=losses, seed=0
    )
    assert found.sentences[0] == (
        "kd is 4.03 (3.95-4.14) times as fast as the ensemble's best form (merged) in ONNX Runtime at batch 1, "
        f"with 0.00 points (-0.8 to +0.8) of accuracy: {words} at the 0.5-point margin."
    )
    assert found.sentences[1].startswith(
        "Each with its own temperature, its NLL is 0.200 and the ensemble's 0.100, a difference of +0.100 ("
    )
    assert found.sentences[1].endswith(
        "Ship student.onnx with ONNX Runtime: the fastest here that keeps its fp32 validation accuracy to 0.5 points."
    )
    assert (found.row, found.baseline, found.batch) == (row.key, "ensemble, merged on onnxruntime", 1)


def test_interval_of_a_difference_in_loss_is_paired():
    """Losses of images differ a hundredfold; their differences do not: a normal interval of the differences."""
    rng = np.random.default_rng(0)
    baseline = rng.exponential(10.0, 4000)
    change = rng.normal(0.02, 0.1, 4000)
    found = loss_difference(baseline + change, baseline, seed=0)
    half = 1.96 * change.std() / np.sqrt(4000)
    assert found.value == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=5e-4)
    assert loss_difference(baseline, baseline, seed=0) == Estimate(0.0, None, None)
