"""Each backend computes what its subject is, says what really ran, and refuses clearly."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from tiny_onnx import tiny_images, write_tiny_onnx

from edc.bench.backends import BACKENDS, is_installed, open_backend, require_installed
from edc.bench.backends.contract import OnnxSubject, TorchSubject, log_mean_probs
from edc.bench.backends.torch_eager import TorchLoaded
from edc.deploy import ort
from edc.errors import ArtifactError, FailedError, NotInstalledError
from edc.subjects import SubjectNetworks

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
ONNX_BACKENDS = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_one_file_computes_its_logits_at_any_batch(backend, tmp_path):
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    loaded = open_backend(backend, threads=1).load(OnnxSubject((tiny.path,)))
    for batch in (1, 2, 7, 1):
        images = tiny_images(batch)
        np.testing.assert_allclose(loaded.infer(images), tiny.logits(images), rtol=1e-4, atol=1e-5)
    assert loaded.file_bytes == tiny.path.stat().st_size


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_files_in_turn_are_averaged_as_probabilities(backend, tmp_path):
    members = [write_tiny_onnx(tmp_path / f"{seed}.onnx", seed) for seed in range(3)]
    loaded = open_backend(backend, threads=1).load(OnnxSubject(tuple(member.path for member in members)))
    images = tiny_images(5)
    wanted = np.log(np.mean([member.probs(images) for member in members], axis=0))
    np.testing.assert_allclose(loaded.infer(images), wanted, rtol=1e-4, atol=1e-5)
    assert loaded.file_bytes == sum(member.path.stat().st_size for member in members)


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_outputs_are_the_callers_to_keep(backend, tmp_path):
    """A library that hands out its own buffer would change them at the next inference."""
    loaded = open_backend(backend, threads=1).load(OnnxSubject((write_tiny_onnx(tmp_path / "a.onnx").path,)))
    images = tiny_images(2)
    first = loaded.infer(images[:1])
    before = first.copy()
    loaded.infer(images[1:])
    np.testing.assert_array_equal(first, before)


def test_onnxruntime_says_what_ran(tmp_path):
    write_tiny_onnx(tmp_path / "a.onnx")
    write_tiny_onnx(tmp_path / "half.onnx", float_type=TensorProto.FLOAT16)
    backend = open_backend("onnxruntime", threads=2)
    ran = backend.load(OnnxSubject((tmp_path / "a.onnx",))).what_ran
    assert (ran.provider, ran.precision, ran.threads) == ("CPUExecutionProvider", "fp32", 2)
    assert ran.version == ort.import_onnxruntime().__version__
    half = OnnxSubject((tmp_path / "half.onnx",))
    backend.prepare(half)
    assert backend.load(half).what_ran.precision == "fp16"


@needs_openvino
def test_openvino_runs_float32_even_where_the_cpu_has_bfloat16(tmp_path):
    write_tiny_onnx(tmp_path / "a.onnx")
    ran = open_backend("openvino", threads=1).load(OnnxSubject((tmp_path / "a.onnx",))).what_ran
    assert (ran.provider, ran.precision, ran.threads) == ("OpenVINO CPU", "fp32", 1)
    assert "INFERENCE_PRECISION_HINT=f32" in ran.notes


@needs_openvino
def test_openvino_that_computes_in_another_precision_is_refused(tmp_path, monkeypatch):
    from edc.bench.backends import openvino_cpu

    monkeypatch.setattr(openvino_cpu, "_precisions_of", lambda compiled: {"fp32", "bf16"})
    backend = open_backend("openvino", threads=1)
    with pytest.raises(FailedError, match="pinned to f32, but its compiled graph runs bf16"):
        backend.load(OnnxSubject((write_tiny_onnx(tmp_path / "a.onnx").path,)))


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
        open_backend(backend, threads=1).load(OnnxSubject((path,)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 4, 8, 8), (2, 3, 8, 4)])
def test_images_of_another_shape_are_a_reason_not_a_crash(backend, shape, tmp_path):
    loaded = open_backend(backend, threads=1).load(OnnxSubject((write_tiny_onnx(tmp_path / "a.onnx").path,)))
    with pytest.raises(FailedError, match="cannot run batch 2: "):
        loaded.infer(np.zeros(shape, np.float32))


@pytest.mark.parametrize("backend", [*ONNX_BACKENDS, "torch"])
def test_a_subject_of_the_other_kind_is_refused(backend):
    subject = OnnxSubject((Path("a.onnx"),)) if backend == "torch" else TorchSubject(Path("run"), "ensemble")
    with pytest.raises(FailedError, match="not "):
        open_backend(backend, threads=1).load(subject)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_is_absent_says_how_to_install_it(backend, monkeypatch):
    for module in ("torch_eager", "onnxruntime_cpu", "openvino_cpu"):
        monkeypatch.delitem(sys.modules, f"edc.bench.backends.{module}", raising=False)
    for module in [name for name in sys.modules if name.startswith("edc.subjects")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, backend, None)
    line = "pip install 'edc\\[openvino\\]'" if backend == "openvino" else f"pip install {backend}"
    with pytest.raises(NotInstalledError, match=f"backend {backend}: is not installed; install it with: {line}"):
        open_backend(backend, threads=1)
    assert not is_installed(backend)
    with pytest.raises(NotInstalledError, match=line):
        require_installed(backend)


def test_a_module_missing_for_another_reason_is_not_reported_as_the_backend(monkeypatch):
    monkeypatch.delitem(sys.modules, "edc.bench.backends.onnxruntime_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "edc.deploy.precision", None)
    with pytest.raises(ModuleNotFoundError, match="precision"):
        open_backend("onnxruntime", threads=1)


def test_mean_of_probabilities_of_members_that_are_very_sure():
    logits = [np.array([[0.0, -200.0, -300.0]]), np.array([[-150.0, 0.0, -300.0]])]
    exact = [[-np.log(2), -np.log(2), -300.0]]  # both give the last class exp(-300), far under the least float32
    np.testing.assert_allclose(log_mean_probs([each.astype(np.float32) for each in logits]), exact, rtol=1e-6)


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
