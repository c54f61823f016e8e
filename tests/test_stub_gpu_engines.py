"""Engines on a GPU that is not there (tests/stub_gpu.py): what they are fed, what they keep, how they are judged."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_gpu
import torch
from conftest import TESTS
from PIL import Image
from stub_gpu import StubGpu
from tiny_onnx import TinyOnnx, tiny_images, write_tiny_onnx

from edc.benchmark.backends import open_backend
from edc.benchmark.backends.contract import EngineFile, EngineSource, OnnxSource
from edc.benchmark.workers.protocol import Infer, Load, LoadReport, TimeRound
from edc.benchmark.workers.worker import Worker
from edc.deploy.artifact.feed import as_fed
from edc.deploy.artifact.manifest import Preprocessing
from edc.deploy.engine.description import Engine
from edc.deploy.engine.from_onnx import engine_from_onnx
from edc.deploy.engine_files import Built, EngineChoice, build_engines
from edc.deploy.onnx.uint8_input import take_uint8_pixels
from edc.deploy.onnx_files import Samples, Written
from edc.errors import EngineError
from edc.subject import Subject

STUDENT = Subject("student", name="student")
PIXELS = Preprocessing(layout="NHWC", dtype="uint8", color="RGB", image_size=(8, 8), resize="exact")
FLOATS = Preprocessing(color="RGB", image_size=(8, 8), resize="exact")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StubGpu:
    return stub_gpu.install(monkeypatch, "tensorrt", "tensorrt_rtx")


def built(folder: Path, library: str = "tensorrt", **options: object) -> tuple[Path, Engine]:
    path = folder / f"a.{library}"
    tiny = write_tiny_onnx(folder / "a.onnx")
    return path, engine_from_onnx(tiny.path, path, library=library, **{"max_batch": 8, **options})


# What the engine is fed


def test_pixels_are_fed_as_the_manifest_says_by_parity_and_by_the_consumer_alike(tmp_path):
    """The consumer has its own code, because it may not import edc."""
    spec = importlib.util.spec_from_file_location("classify", TESTS.parent / "export/classify.py")
    classify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(classify)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    shifted = FLOATS.model_copy(update={"value_range": (-1.0, 1.0)})
    for how in (PIXELS, FLOATS, shifted):
        fed = as_fed(images, how)
        wanted = classify.preprocess(tmp_path / "a.png", how.model_dump(mode="json"))
        assert (fed.dtype, fed.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(fed, wanted, rtol=0, atol=1e-6)
        assert fed.flags.c_contiguous
    np.testing.assert_array_equal(as_fed(images, PIXELS)[0], pixels)


class Tiny(torch.nn.Module):
    """What a file of `write_tiny_onnx` computes, in torch."""

    def __init__(self, tiny: TinyOnnx) -> None:
        super().__init__()
        self.conv = torch.nn.Parameter(torch.from_numpy(tiny.conv[:, :, None, None].copy()))
        self.linear = torch.nn.Parameter(torch.from_numpy(tiny.linear.copy()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(images, self.conv).relu().flatten(1) @ self.linear


def samples_of(tiny: TinyOnnx, num_images: int = 24) -> Samples:
    """Images of whole grey levels, which `tiny` has all right, as it gives the labels."""
    images = (np.rint(tiny_images(num_images) * 255) / 255).astype(np.float32)
    labels = tiny.logits(images).argmax(1)
    return Samples(images, images, images, labels, images, labels)


def engines_of(tiny: TinyOnnx, *, precision: str = "fp32", how: Preprocessing = FLOATS, **options: Any) -> list[Built]:
    written = [Written(tiny.path, each, None, {}, {}) for each in dict.fromkeys(("fp32", precision))]
    choice = EngineChoice(**{"library": "tensorrt", **options})
    arguments = {"reference": Tiny(tiny), "samples": samples_of(tiny), "how": how, "max_batch": 8, "max_drop": 0.005}
    return build_engines(written, "student", choice, **arguments)


def test_engines_that_take_pixels_pass_their_parity(gpu, tmp_path):
    """They were fed float images, in another order of axes, whatever the manifest said."""
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    take_uint8_pixels(tiny.path)
    (built,) = engines_of(tiny, how=PIXELS)
    assert built.notes["run"] == "run here"
    assert built.parity.max_abs_diff < 1e-5 * built.parity.logit_scale
    with pytest.raises(EngineError, match=r"images is uint8 .N, 8, 8, 3., the manifest says float32 .N, 3, 8, 8."):
        engines_of(tiny, how=FLOATS)


# What a CUDA graph refers to


@pytest.mark.parametrize("num_members", [1, 2])
def test_a_captured_graph_keeps_what_it_refers_to(gpu, tmp_path, num_members):
    path, engine = built(tmp_path)
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    source = EngineSource(replace(STUDENT, cuda_graph=True), (EngineFile(path, engine.sha256),) * num_members)
    loaded = open_backend("tensorrt", threads=1).load(source)
    for batch in (4, 1, 4):
        images = tiny_images(batch)
        first = loaded.infer(images)
        assert len([context for context in gpu.contexts if context() is not None]) == num_members
        again = loaded.infer(images[::-1].copy())  # a replay
        if num_members == 1:  # the stub records engines only, not the mean of their probabilities
            np.testing.assert_allclose(first, tiny.logits(images), atol=1e-4)
            np.testing.assert_allclose(again, tiny.logits(images)[::-1], atol=1e-4)
    del loaded
    assert all(context() is None for context in gpu.contexts)


def test_bench_feeds_pixels_to_files_that_take_pixels(tmp_path):
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    images = (np.rint(tiny_images(20) * 255) / 255).astype(np.float32)
    take_uint8_pixels(tiny.path)
    for backend in ("onnxruntime", "openvino"):
        worker = Worker(open_backend(backend, threads=1), images, threads=1)
        report = worker.answer(Load("row", OnnxSource((tiny.path,), PIXELS)))
        assert isinstance(report, LoadReport), report
        np.testing.assert_allclose(worker.answer(Infer("row", images)), tiny.logits(images), atol=1e-4)
        inputs = worker.inputs_of(2, worker.sources["row"])
        assert {(batch.dtype.name, batch.shape) for batch in inputs} == {("uint8", (2, 8, 8, 3))}
        answer = worker.answer(TimeRound("row", batch=2, first=0, num_runs=3, settle_ms=0.01))
        assert len(answer.samples) == 3
