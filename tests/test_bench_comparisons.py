"""What each row is held to, and one correction for all tests."""

import numpy as np
import pytest
from scipy import stats

from edc.benchmark.backends.contract import OnnxSource
from edc.benchmark.judge.baselines import best_ensemble, compare_all, doubts_about, with_corrected_p
from edc.benchmark.judge.rows import Row
from edc.benchmark.judge.statistics import Estimate
from edc.benchmark.saved.old import subject_of_label
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing
from edc.benchmark.workers.timing import RowSamples, WarmUp

MS = {
    ("ensemble, in turn", "torch"): 9,
    ("kd", "torch"): 3,
    ("ensemble, in turn", "onnxruntime"): 5,
    ("ensemble, merged", "onnxruntime"): 4,
    ("kd", "onnxruntime"): 1,
    ("ensemble, merged (int8)", "onnxruntime"): 2,
    ("kd (int8)", "onnxruntime"): 0.5,
    ("kd", "openvino"): 1,
    ("ensemble, merged", "openvino-bf16"): 3,
    ("kd", "openvino-bf16"): 0.8,
}


def spec_of(subject, backend, artifact=None):
    return RowSpec(subject_of_label(subject), backend, OnnxSource(()), artifact)


def timing_of(ms):
    rounds = {r: np.full(10, int(ms * 1e6)) for r in range(6)}
    return Timing(1, RowSamples(rounds), WarmUp(3, is_stable=True, run_ns=1), None)


SPECS = {key: spec_of(*key) for key in MS}
TIMINGS = {SPECS[key]: timing_of(ms) for key, ms in MS.items()}


def compared(timings=TIMINGS, correct=None):
    found = compare_all(list(timings), timings, correct or {}, seed=0)
    return {
        spec.key: {against.basis: (against.baseline, against.speedup.value) for against in of_spec}
        for spec, of_spec in found.items()
    }


def test_each_row_is_held_to_the_ensemble_here_and_in_torch_and_to_its_own_fp32_file():
    found = compared()
    in_torch = "ensemble, in turn on torch"
    assert found["kd on onnxruntime"] == {
        "ensemble": ("ensemble, merged on onnxruntime", 4),
        "ensemble in torch": (in_torch, 9),
    }
    assert found["kd (int8) on onnxruntime"] == {
        "ensemble": ("ensemble, merged (int8) on onnxruntime", 4),
        "ensemble in torch": (in_torch, 18),
        "fp32": ("kd on onnxruntime", 2),
    }
    assert found["kd on torch"] == {"ensemble": (in_torch, 3)}
    assert found["ensemble, in turn on torch"] == {}
    assert found["ensemble, in turn on onnxruntime"]["ensemble"] == ("ensemble, merged on onnxruntime", 0.8)
    assert found["kd on openvino"] == {"ensemble in torch": (in_torch, 9)}
    assert found["kd on openvino-bf16"]["ensemble"] == ("ensemble, merged on openvino-bf16", pytest.approx(3.75))
    assert found["kd on openvino-bf16"]["fp32"] == ("kd on openvino", 1.25)


def test_ensemble_of_another_artifact_is_no_baseline():
    other = spec_of("ensemble, merged", "onnxruntime", "other")
    student = spec_of("kd", "onnxruntime", "other")
    timings = TIMINGS | {other: timing_of(0.1), student: timing_of(2)}
    found = compared(timings)
    assert found["other: kd on onnxruntime"]["ensemble"] == ("ensemble, merged on onnxruntime", 2)
    assert found["other: ensemble, merged on onnxruntime"]["ensemble"] == ("ensemble, merged on onnxruntime", 40)
    assert best_ensemble(list(timings), timings, backend="onnxruntime") == SPECS["ensemble, merged", "onnxruntime"]


def test_form_of_the_ensemble_that_did_not_run_is_no_baseline():
    timings = TIMINGS | {SPECS["ensemble, merged", "onnxruntime"]: NotRun("out of memory")}
    assert compared({s: t for s, t in timings.items() if not isinstance(t, NotRun)})["kd on onnxruntime"][
        "ensemble"
    ] == ("ensemble, in turn on onnxruntime", 5)
    assert best_ensemble(list(timings), timings, backend="onnxruntime").subject.label == "ensemble, in turn"


def masks(num_lost, num_gained):
    reference = np.repeat([True, False, True], [num_lost, num_gained, 400])
    return reference, np.repeat([False, True, True], [num_lost, num_gained, 400])


def test_forms_of_one_ensemble_are_not_tested_against_each_other():
    right = np.ones(100, bool)
    found = compare_all(list(SPECS.values()), TIMINGS, dict.fromkeys(SPECS.values(), right), seed=0)
    for spec, of_spec in found.items():
        for against in of_spec:
            one_function = spec.subject.is_ensemble and spec.precision == "fp32"
            assert (against.accuracy is None) == (one_function or against.basis == "ensemble in torch")


def test_accuracy_is_against_the_ensemble_in_fp32_whatever_the_precision_of_the_row():
    """Eight bits that damage student and ensemble alike must not hide behind each other."""
    whole, damaged = np.ones(100, bool), np.arange(100) >= 20
    correct = {spec: damaged if spec.precision == "int8" else whole for spec in SPECS.values()}
    (against,) = (
        each
        for each in compare_all(list(SPECS.values()), TIMINGS, correct, seed=0)[SPECS["kd (int8)", "onnxruntime"]]
        if each.basis == "ensemble"
    )
    assert (against.baseline, against.speedup.value) == ("ensemble, merged (int8) on onnxruntime", 4)
    assert against.accuracy_baseline == "ensemble, merged on onnxruntime"
    assert against.accuracy.difference.value == -0.2


def test_student_is_held_to_one_teacher_and_to_the_flops_that_were_saved():
    teacher = spec_of("teacher 0", "onnxruntime")
    student, ensemble = SPECS["kd", "onnxruntime"], SPECS["ensemble, merged", "onnxruntime"]
    timings = TIMINGS | {teacher: timing_of(2)}
    flops = {teacher.key: 300, student.key: 100, ensemble.key: 1200}
    found = compare_all(
        list(timings), timings, {teacher: np.ones(9, bool), student: np.ones(9, bool)}, seed=0, flops=flops
    )
    by_basis = {against.basis: against for against in found[student]}
    assert (by_basis["teacher"].baseline, by_basis["teacher"].speedup.value) == (teacher.key, 2)
    assert by_basis["teacher"].accuracy.difference.value == 0
    assert (by_basis["teacher"].flops_ratio, by_basis["ensemble"].flops_ratio) == (3, 12)
    assert by_basis["ensemble"].throughput_ratio == pytest.approx(4)
    assert {against.basis for against in found[ensemble]} == {"ensemble in torch"}


def test_speed_that_throughput_or_flops_contradict_is_doubted():
    assert doubts_about(Estimate(4.0, 3.9, 4.1), flops_ratio=4.0, throughput_ratio=3.8) == ()
    assert doubts_about(Estimate(2.0, 1.9, 2.1), flops_ratio=4.0, throughput_ratio=2.0) == ()  # slower is no wonder
    assert doubts_about(Estimate(9.6, 7.3, 11.2), flops_ratio=4.0, throughput_ratio=3.4) == (
        "9.60 times as fast by medians, 3.40 times by images per second",
        "9.60 times as fast with 4.00 times fewer FLOPs",
    )
    assert doubts_about(None, flops_ratio=4.0, throughput_ratio=None) == ()
    assert doubts_about(Estimate(0.13, 0.12, 0.14), flops_ratio=0.01, throughput_ratio=0.13) == ()  # tiny teachers


def test_verdicts_of_many_rows_follow_the_corrected_test():
    """A difference that alone is decided is not, among forty that are not."""
    reference = np.ones(2000, bool)
    little = reference.copy()
    little[:24] = False  # 1.2 points: alone, worse at 0.5
    students = [spec_of(f"s{number}", "onnxruntime") for number in range(40)]
    ensemble = SPECS["ensemble, merged", "onnxruntime"]
    timings = {ensemble: timing_of(4)} | {student: timing_of(1) for student in students}
    half = np.arange(2000) >= 10  # exactly the margin: undecided
    correct = {ensemble: reference} | dict.fromkeys(students, half) | {students[0]: little}
    found = compare_all(list(timings), timings, correct, seed=0)
    rows = with_corrected_p([Row(s.subject, s.backend, 1, against=found[s]) for s in students])
    assert found[students[0]][0].accuracy.verdict == "worse"
    assert found[students[0]][0].accuracy.p_margin == pytest.approx(
        2 * stats.norm.cdf(-0.007 / np.sqrt(0.012 * 0.988 / 2000)), abs=2e-3
    )
    assert {row.against[0].accuracy.verdict for row in rows} == {"undecided"}
    corrected = [row.against[0].accuracy.p_margin_corrected for row in rows]
    assert corrected[0] == pytest.approx(40 * found[students[0]][0].accuracy.p_margin)


def test_every_p_is_corrected_once_for_all_tests_of_the_bench_whatever_the_batches():
    reference, student = masks(30, 10)
    other = reference.copy()
    other[40:52] = False
    correct = {
        SPECS["ensemble, merged", "onnxruntime"]: reference,
        SPECS["ensemble, in turn", "torch"]: reference,
        SPECS["kd", "onnxruntime"]: student,
        SPECS["kd", "torch"]: other,
    }
    rows = []
    for batch in (1, 64):
        found = compare_all(list(SPECS.values()), TIMINGS, correct, seed=0)
        rows += [Row(spec.subject, spec.backend, batch, against=of_spec) for spec, of_spec in found.items()]
    tests = {
        (row.key, against.accuracy_baseline): against.accuracy
        for row in with_corrected_p(rows)
        for against in row.against
        if against.accuracy is not None
    }
    raw = {key: accuracy.paired.p_value for key, accuracy in tests.items()}
    assert len(raw) == 2  # not also the ensemble here against the one in torch, which is the same function
    assert raw["kd on onnxruntime", "ensemble, merged on onnxruntime"] == pytest.approx(
        stats.binomtest(10, 40, 0.5).pvalue
    )
    order = sorted(raw, key=raw.get)
    largest = 0.0
    for rank, key in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * raw[key]))
        assert tests[key].p_corrected == pytest.approx(largest)
