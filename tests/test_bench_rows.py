"""From samples and predictions to the row that tables and bench.json show."""

import dataclasses
import json
import math
import mmap
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import norm
from tiny_onnx import tiny_images, write_tiny_onnx

from edc.benchmark.backends import open_backend
from edc.benchmark.backends.contract import OnnxSource, WhatRan
from edc.benchmark.environment import environment_now
from edc.benchmark.judge.rows import Against, Row, fastest, quality_of, row_of, speedup
from edc.benchmark.judge.statistics import MEDIAN_SPREAD, RATIO_SPREAD, Estimate, compare_accuracy
from edc.benchmark.saved.old import subject_of_label
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing
from edc.benchmark.workers.protocol import Load, LoadReport, WarmUpRow
from edc.benchmark.workers.timing import RowSamples, TimingPlan, WarmUp
from edc.benchmark.workers.worker import Worker
from edc.subject import Subject
from edc.system.peak_memory import peak_growth

LOAD = LoadReport(
    WhatRan("CPUExecutionProvider", "fp32", "1.31", 1), file_bytes=1000, load_ms=5.0, first_inference_ms=2.0
)


def of_steady(value, spread, confidence):
    """A figure whose samples are all equal: what is left is what benches differ by."""
    factor = math.exp(norm.ppf(confidence) * spread)
    return Estimate(value, pytest.approx(value / factor, rel=1e-12), pytest.approx(value * factor, rel=1e-12))


def test_two_sources_of_spread_add_up_as_independent_ones_do():
    found = Estimate(2.0, 1.9, None).widened(0.02, confidence=0.99)
    expected = 2.0 * math.exp(-math.hypot(math.log(2.0 / 1.9), 2.3263478740408408 * 0.02))
    assert found == Estimate(2.0, pytest.approx(expected, rel=1e-12), None)


def spec_of(subject):
    return RowSpec(subject_of_label(subject), "onnxruntime", OnnxSource(()))


def timing_of(ms, num_runs=100, batch=1):
    rounds = {r: np.full(num_runs // 10, int(ms * 1e6)) for r in range(10)}
    return Timing(batch, RowSamples(rounds), WarmUp(9, is_stable=True, run_ns=int(ms * 1e6)), peak_memory_bytes=4096)


def test_a_row_holds_what_was_measured():
    row = row_of(spec_of("student"), batch=8, load=LOAD, timing=timing_of(2.0, batch=8))
    assert row.p50_ms == row.p90_ms == of_steady(2.0, MEDIAN_SPREAD, 0.99)
    assert row.p99_ms is None  # a hundred samples are no p99
    assert row.images_per_second == pytest.approx(8 / 0.002)
    assert (row.load_ms, row.first_inference_ms, row.file_bytes, row.peak_memory_bytes) == (5.0, 2.0, 1000, 4096)
    assert row.latency_quantiles_ms == (2.0,) * 101
    assert row.round_medians_ms == {str(r): 2.0 for r in range(10)}
    assert (row.precision, row.num_samples, row.flags, row.reason_not_run) == ("fp32", 100, (), None)


def test_a_row_holds_the_median_of_each_part_that_a_gpu_tells():
    parts = {
        "copy_in": RowSamples({0: np.arange(1, 100) * 1000, 1: np.arange(101, 202) * 1000}),
        "compute": RowSamples({0: np.full(50, 2_000_000), 1: np.full(50, 2_000_000)}),
        "enqueue": RowSamples({0: np.full(3, 5000)}),
    }
    timing = dataclasses.replace(timing_of(2.0), parts=parts)
    found = row_of(spec_of("student"), batch=1, load=LOAD, timing=timing).parts_ms
    assert found.keys() == parts.keys()
    median = np.median(np.delete(np.arange(1, 202), 99)) / 1000
    assert found["copy_in"].value == pytest.approx(median)
    assert found["copy_in"].low < median < (found["copy_in"].high or np.inf)
    assert found["compute"] == of_steady(2.0, MEDIAN_SPREAD, 0.99)
    assert found["enqueue"] is None  # three samples are no median with an interval
    assert row_of(spec_of("student"), batch=1, load=LOAD, timing=timing_of(2.0)).to_json()["parts_ms"] == {}


def test_a_row_of_another_artifact_says_whose_it_is():
    spec = dataclasses.replace(spec_of("student"), artifact="other")
    for load in (LOAD, NotRun("not there")):
        row = row_of(spec, batch=1, load=load)
        assert (row.artifact, row.key) == ("other", spec.key) == ("other", "other: student on onnxruntime")


def test_memory_is_measured_only_where_it_is_asked_for(tmp_path):
    worker = Worker(open_backend("onnxruntime", threads=1), tiny_images(16), threads=1)
    worker.load(Load("row", OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,))))
    num_loads, load = [], worker.backend.load
    worker.backend.load = lambda subject: num_loads.append(1) or load(subject)
    plan = TimingPlan(window_ms=0.5, max_windows=3)
    assert worker.warm_up(WarmUpRow("row", 1, plan, with_memory=False)).peak_memory_bytes is None
    assert not num_loads
    worker.warm_up(WarmUpRow("row", 1, plan))
    assert num_loads


def test_a_row_that_did_not_run_says_why_and_has_no_figures():
    row = row_of(spec_of("student"), batch=1, load=NotRun("not there"), timing=NotRun("later"), quality=NotRun("later"))
    assert row == Row(
        subject=Subject("student", name="student"), backend="onnxruntime", batch=1, reason_not_run="not there"
    )
    row = row_of(spec_of("student"), batch=64, load=LOAD, timing=NotRun("out of memory"))
    assert row.reason_not_run == "out of memory"
    assert row.load_ms == 5.0


def test_rows_become_json_and_nothing_is_lost():
    correct = np.array([True] * 40 + [False] * 10)
    against = Against(
        "ensemble on torch", "ensemble", Estimate(4.0, None, 5.0), compare_accuracy(correct, correct, seed=0)
    )
    logits = np.eye(5, dtype=np.float32)[np.arange(50) % 5] * 3
    quality = quality_of(logits, np.arange(50) % 5, ensemble_outputs=logits)
    row = row_of(spec_of("student"), batch=1, load=LOAD, timing=timing_of(2.0), quality=quality, against=[against])
    document = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert document == row.to_json()
    assert document["precision"] == document["what_ran"]["precision"] == "fp32"
    assert document["p50_ms"] == asdict(of_steady(2.0, MEDIAN_SPREAD, 0.99))
    assert document["against"][0]["speedup"] == {"value": 4.0, "low": None, "high": 5.0}
    assert document["against"][0]["accuracy"]["verdict"] == "undecided"
    assert document["quality"]["raw"]["acc"] == document["quality"]["agreement"] == 1.0


def test_quality_is_of_probabilities_whether_logits_or_their_logarithms_come_in():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(4, size=60)
    log_probs = (logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))).astype(np.float32)
    a, b = (
        quality_of(x, labels, validation_outputs=x[::-1], validation_labels=labels[::-1], ensemble_outputs=-logits)
        for x in (logits, log_probs)
    )
    assert a.raw.nll == pytest.approx(b.raw.nll, rel=1e-6)
    assert a.raw.nll == pytest.approx(-log_probs[np.arange(60), labels].mean(), rel=1e-6)
    assert a.calibrated.nll == pytest.approx(b.calibrated.nll, rel=1e-6)
    assert a.calibrated.nll <= a.raw.nll  # fitted on the same images, in another order
    assert a.agreement == np.mean(logits.argmax(1) == logits.argmin(1)) == 0
    assert quality_of(logits, labels).calibrated is None


def test_the_baseline_is_the_fastest_form_that_ran():
    in_turn, merged, broken = spec_of("in turn"), spec_of("merged"), spec_of("broken")
    timings = {in_turn: timing_of(4.0), merged: timing_of(3.0), broken: NotRun("no file")}
    assert fastest(timings) == merged
    assert fastest({broken: timings[broken]}) is None
    assert speedup(timings[merged], timing_of(1.0), seed=0) == of_steady(3.0, RATIO_SPREAD, 0.975)
    assert speedup(timings[broken], timings[merged], seed=0) is None


def test_memory_of_a_block_is_what_it_adds_at_its_peak():
    before = np.ones(4_000_000)
    with peak_growth() as unused:
        pass
    with peak_growth() as memory:
        for num_bytes in (20_000_000, 10_000_000):
            # Straight from the system: whether malloc gives freed memory back depends on what else the process loaded.
            with mmap.mmap(-1, num_bytes) as block:
                pages = np.frombuffer(block, np.uint8)
                pages[:] = 1
                del pages
    del before
    if memory.peak_bytes is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert unused.peak_bytes < 1e6
    assert 18e6 < memory.peak_bytes < 24e6


def test_memory_of_a_row_does_not_depend_on_what_the_worker_did_before(tmp_path):
    subject = OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,))
    worker = Worker(open_backend("onnxruntime", threads=1), tiny_images(16), threads=1)
    worker.sources["row"] = subject
    worker.loaded["row"] = worker.backend.load(subject)
    plan = TimingPlan(window_ms=0.5, max_windows=3)
    small = worker.warm_up(WarmUpRow("row", 1, plan)).peak_memory_bytes
    large = worker.warm_up(WarmUpRow("row", 8192, plan)).peak_memory_bytes
    again = worker.warm_up(WarmUpRow("row", 1, plan)).peak_memory_bytes
    if small is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert large > 8192 * 4 * 64 * 4  # the hidden activations alone
    assert again < large / 4


def test_threads_that_the_library_did_not_give_are_flagged(tmp_path):
    subject = OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,))
    worker = Worker(open_backend("onnxruntime", threads=1), tiny_images(16), threads=4)
    report = worker.load(Load("row", subject))
    assert report.flags == ("threads: 1, where 4 were asked for",)
    assert row_of(spec_of("row"), batch=1, load=report, timing=timing_of(1.0)).flags == report.flags


def test_environment_names_the_machine_and_flags_a_busy_one(monkeypatch):
    monkeypatch.setattr("edc.benchmark.environment.processors_in_use", lambda: 0.1)
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.2, 0.3))
    quiet = environment_now(threads=1)
    assert quiet.flags == quiet.at_end().flags == ()
    assert quiet.packages.keys() >= {"torch", "numpy"}
    assert quiet.num_cpus >= 1
    assert quiet.cpu
    monkeypatch.setattr("edc.benchmark.environment.processors_in_use", lambda: 1.26)
    busy = environment_now(threads=10_000).at_end()
    assert busy.flags[0] == "busy machine: other programs used 1.3 processors before the bench began"
    assert "10000 threads on" in busy.flags[1]
    assert busy.flags[2] == "busy machine: other programs used 1.3 processors after it ended"
    monkeypatch.setattr("os.getloadavg", lambda: (3.5, 0.2, 0.3))
    document = json.loads(json.dumps(quiet.at_end().to_json(), allow_nan=False))
    assert document["load_at_start"] == [0.1, 0.2, 0.3]
    assert document["load_at_end"] == [3.5, 0.2, 0.3]
    assert document["ended"] >= document["started"]
