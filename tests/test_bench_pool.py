"""Workers: they compute, take turns, die, hang and are absent, and the bench goes on and says why."""

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import tiny_images, write_tiny_onnx
from tiny_run import make_tiny_run

from edc.benchmark.backends.contract import OnnxSource, TorchSource
from edc.benchmark.saved.old import subject_of_label
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.benchmark.workers.process import THREAD_VARIABLES
from edc.benchmark.workers.protocol import LoadReport
from edc.benchmark.workers.timing import TimingPlan
from edc.subject import Subject

PLAN = TimingPlan(seconds_per_row=0.05, num_rounds=10, window_ms=2.0, max_windows=10, settle_ms=0.1)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("onnx")
    return [write_tiny_onnx(folder / f"member{seed}.onnx", seed) for seed in range(3)]


def spec_of(subject: str, *members, backend="onnxruntime") -> RowSpec:
    return RowSpec(subject_of_label(subject), backend, OnnxSource(tuple(member.path for member in members)))


def kill(pool: WorkerPool) -> None:
    os.kill(pool._workers["onnxruntime"].pid, signal.SIGKILL)


def test_rows_are_loaded_predicted_and_timed(members):
    one, all_ = spec_of("one", members[0]), spec_of("ensemble", *members)
    images = tiny_images(50)
    with WorkerPool(images=images, threads=1) as pool:
        load = pool.load(one)
        assert isinstance(load, LoadReport)
        assert load.load_ms > 0
        assert load.first_inference_ms > 0
        assert (load.what_ran.threads, load.file_bytes) == (1, members[0].path.stat().st_size)
        pool.load(all_)
        outputs = pool.predict([one, all_], (images[start : start + 20] for start in range(0, 50, 20)))
        np.testing.assert_allclose(outputs[one], members[0].logits(images), rtol=1e-4, atol=1e-5)
        mean = np.mean([member.probs(images) for member in members], axis=0)
        np.testing.assert_allclose(outputs[all_], np.log(mean), rtol=1e-4, atol=1e-5)
        for batch in (1, 8):
            timings = pool.time([one, all_], batch=batch, plan=PLAN, seed=0)
            assert list(timings) == [one, all_]
            for timing in timings.values():
                assert isinstance(timing, Timing)
                assert timing.batch == batch
                assert len(timing.samples.rounds) == 10
                assert (timing.samples.all > 0).all()
        workers = list(pool._workers.values())
    assert not any(worker.is_alive for worker in workers)


def test_threads_are_in_the_environment_of_the_worker_and_not_left_in_ours(members, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        pool.load(spec_of("one", members[0]))
        content = Path(f"/proc/{pool._workers['onnxruntime'].pid}/environ")
        if content.exists():
            found = dict(entry.split("=", 1) for entry in content.read_text().split("\0") if "=" in entry)
            assert [found[name] for name in THREAD_VARIABLES] == ["1"] * 4
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_worker_killed_between_requests_costs_the_row_it_was_asked_for(members):
    specs = [spec_of(str(m), member) for m, member in enumerate(members)]
    images = tiny_images(16)
    with WorkerPool(images=images, threads=1) as pool:
        for spec in specs:
            pool.load(spec)
        kill(pool)
        outputs = pool.predict(specs, [images])
        assert isinstance(outputs[specs[0]], NotRun)
        assert outputs[specs[0]].reason.startswith("the onnxruntime worker died while predicting with 0 (SIGKILL")
        for m in (1, 2):  # loaded again into a new worker
            np.testing.assert_allclose(outputs[specs[m]], members[m].logits(images), rtol=1e-4, atol=1e-5)
        timings = pool.time(specs, batch=1, plan=PLAN, seed=0)
        assert timings[specs[0]] == outputs[specs[0]]
        assert len(timings[specs[1]].samples.rounds) == 10


def test_a_worker_killed_while_it_computes_costs_the_row_it_was_computing(members):
    specs = [spec_of("a", members[0]), spec_of("b", members[1])]
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        for spec in specs:
            pool.load(spec)
        timer = threading.Timer(0.7, kill, [pool])
        timer.start()
        plan = TimingPlan(seconds_per_row=1.0, num_rounds=8, window_ms=2.0, max_windows=3)
        timings = pool.time(specs, batch=1, plan=plan, seed=0)
        timer.join()
    lost = [timing for timing in timings.values() if isinstance(timing, NotRun)]
    kept = [timing for timing in timings.values() if isinstance(timing, Timing)]
    assert len(lost) == len(kept) == 1
    assert re.match("the onnxruntime worker died while (warming up|timing) [ab] ", lost[0].reason)
    assert len(kept[0].samples.rounds) == 8


def test_a_worker_that_does_not_answer_is_ended(members):
    spec = spec_of("one", members[0])
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        pool.load(spec)
        pool._workers["onnxruntime"].limit_s = 0.2
        os.kill(pool._workers["onnxruntime"].pid, signal.SIGSTOP)
        outputs = pool.predict([spec], [tiny_images(2)])
    assert outputs[spec] == NotRun("the onnxruntime worker gave no answer for 0.2 s while predicting with one")


def test_an_interrupted_bench_leaves_no_worker_behind(members):
    with pytest.raises(KeyboardInterrupt), WorkerPool(images=tiny_images(16), threads=1) as pool:  # noqa: PT012
        pool.load(spec_of("one", members[0]))
        pid = pool._workers["onnxruntime"].pid
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_backend_that_is_absent_is_a_reason_in_its_rows(members, tmp_path, monkeypatch):
    absent = "raise ModuleNotFoundError(\"No module named 'openvino'\", name='openvino')\n"
    (tmp_path / "openvino.py").write_text(absent)
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process starts with this path
    there, not_there = spec_of("one", members[0]), spec_of("one", members[0], backend="openvino")
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        pool.start(["onnxruntime", "openvino"])
        assert isinstance(pool.load(there), LoadReport)
        refused = pool.load(not_there)
        assert refused == NotRun("backend openvino: is not installed; install it with: pip install 'edc[openvino]'")
        timings = pool.time([not_there, there], batch=1, plan=PLAN, seed=0)
    assert timings[not_there] == refused
    assert isinstance(timings[there], Timing)


def test_a_row_that_cannot_be_loaded_says_why_everywhere(members, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    bad, good = (
        RowSpec(Subject("student", name="bad"), "onnxruntime", OnnxSource((tmp_path / "bad.onnx",))),
        spec_of("good", members[0]),
    )
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        refused = pool.load(bad)
        assert isinstance(refused, NotRun)
        assert "bad.onnx: " in refused.reason
        assert isinstance(pool.load(good), LoadReport)
        assert pool.predict([bad, good], [tiny_images(2)])[bad] == refused
        timings = pool.time([bad, good], batch=1, plan=PLAN, seed=0)
    assert timings[bad] == refused
    assert isinstance(timings[good], Timing)


def test_torch_rows_of_a_run_are_timed_beside_others(tmp_path, members):
    _, data = make_tiny_run(tmp_path / "tiny")
    images = data.test.images.float().numpy() / 255
    students = [Subject("members", name="be"), Subject("student", name="be")]
    subjects = [Subject("ensemble"), *students, Subject("teacher", member=7)]
    specs = [RowSpec(subject, "torch", TorchSource(tmp_path / "tiny", subject)) for subject in subjects]
    with WorkerPool(images=images, threads=1) as pool:
        pool.start(["torch", "onnxruntime"])
        loads = [pool.load(spec) for spec in specs]
        other = spec_of("one", members[0])
        pool.load(other)
        timings = pool.time([*specs, other], batch=2, plan=PLAN, seed=0)
    assert [type(load) for load in loads] == [LoadReport] * 3 + [NotRun]
    assert "no network 'teacher 7'" in loads[3].reason
    assert {load.what_ran.threads for load in loads[:3]} == {1}
    assert [type(timing) for timing in timings.values()] == [Timing] * 3 + [NotRun, Timing]
