"""Each backend computes what its subject is, says what really ran, and refuses clearly."""

import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from tiny_onnx import tiny_images, write_tiny_onnx

from edc.benchmark import backends
from edc.benchmark.backends import (
    BACKENDS,
    _has_bfloat16,
    available_backends,
    is_installed,
    needs_run,
    open_backend,
    require_installed,
)
from edc.benchmark.backends.contract import OnnxSource, TorchSource
from edc.benchmark.backends.torch_eager import TorchLoaded
from edc.deploy.onnx import session as ort
from edc.errors import ArtifactError, FailedError, NotInstalledError
from edc.metrics import ensemble_log_probs
from edc.runs.networks import SubjectNetworks
from edc.system.gpu import gpus_now

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
ONNX_BACKENDS = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_one_file_computes_its_logits_at_any_batch(backend, tmp_path):
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    loaded = open_backend(backend, threads=1).load(OnnxSource((tiny.path,)))
    for batch in (1, 2, 7, 1):
        images = tiny_images(batch)
        np.testing.assert_allclose(loaded.infer(images), tiny.logits(images), rtol=1e-4, atol=1e-5)
    assert loaded.file_bytes == tiny.path.stat().st_size


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_files_in_turn_are_averaged_as_probabilities(backend, tmp_path):
    members = [write_tiny_onnx(tmp_path / f"{seed}.onnx", seed) for seed in range(3)]
    loaded = open_backend(backend, threads=1).load(OnnxSource(tuple(member.path for member in members)))
    images = tiny_images(5)
    wanted = np.log(np.mean([member.probs(images) for member in members], axis=0))
    np.testing.assert_allclose(loaded.infer(images), wanted, rtol=1e-4, atol=1e-5)
    assert loaded.file_bytes == sum(member.path.stat().st_size for member in members)


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_outputs_are_the_callers_to_keep(backend, tmp_path):
    """A library that hands out its own buffer would change them at the next inference."""
    loaded = open_backend(backend, threads=1).load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))
    images = tiny_images(2)
    first = loaded.infer(images[:1])
    before = first.copy()
    loaded.infer(images[1:])
    np.testing.assert_array_equal(first, before)


def test_onnxruntime_says_what_ran(tmp_path):
    write_tiny_onnx(tmp_path / "a.onnx")
    write_tiny_onnx(tmp_path / "half.onnx", float_type=TensorProto.FLOAT16)
    backend = open_backend("onnxruntime", threads=2)
    ran = backend.load(OnnxSource((tmp_path / "a.onnx",))).what_ran
    assert (ran.provider, ran.precision, ran.threads) == ("CPUExecutionProvider", "fp32", 2)
    assert ran.version == ort.import_onnxruntime().__version__
    half = OnnxSource((tmp_path / "half.onnx",))
    backend.prepare(half)
    assert backend.load(half).what_ran.precision == "fp16"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc, which Linux has")
def test_onnxruntime_sessions_in_turn_share_one_pool_of_threads(tmp_path):
    """A pool each would spin beside the session whose turn it is, and slow the ensemble down."""
    for seed in range(4):
        write_tiny_onnx(tmp_path / f"{seed}.onnx", seed)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from edc.benchmark.backends import open_backend\n"
        "from edc.benchmark.backends.contract import OnnxSource\n"
        "files = [Path(name) for name in sys.argv[1:]]\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "backend = open_backend('onnxruntime', threads=3)\n"
        "backend.take_process()\n"
        "kept, counts = [], []\n"
        "before = count() - 2\n"  # the pool is there already: two threads, the caller is the third
        "for subject in (files[:1], files):\n"
        "    kept.append(backend.load(OnnxSource(tuple(subject))))\n"
        "    counts.append(count() - before)\n"
        "print(*counts, kept[0].what_ran.threads)\n"
    )
    paths = [str(tmp_path / f"{seed}.onnx") for seed in range(4)]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2", "3"]


@needs_openvino
def test_openvino_runs_float32_even_where_the_cpu_has_bfloat16(tmp_path):
    write_tiny_onnx(tmp_path / "a.onnx")
    ran = open_backend("openvino", threads=1).load(OnnxSource((tmp_path / "a.onnx",))).what_ran
    assert (ran.provider, ran.precision, ran.threads) == ("OpenVINO CPU", "fp32", 1)
    assert "INFERENCE_PRECISION_HINT=f32" in ran.notes


@needs_openvino
def test_openvino_that_computes_in_another_precision_is_refused(tmp_path, monkeypatch):
    from edc.benchmark.backends import openvino_cpu

    monkeypatch.setattr(openvino_cpu, "_precisions_of", lambda compiled: Counter(fp32=1, bf16=1))
    backend = open_backend("openvino", threads=1)
    with pytest.raises(FailedError, match="pinned to f32, but its compiled graph runs bf16"):
        backend.load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))


@needs_openvino
@pytest.mark.skipif(not _has_bfloat16(), reason="this CPU has no bfloat16")
def test_openvino_bf16_computes_with_eight_bits_of_mantissa(tmp_path):
    """Rounding errors are those of bfloat16: far over float32's, within a few of its own units in the last place."""
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    loaded = open_backend("openvino-bf16", threads=1).load(OnnxSource((tiny.path,)))
    assert (loaded.what_ran.precision, loaded.what_ran.threads) == ("bf16", 1)
    assert "INFERENCE_PRECISION_HINT=bf16" in loaded.what_ran.notes
    images = tiny_images(20)
    wanted = tiny.logits(images)
    error = np.abs(loaded.infer(images) - wanted).max() / np.abs(wanted).max()
    assert 2**-12 < error < 2**-5


@needs_openvino
@pytest.mark.parametrize(
    ("counts", "message"),
    [({"fp32": 3}, "3 in fp32"), ({"fp32": 2, "bf16": 1}, "1 in bf16, 2 in fp32"), ({"int8": 1, "bf16": 9}, "in int8")],
)
def test_openvino_bf16_that_computes_in_another_precision_is_refused(counts, message, tmp_path, monkeypatch):
    from edc.benchmark.backends import openvino_cpu

    monkeypatch.setattr(openvino_cpu, "_precisions_of", lambda compiled: Counter(counts))
    backend = open_backend("openvino-bf16", threads=1)
    monkeypatch.setattr(backend, "core", WithBfloat16(backend.core))
    with pytest.raises(FailedError, match=f"pinned to bf16, but of its .* are .*{message}"):
        backend.load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))


class WithBfloat16:
    """OpenVINO on a CPU that says it has bfloat16, whether or not this one does."""

    def __init__(self, core, has: bool = True) -> None:
        self.core, self.has = core, has

    def get_property(self, device, name):
        return ["FP32", "BF16"] if self.has else ["FP32"]

    def compile_model(self, *arguments):
        return self.core.compile_model(*arguments)


@needs_openvino
def test_openvino_bf16_on_a_cpu_without_it_is_refused(tmp_path, monkeypatch):
    backend = open_backend("openvino-bf16", threads=1)
    monkeypatch.setattr(backend, "core", WithBfloat16(backend.core, has=False))
    with pytest.raises(FailedError, match="finds no bfloat16 in this CPU"):
        backend.load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))


@needs_openvino
def test_openvino_is_imported_without_what_reports_to_its_vendor():
    open_backend("openvino", threads=1)
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
@pytest.mark.parametrize(
    ("content", "error", "message"),
    [(None, ArtifactError, "no such file; export again"), (b"nonsense", FailedError, "cannot load it")],
)
def test_a_file_that_cannot_be_loaded_is_named(backend, content, error, message, tmp_path):
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        open_backend(backend, threads=1).load(OnnxSource((path,)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 4, 8, 8), (2, 3, 8, 4)])
def test_images_of_another_shape_are_a_reason_not_a_crash(backend, shape, tmp_path):
    loaded = open_backend(backend, threads=1).load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))
    with pytest.raises(FailedError, match="cannot run batch 2: "):
        loaded.infer(np.zeros(shape, np.float32))


@pytest.mark.parametrize("backend", [*ONNX_BACKENDS, "torch", "onnxruntime-cuda"])
def test_a_subject_of_the_other_kind_is_refused(backend):
    subject = OnnxSource((Path("a.onnx"),)) if needs_run(backend) else TorchSource(Path("run"), "ensemble")
    with pytest.raises(FailedError, match="not "):
        open_backend(backend, threads=1).load(subject)


INSTALL = {
    "torch": "pip install torch",
    "onnxruntime": "pip install onnxruntime-gpu",
    "openvino": "pip install 'edc[openvino]'",
    "tensorrt": "pip install 'edc[trt]'",
    "tensorrt_rtx": "pip install 'edc[rtx]'",
}


@pytest.fixture
def fresh_imports():
    """Backends are imported anew within the test; afterwards there is one copy of each module again, the first."""

    def take_out():
        names = [name for name in sys.modules if name.startswith(("edc.benchmark.backends.", "edc.runs.networks"))]
        return {name: sys.modules.pop(name) for name in names if name != "edc.benchmark.backends.contract"}

    before = take_out()
    yield
    take_out()
    for name, module in before.items():
        package, _, attribute = name.rpartition(".")
        sys.modules[name] = module
        setattr(sys.modules[package], attribute, module)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_is_absent_says_how_to_install_it(backend, monkeypatch, fresh_imports):
    module = next(name for name in INSTALL if name == backend.replace("-rtx", "_rtx").split("-")[0])
    monkeypatch.setitem(sys.modules, module, None)
    line = re.escape(INSTALL[module])
    with pytest.raises(NotInstalledError, match=rf"({backend}: )?is not installed.*: {line}"):
        open_backend(backend, threads=1)
    assert not is_installed(backend)
    assert backend not in available_backends()
    with pytest.raises(NotInstalledError, match=f"backend {backend}: is not installed; install it with: {line}"):
        require_installed(backend)


def test_backends_that_are_chosen_are_those_this_machine_can_run(monkeypatch):
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    monkeypatch.setattr(backends, "_has_compiler", lambda: True)
    monkeypatch.setattr(backends, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(backends, "gpus_now", lambda: ())
    assert available_backends() == ("torch", "torch-compile", "onnxruntime", "openvino", "openvino-bf16")
    assert "torch-compile" not in available_backends(quick=True)
    monkeypatch.setattr(backends, "_has_bfloat16", lambda: False)
    monkeypatch.setattr(backends, "_has_compiler", lambda: False)
    assert available_backends() == ("torch", "onnxruntime", "openvino")
    monkeypatch.setattr(backends, "gpus_now", lambda: ("a GPU",))
    assert available_backends()[3:] == ("torch-cuda", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def test_choosing_backends_imports_none_of_them():
    script = "import sys; from edc.benchmark.backends import available_backends as f; print(f()); print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    names, modules = printed.splitlines()
    assert "'torch'" in names
    assert {"torch", "onnxruntime", "openvino", "tensorrt_rtx"}.isdisjoint(modules.split())


@pytest.mark.skipif(bool(gpus_now()), reason="there is a GPU to run on")
def test_onnxruntime_cuda_that_falls_back_to_the_cpu_is_refused(tmp_path):
    """Without a GPU, ONNX Runtime lists the CUDA provider as available and computes on the CPU."""
    subject = OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,))
    backend = open_backend("onnxruntime-cuda", threads=1)
    backend.prepare(subject)
    if "CUDAExecutionProvider" not in ort.import_onnxruntime().get_available_providers():
        reason = "onnxruntime-cuda: this ONNX Runtime is built without CUDA"
    else:
        reason = "onnxruntime-cuda: no CUDA device; ONNX Runtime fell back to CPUExecutionProvider"
    with pytest.raises(FailedError, match=reason):
        backend.load(subject)


def test_a_module_missing_for_another_reason_is_not_reported_as_the_backend(monkeypatch, fresh_imports):
    monkeypatch.setitem(sys.modules, "edc.deploy.onnx.precision", None)
    with pytest.raises(ModuleNotFoundError, match="precision"):
        open_backend("onnxruntime", threads=1)


def test_mean_of_probabilities_of_members_that_are_very_sure():
    logits = [np.array([[0.0, -200.0, -300.0]]), np.array([[-150.0, 0.0, -300.0]])]
    exact = [[-np.log(2), -np.log(2), -300.0]]  # both give the last class exp(-300), far under the least float32
    np.testing.assert_allclose(ensemble_log_probs([each.astype(np.float32) for each in logits]), exact, rtol=1e-6)


def test_torch_with_shared_members_puts_rows_in_member_major_order():
    class TwoMembers(torch.nn.Module):
        """Member 0 sees the first half of the rows."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.ModuleList([torch.nn.Linear(12, 4), torch.nn.Linear(12, 4)])

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            halves = rows.flatten(1).chunk(2)
            return torch.cat([linear(half) for linear, half in zip(self.linear, halves, strict=True)])

    torch.manual_seed(0)
    network = TwoMembers()
    images = torch.rand(5, 3, 2, 2)
    with torch.no_grad():
        members = [linear(images.flatten(1)).double().softmax(1) for linear in network.linear]
    loaded = TorchLoaded(SubjectNetworks((network,), members_per_network=2))
    np.testing.assert_allclose(loaded.infer(images.numpy()), torch.stack(members).mean(0).log(), rtol=1e-5)
    in_turn = TorchLoaded(SubjectNetworks(tuple(torch.nn.Sequential(torch.nn.Flatten(), m) for m in network.linear)))
    np.testing.assert_allclose(in_turn.infer(images.numpy()), loaded.infer(images.numpy()), rtol=1e-5)
    assert in_turn.file_bytes == loaded.file_bytes == 4 * 2 * (12 * 4 + 4)
    assert in_turn.what_ran.precision == "fp32"
    with pytest.raises(FailedError, match="torch cannot run batch 1"):
        loaded.infer(np.zeros((1, 3, 5, 5), np.float32))


def test_signals_arrive_after_several_openvino_backends_have_come_and_gone(tmp_path):
    """In a process of its own: with a Core for each backend the signal ended it with a segmentation fault."""
    pytest.importorskip("openvino")
    write_tiny_onnx(tmp_path / "a.onnx")
    script = (
        "import faulthandler, gc, signal\nfaulthandler.enable()\nfrom pathlib import Path\n"
        "from edc.benchmark.backends import open_backend\nfrom edc.benchmark.backends.contract import OnnxSource\n"
        "def opened():\n    backend = open_backend('openvino', threads=1)\n"
        "    return backend, backend.load(OnnxSource((Path('a.onnx'),)))\n"
        "first, second = opened(), opened()\ndel first; gc.collect()\ndel second; gc.collect()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\nsignal.raise_signal(signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
