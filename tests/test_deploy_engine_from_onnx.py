"""Real TensorRT-RTX engines, built without a GPU; running one needs a GPU."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from stub_gpu import require_engines_of
from torch import nn

from edc.deploy.engine.description import sidecar_path
from edc.deploy.engine.from_onnx import engine_from_onnx
from edc.deploy.engine.library import import_tensorrt
from edc.deploy.engine.run import load_engine, local_generation
from edc.deploy.ensemble import ensemble_network
from edc.deploy.fuse import fuse_batchnorm
from edc.deploy.onnx.from_network import onnx_from_network
from edc.deploy.onnx.half import fp16_from_onnx
from edc.deploy.onnx.quantize import int8_from_onnx
from edc.errors import EngineError, NotInstalledError
from edc.system.files import sha256_of

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'edc[rtx]'")

SHAPE = (3, 32, 32)


class WideBlock(nn.Module):
    """The pre-activation block of a wide ResNet."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(num_in), nn.BatchNorm2d(num_out)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(x).relu()
        return self.shortcut(y) + self.conv2(self.bn2(self.conv1(y)).relu())


def wide_resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        WideBlock(16, 32, 1),
        WideBlock(32, 64, 2),
        WideBlock(64, 128, 2),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


def export(network: nn.Module, folder: Path, *, precision: str, shape: tuple[int, int, int]) -> Path:
    """Return an ONNX file of `network` in `precision`, calibrated on noise: only that it builds is of interest."""
    fused = fuse_batchnorm(network, input_shape=shape).network
    source = folder / "fp32.onnx"
    onnx_from_network(fused, source, input_shape=shape, class_names=list("0123456789"), metadata={})
    if precision == "fp32":
        return source
    images = np.random.default_rng(0).random((16, *shape), dtype=np.float32)
    path = folder / f"{precision}.onnx"
    if precision == "fp16":
        fp16_from_onnx(source, path, images=images)
    else:
        int8_from_onnx(source, path, flavour=precision, images=images)  # type: ignore[arg-type]
    return path


def build(source: Path, path: Path, **overrides):
    arguments = {"library": "tensorrt_rtx", "max_batch": 64, "opt_batch": 8, "compute_capabilities": (86,)}
    return engine_from_onnx(source, path, **{**arguments, **overrides})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-trt"])
def test_wide_resnet_builds(tmp_path, precision):
    source = export(wide_resnet(), tmp_path, precision=precision, shape=SHAPE)
    engine = build(source, tmp_path / "student.engine")
    assert (engine.min_batch, engine.opt_batch, engine.max_batch) == (1, 8, 64)
    assert engine.bytes == (tmp_path / "student.engine").stat().st_size
    assert engine.sha256 == sha256_of(tmp_path / "student.engine")
    assert engine.onnx_sha256 == sha256_of(source)
    assert (engine.input_name, engine.output_name, engine.tf32) == ("images", "logits", False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(wide_resnet(), tmp_path_factory.mktemp("small"), precision="fp32", shape=SHAPE)


def test_merged_ensemble_builds(tmp_path):
    ensemble = ensemble_network([wide_resnet(seed) for seed in range(3)])
    assert build(export(ensemble, tmp_path, precision="fp16", shape=SHAPE), tmp_path / "e.engine").bytes > 0


def test_sidecar_says_what_the_engine_is_and_the_engine_has_no_prefix(small, tmp_path):
    engine = build(small, tmp_path / "student.engine", compute_capabilities=(86, 89), strict_fp32=False)
    content = json.loads(sidecar_path(tmp_path / "student.engine").read_text())
    assert content == {**vars(engine), "compute_capabilities": [86, 89]}
    assert content["tf32"] is True
    assert (tmp_path / "student.engine").read_bytes()[:1] != b"{"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.engine", "student.engine.json"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"compute_capabilities": (90,)}, "90 is not one of 75, 80"),
        ({"compute_capabilities": (75,)}, "FP32 GEMM is not supported"),  # the library's own words
        ({"opt_batch": 128}, "does not hold"),
    ],
)
def test_reason_for_a_failed_build_is_in_the_error(small, tmp_path, overrides, message):
    with pytest.raises(EngineError, match=message) as caught:
        build(small, tmp_path / "student.engine", **overrides)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_cpu_flavour_of_int8_is_refused_with_the_parsers_reason(small, tmp_path):
    images = np.random.default_rng(0).random((16, *SHAPE), dtype=np.float32)
    int8_from_onnx(small, tmp_path / "q.onnx", flavour="int8-cpu", images=images)
    with pytest.raises(EngineError, match=r"cannot read the graph: .*Int32"):
        build(tmp_path / "q.onnx", tmp_path / "student.engine")


def test_damaged_onnx_and_missing_library_are_errors_of_ours(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="cannot read the graph"):
        build(tmp_path / "bad.onnx", tmp_path / "student.engine")
    try:
        import_tensorrt("tensorrt")
    except NotInstalledError as error:
        assert "pip install" in str(error)  # noqa: PT017


def test_changed_or_foreign_engine_is_not_loaded(small, tmp_path):
    engine = build(small, tmp_path / "student.engine")
    content = bytearray((tmp_path / "student.engine").read_bytes())
    content[-1] ^= 1
    (tmp_path / "student.engine").write_bytes(content)
    with pytest.raises(EngineError, match="SHA-256 differs"):
        load_engine(tmp_path / "student.engine", engine)
    (tmp_path / "student.engine").write_bytes(b"a plan for another version")
    digest = sha256_of(tmp_path / "student.engine")
    with pytest.raises(EngineError, match="cannot load it"):
        load_engine(tmp_path / "student.engine", replace(engine, sha256=digest))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_engine_loads_on_the_gpu_it_was_built_for(small, tmp_path):
    require_engines_of("tensorrt_rtx")
    engine = build(small, tmp_path / "student.engine", compute_capabilities=(local_generation(),))
    _runtime, loaded = load_engine(tmp_path / "student.engine", engine)
    assert loaded.create_execution_context() is not None


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-trt"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_networks_at_224_pixels_build(tmp_path, name, precision):
    torch.manual_seed(0)
    if name == "resnet18":
        network = torchvision.models.resnet18(num_classes=10)
    else:
        network = pytest.importorskip("timm").create_model(name, num_classes=10)
    source = export(network.eval(), tmp_path, precision=precision, shape=(3, 224, 224))
    before = time.process_time()  # not the clock: other processes must not fail this test
    engine = build(source, tmp_path / "student.engine")
    cpu_seconds = time.process_time() - before
    print(f"{name} {precision}: {cpu_seconds:.2f} s of CPU, {engine.bytes / 1e6:.1f} MB")
    assert cpu_seconds < (30 if "vit" in name else 5)
