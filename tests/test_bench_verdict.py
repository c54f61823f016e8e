"""Which file is shipped, and the sentences that say so."""

import dataclasses

import numpy as np
import pytest

from edc.benchmark.judge.rows import Against, Row
from edc.benchmark.judge.statistics import AccuracyComparison, Estimate
from edc.benchmark.judge.verdict import loss_difference, row_to_ship, verdict_on
from edc.benchmark.saved.old import subject_of_label
from edc.deploy.onnx.parity import PairedAccuracy
from edc.subject import Subject

STUDENTS = {
    "kd on onnxruntime": "fp32",
    "kd on openvino": "fp32",
    "kd (int8) on onnxruntime": "int8",
    "kd on torch": "fp32",
}


def accuracy_of(verdict):
    paired = PairedAccuracy(0.976, 0.976, 0.0, 1, 1, 1.0, 500)
    return AccuracyComparison(paired, Estimate(0.0, -0.008, 0.008), 0.005, 0.2, verdict)


def row_of(key, ms, *verdicts, batch=1):
    """A row of STUDENTS with one comparison for each verdict: with the ensemble, then with its fp32 file."""
    subject, backend = key.split(" on ")
    names = (("ensemble, merged", "ensemble"), (subject.removesuffix(" (int8)"), "fp32"))
    against = tuple(
        Against(f"{name} on {backend}", basis, Estimate(4.03, 3.95, 4.14), accuracy_of(verdict))
        for (name, basis), verdict in zip(names, verdicts, strict=False)
    )
    return Row(
        subject=subject_of_label(subject),
        backend=backend,
        batch=batch,
        p50_ms=Estimate(ms, None, None),
        against=against,
    )


ACC = dict.fromkeys(STUDENTS, 0.97)
ENSEMBLES = [
    Row(subject=Subject("ensemble", ensemble_form="merged"), backend=backend, batch=batch)
    for backend in ("onnxruntime", "openvino", "torch")
    for batch in (1, 64)
]


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
        [row, *ENSEMBLES], students=STUDENTS, files={row.key: "student.onnx"}, validation_acc=ACC, losses=losses, seed=0
    )
    assert found.sentences[:2] == (
        "kd is 4.03 (3.95-4.14) times as fast as the ensemble's best form (merged) in ONNX Runtime at batch 1, and "
        "right on 97.60 % of the test images where the ensemble is right on 97.60 %: 0.00 points (-0.80 to +0.80), "
        f"{words} at the 0.5-point margin.",
        "Of the student's files that keep its fp32 validation accuracy to 0.5 points, student.onnx in ONNX Runtime is "
        "the fastest at batch 1.",
    )
    assert found.sentences[2].startswith(
        "Each with its own temperature, its NLL is 0.200 and the ensemble's 0.100, a difference of +0.100 ("
    )
    assert len(found.sentences) == 3
    assert (found.row, found.baseline, found.batch) == (row.key, "ensemble, merged on onnxruntime", 1)


def said(rows, files):
    rows = [*rows, *ENSEMBLES]
    return verdict_on(rows, students=STUDENTS, files=files, validation_acc=ACC, losses={}, seed=0).sentences


def test_files_that_cannot_be_told_apart_and_faster_ones_at_other_batches_are_named():
    files = {"kd on onnxruntime": "a.onnx", "kd on openvino": "a.onnx", "kd (int8) on onnxruntime": "b.onnx"}
    rows = [row_of("kd on onnxruntime", 2.0, "worse"), row_of("kd on openvino", 2.1, "worse")]
    rows[0] = dataclasses.replace(rows[0], p50_ms=Estimate(2.0, 1.9, 2.1))
    rows[1] = dataclasses.replace(rows[1], p50_ms=Estimate(2.15, 2.05, 2.25))
    rows += [row_of("kd on onnxruntime", 9.0, "worse", batch=64), row_of("kd on openvino", 8.0, "worse", batch=64)]
    assert said(rows, files)[1].endswith(
        "a.onnx in ONNX Runtime is the fastest at batch 1 (a.onnx in OpenVINO cannot be told from it), "
        "a.onnx in OpenVINO is at batch 64."
    )
    both = said([rows[0], rows[2]], files)[1]
    assert both.endswith("a.onnx in ONNX Runtime is the fastest at batch 1 and at batch 64.")
    apart = dataclasses.replace(rows[1], p50_ms=Estimate(2.3, 2.15, 2.4))
    assert "cannot be told" not in said([rows[0], apart], files)[1]


def test_one_teacher_is_named_and_what_is_doubtful_about_the_speed():
    row = row_of("kd on onnxruntime", 2.0, "worse")
    teacher = Against("teacher 0 on onnxruntime", "teacher", Estimate(1.01, 0.99, 1.03), accuracy_of("undecided"))
    doubtful = dataclasses.replace(row.against[0], doubts=("9.00 times as fast with 4.00 times fewer FLOPs",))
    row = dataclasses.replace(row, against=(doubtful, teacher), flags=("noise: the coefficient of variation is 12%",))
    baseline = Row(
        subject=Subject("ensemble", ensemble_form="merged"), backend="onnxruntime", batch=1, flags=("drift: by 7 %",)
    )
    assert said([row, baseline], {})[-2:] == (
        "One teacher alone has 97.60 %: the student differs by 0.00 points (-0.80 to +0.80), not decided, at 1.01 "
        "(0.99-1.03) times its speed.",
        "Doubts about the speed: 9.00 times as fast with 4.00 times fewer FLOPs; flagged while it was measured: drift, "
        "noise.",
    )


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


def test_file_is_the_fastest_also_where_the_ensemble_cannot_run():
    """An ensemble with a TorchScript member runs in torch alone: the student's ONNX file is still what to ship."""
    on_torch, on_ort = row_of("kd on torch", 8.3, "not worse"), row_of("kd on onnxruntime", 0.31)
    assert shipped(on_torch, on_ort) == ("kd on onnxruntime", 1)
    sentences = said([on_torch, on_ort], {"kd on onnxruntime": "student.onnx"})
    assert "in PyTorch at batch 1" in sentences[0]
    assert "student.onnx in ONNX Runtime is the fastest at batch 1" in sentences[1]
