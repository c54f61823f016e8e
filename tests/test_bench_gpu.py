"""GPU rows: what can be known without a GPU is tested here, what needs one is marked so and has not run yet."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
import stub_gpu
import torch
from stub_gpu import require_engines_of
from tiny_onnx import tiny_images, write_tiny_onnx

from edc.benchmark.backends import open_backend
from edc.benchmark.backends.contract import EngineFile, EngineSource, Loaded, OnnxSource, WhatRan
from edc.benchmark.backends.on_cuda import EventLog
from edc.benchmark.backends.onnxruntime_cuda import BoundSessions, require_heavy_on
from edc.benchmark.workers.pool import NotRun, RowSpec, WorkerPool, _timing
from edc.benchmark.workers.probe import Probe
from edc.benchmark.workers.protocol import Infer, RoundReport, TimeRound, WarmUpReport, WarmUpRow
from edc.benchmark.workers.timing import RowSamples, TimingPlan, WarmUp
from edc.benchmark.workers.worker import Worker
from edc.deploy.engine.description import Engine, sidecar_path
from edc.deploy.engine.from_onnx import engine_from_onnx
from edc.deploy.engine.run import require_batch
from edc.deploy.onnx.session import import_onnxruntime
from edc.errors import ArtifactError, EngineError, FailedError
from edc.subject import Subject
from edc.system.gpu import Gpu, SmClock, gpus_now, gpus_or_reason

STUDENT = Subject("student", name="student")
MERGED = Subject("ensemble", ensemble_form="merged")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class FakeDriver:
    """Answers in place of NVIDIA's library: a GPU is what it knows, and what it does not know is not supported."""

    def __init__(self, gpus: list[dict[str, float]], *, failing: str = "", reason: int = 0) -> None:
        self.gpus, self.failing, self.reason, self.num_open = gpus, failing, reason, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeDriver":
        for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlSystemGetDriverVersion"):
            monkeypatch.setattr(pynvml, name, partial(self.answer, name))
        for name in ("HandleByIndex", "Name", "MemoryInfo", "ClockInfo", "MaxClockInfo", "Temperature", "PowerUsage"):
            monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", partial(self.answer, f"nvmlDeviceGet{name}"))
        return self

    def answer(self, name: str, index: int = 0, kind: int | None = None):
        if name == self.failing:
            raise pynvml.NVMLError(self.reason)
        match name:
            case "nvmlInit" | "nvmlShutdown":
                self.num_open += 1 if name == "nvmlInit" else -1
                return None
            case "nvmlDeviceGetCount":
                return len(self.gpus)
            case "nvmlSystemGetDriverVersion":
                return "535.104.05"
            case "nvmlDeviceGetHandleByIndex":
                return index
        key = name.removeprefix("nvmlDeviceGet") + ("" if kind is None else f" {kind}")
        if key not in self.gpus[index]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.gpus[index][key]


CLOCK_SM, CLOCK_MEMORY, TEMPERATURE_GPU = 1, 2, 0  # as nvml.h numbers them
A100 = {
    "Name": "NVIDIA A100-SXM4-40GB",
    "MemoryInfo": SimpleNamespace(total=40960 << 20),
    f"ClockInfo {CLOCK_SM}": 1155,
    f"MaxClockInfo {CLOCK_SM}": 1410,
    f"ClockInfo {CLOCK_MEMORY}": 1215,
    f"Temperature {TEMPERATURE_GPU}": 34,
    "PowerUsage": 56_210,  # milliwatts
}
MX150 = {
    "Name": "NVIDIA GeForce MX150",
    "MemoryInfo": SimpleNamespace(total=2048 << 20),
    f"ClockInfo {CLOCK_SM}": 139,
    f"ClockInfo {CLOCK_MEMORY}": 405,
    f"Temperature {TEMPERATURE_GPU}": 47,
}


def test_gpus_are_read_with_their_clocks_and_what_the_driver_does_not_say_is_none(monkeypatch):
    driver = FakeDriver([A100, MX150]).install(monkeypatch)
    assert gpus_now() == (
        Gpu("NVIDIA A100-SXM4-40GB", "535.104.05", 40960, 1155, 1410, 1215, 34, 56.21),
        Gpu("NVIDIA GeForce MX150", "535.104.05", 2048, 139, None, 405, 47, None),
    )
    assert driver.num_open == 0
    FakeDriver([{"Name": "NVIDIA GB10"}]).install(monkeypatch)
    assert gpus_now() == (Gpu("NVIDIA GB10", "535.104.05", None, None, None, None, None, None),)
    FakeDriver([]).install(monkeypatch)
    assert gpus_now() == ()


@pytest.mark.parametrize(
    ("failing", "reason", "found"),
    [
        ("", 0, ["NVIDIA A100-SXM4-40GB", "NVIDIA GeForce MX150"]),
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, []),
        ("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        ("nvmlInit", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."),
        ("nvmlDeviceGetCount", pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
        ("nvmlDeviceGetHandleByIndex", pynvml.NVML_ERROR_GPU_IS_LOST, "GPU is lost"),
    ],
)
def test_driver_is_asked_and_may_fail(failing, reason, found, monkeypatch):
    driver = FakeDriver([A100, MX150], failing=failing, reason=reason).install(monkeypatch)
    gpus = gpus_or_reason()
    assert (gpus if isinstance(gpus, str) else [gpu.name for gpu in gpus]) == found
    assert [gpu.name for gpu in gpus_now()] == ([] if isinstance(found, str) else found)
    assert driver.num_open == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus_now() == ()


@dataclass
class FakeEvent:
    """An event of a GPU whose clock is set by hand, in milliseconds."""

    at: float = 0.0

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.at - self.at


def test_clocks_are_those_of_the_gpu_that_a_row_runs_on(monkeypatch):
    """They were the fastest of all GPUs: one that throttles was hidden by another that somebody else works on."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", {"GPU-b": 1}.__getitem__)
    driver = FakeDriver([A100, MX150]).install(monkeypatch)
    for visible, wanted in ((None, [1155]), ("0", [1155]), ("1,0", [139]), ("GPU-b", [139])):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert SmClock().now_mhz() == wanted
    driver.failing, driver.reason = "nvmlDeviceGetClockInfo", pynvml.NVML_ERROR_GPU_IS_LOST
    assert SmClock().now_mhz() == []
    driver.failing, driver.reason = "nvmlDeviceGetHandleByIndex", pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert SmClock().now_mhz() == []
    FakeDriver([]).install(monkeypatch)
    assert SmClock().now_mhz() == []


def test_events_of_the_last_runs_are_told_apart_from_those_before():
    log = EventLog(FakeEvent, capacity=4)
    for last in (3, 2, 4):  # what comes before is warm-up, and more of it than there are events
        for run in range(6):
            for event, at in zip(log.next_run(), (0, 1, 1 + run, 1.5 + run), strict=True):
                event.at = 10 * run + at
            log.enqueued(100 + run)
        parts = log.of_last(last)
        runs = list(range(6 - last, 6))
        assert parts["copy_in"].tolist() == [1_000_000] * last
        assert parts["compute"].tolist() == [1_000_000 * run for run in runs]
        assert parts["copy_out"].tolist() == [500_000] * last
        assert parts["enqueue"].tolist() == [100 + run for run in runs]


def test_sessions_bound_to_a_device_compute_the_mean_of_their_probabilities(tmp_path):
    """The device here is the CPU; ONNX Runtime binds to it as it does to a GPU."""
    ort = import_onnxruntime()
    members = [write_tiny_onnx(tmp_path / f"{seed}.onnx", seed) for seed in range(2)]
    sessions = [ort.InferenceSession(member.path, providers=["CPUExecutionProvider"]) for member in members]
    ran = WhatRan("CPUExecutionProvider", "fp32", ort.__version__, 1)
    alone = BoundSessions(sessions[:1], ran, file_bytes=1, device="cpu")
    images = tiny_images(9)
    kept = []
    for batch in (images, images[:1], images[:4]):
        kept.append(alone.infer(batch))
        np.testing.assert_allclose(kept[-1], members[0].logits(batch), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept[0], members[0].logits(images), rtol=1e-4, atol=1e-5)  # still the caller's own
    parts = alone.parts_of_last(2)
    assert list(parts) == ["copy_in", "compute", "copy_out"]
    assert all(len(part) == 2 and (part > 0).all() for part in parts.values())
    wanted = np.log(np.mean([member.probs(images) for member in members], axis=0))
    np.testing.assert_allclose(
        BoundSessions(sessions, ran, file_bytes=1, device="cpu").infer(images), wanted, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(FailedError, match="ONNX Runtime cannot run batch 2"):
        alone.infer(np.zeros((2, 3, 5, 5), np.float32))


def test_convolutions_left_to_another_provider_are_refused(tmp_path):
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = write_tiny_onnx(tmp_path / "a.onnx").path
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    require_heavy_on("CPUExecutionProvider", session)
    with pytest.raises(FailedError, match="left Conv to CPUExecutionProvider, not CUDAExecutionProvider"):
        require_heavy_on("CUDAExecutionProvider", session)


class LargestFour(Loaded):
    """Refuses more than four images, and says what its runs were made of."""

    what_ran = WhatRan("fake", "fp32", "1", 1)
    file_bytes, max_batch, on_gpu = 1, 4, True

    def infer(self, batch, /):
        if len(batch) > 4:
            raise FailedError(f"refuses batch {len(batch)}")
        return batch.reshape(len(batch), -1)[:, :5]

    def parts_of_last(self, num_runs):
        return {"compute": np.arange(num_runs)}


def test_predictions_are_split_at_the_largest_batch_and_timings_are_not():
    worker = Worker(None, tiny_images(32), threads=1)
    worker.loaded["row"] = LargestFour()
    images = tiny_images(11)
    np.testing.assert_array_equal(worker.answer(Infer("row", images)), images.reshape(11, -1)[:, :5])
    answer = worker.answer(TimeRound("row", batch=4, first=0, num_runs=3, settle_ms=0.01))
    assert isinstance(answer, RoundReport)
    assert answer.parts["compute"].tolist() == [0, 1, 2]
    assert worker.answer(TimeRound("row", batch=8, first=0, num_runs=3, settle_ms=0.01)).reason == "refuses batch 8"
    plan = TimingPlan(window_ms=0.1, max_windows=3)
    report = worker.answer(WarmUpRow("row", batch=4, plan=plan))
    assert isinstance(report, WarmUpReport)
    assert report.peak_memory_bytes is None  # the host's memory would say nothing of the GPU's


def test_parts_stay_with_the_round_they_were_taken_in():
    samples = RowSamples({0: np.array([5, 6]), 3: np.array([7])})
    parts = [{"compute": np.array([1, 2])}, {"compute": np.array([3])}]
    timing = _timing(1, samples, WarmUpReport(WarmUp(3, is_stable=True, run_ns=1), None), parts, Probe())
    assert {number: of.tolist() for number, of in timing.parts["compute"].rounds.items()} == {0: [1, 2], 3: [3]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineFile, Engine]:
    """A real engine of TensorRT-RTX, built without a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'edc[rtx]'")
    folder = tmp_path_factory.mktemp("engine")
    tiny = write_tiny_onnx(folder / "a.onnx")
    path = folder / "a.rtx"
    capabilities = () if torch.cuda.is_available() else (86,)
    engine = engine_from_onnx(tiny.path, path, library="tensorrt_rtx", max_batch=8, compute_capabilities=capabilities)
    return EngineFile(path, engine.sha256), engine


def copied(file: EngineFile, folder: Path, **changes: object) -> EngineFile:
    """Returns a copy of the engine, with its description changed."""
    path = folder / file.path.name
    path.write_bytes(file.path.read_bytes())
    content = json.loads(sidecar_path(file.path).read_text())
    sidecar_path(path).write_text(json.dumps({**content, **changes}))
    return EngineFile(path, file.sha256)


@without_gpu
def test_engine_without_a_gpu_says_why_in_its_row(built):
    file, _ = built
    spec = RowSpec(STUDENT, "tensorrt-rtx", EngineSource(STUDENT, (file,)))
    absent = RowSpec(MERGED, "tensorrt-rtx", EngineSource(MERGED, ()))
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        refused = pool.load(spec)
        assert isinstance(refused, NotRun)
        assert f"{file.path}: tensorrt_rtx " in refused.reason
        assert "cannot load it: " in refused.reason
        assert "CUDA driver version is insufficient" in refused.reason
        assert pool.load(absent).reason.startswith(
            "no tensorrt_rtx engine of ensemble, merged in the artifact; edc export --trt builds engines"
        )
        assert pool.predict([spec], [tiny_images(2)])[spec] == refused


def test_engine_that_is_changed_missing_undescribed_or_anothers_is_refused(built, tmp_path):
    file, _ = built
    backend = open_backend("tensorrt-rtx", threads=1)

    def reason(file: EngineFile) -> str:
        with pytest.raises((ArtifactError, EngineError)) as caught:
            backend.load(EngineSource(STUDENT, (file,)))
        return str(caught.value)

    assert "is an engine for tensorrt, not for tensorrt_rtx" in reason(copied(file, tmp_path, library="tensorrt"))
    assert "not the description of an engine" in reason(copied(file, tmp_path, colour="blue"))
    file = copied(file, tmp_path)
    assert "SHA-256 differs" in reason(EngineFile(file.path, "0" * 64))
    sidecar_path(file.path).write_text("[]")
    assert "not the description of an engine" in reason(file)
    sidecar_path(file.path).unlink()
    assert f"{sidecar_path(file.path)}: no such file; export again" in reason(file)
    file.path.unlink()
    assert f"{file.path}: no such file; export again" in reason(file)


def test_batch_over_the_profile_is_refused_before_the_gpu_is_asked(built):
    file, engine = built
    for batch in (1, 8):
        require_batch(file.path, engine, batch)
    with pytest.raises(EngineError, match="does not take batch 9, built for 1 to 8; export again with --max-batch 9"):
        require_batch(file.path, engine, 9)


@without_gpu
def test_torch_on_a_gpu_that_is_not_there_says_so():
    from edc.benchmark.backends.on_cuda import require_cuda

    with pytest.raises(FailedError, match=r"torch-cuda: no CUDA device that torch can use \(torch .* is built "):
        require_cuda("torch-cuda")


def engine_computes(library: str, folder: Path, *, cuda_graph: bool, num_members: int) -> None:
    """Builds an engine for the GPU here and compares it, or the mean of several, with the network that it is of."""
    tiny, path = write_tiny_onnx(folder / "a.onnx"), folder / f"a.{library}"
    engine = engine_from_onnx(tiny.path, path, library=library, max_batch=8)
    files = (EngineFile(path, engine.sha256),) * num_members
    backend = open_backend(library.replace("_", "-"), threads=1)
    loaded = backend.load(EngineSource(dataclasses.replace(STUDENT, cuda_graph=cuda_graph), files))
    for batch in (1, 8, 3):
        images = tiny_images(batch)
        wanted = tiny.logits(images) if num_members == 1 else np.log(tiny.probs(images))
        np.testing.assert_allclose(loaded.infer(images), wanted, rtol=1e-3, atol=1e-3)
        again = loaded.infer(images)  # the same by a replay, where there is a graph
        np.testing.assert_allclose(again, wanted, rtol=1e-3, atol=1e-3)
    parts = loaded.parts_of_last(1)
    assert list(parts) == ["copy_in", "compute", "copy_out", "enqueue"]
    assert all((part > 0).all() for part in parts.values())
    with pytest.raises(FailedError, match="does not take batch 9, built for 1 to 8"):
        loaded.infer(tiny_images(9))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_engine_on_the_gpu_computes_the_networks_logits(library, cuda_graph, tmp_path):
    require_engines_of(library)
    for num_members in (1, 2):
        engine_computes(library, tmp_path, cuda_graph=cuda_graph, num_members=num_members)


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_what_is_asked_of_an_engine_on_the_gpu_holds_on_the_stand_in(library, tmp_path, monkeypatch):
    """A test that nobody can run must not fail for a reason of its own. The stand-in replays single engines only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stub_gpu.install(monkeypatch, library)
    for cuda_graph, num_members in ((False, 1), (False, 2), (True, 1)):
        engine_computes(library, tmp_path, cuda_graph=cuda_graph, num_members=num_members)


def test_what_onnxruntime_prints_of_cudas_libraries_is_not_on_stdout(tmp_path, capsys, monkeypatch):
    """stdout is the document's with --json, and it prints there which libraries it did not find."""
    backend = open_backend("onnxruntime-cuda", threads=1)
    monkeypatch.setattr(backend, "ort", SimpleNamespace(preload_dlls=lambda: print("libcublas was not found")))
    source = OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,))
    capsys.readouterr()
    backend.prepare(source)
    assert capsys.readouterr() == ("", "libcublas was not found\n")


@pytest.mark.gpu
@needs_gpu
def test_onnxruntime_on_the_gpu_computes_the_networks_logits(tmp_path):
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    backend = open_backend("onnxruntime-cuda", threads=1)
    backend.prepare(OnnxSource((tiny.path,)))
    loaded = backend.load(OnnxSource((tiny.path,)))
    assert loaded.what_ran.provider == "CUDAExecutionProvider"
    for batch in (1, 8, 3):
        images = tiny_images(batch)
        np.testing.assert_allclose(loaded.infer(images), tiny.logits(images), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_torch_on_the_gpu_computes_what_torch_on_the_cpu_computes(tmp_path):
    from tiny_run import make_tiny_run

    from edc.benchmark.backends.contract import TorchSource

    make_tiny_run(tmp_path / "tiny")
    images = tiny_images(6)
    for subject in (Subject("ensemble"), Subject("members", name="be"), Subject("student", name="be")):
        source = TorchSource(tmp_path / "tiny", subject)
        on_cpu, on_gpu = (open_backend(backend, threads=1).load(source) for backend in ("torch", "torch-cuda"))
        np.testing.assert_allclose(on_gpu.infer(images), on_cpu.infer(images), rtol=1e-4, atol=1e-4)
