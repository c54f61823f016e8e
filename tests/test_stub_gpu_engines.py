"""Engines on a GPU that is not there (tests/stub_gpu.py): what they are fed, what they keep, how they are judged."""

import builtins
import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import stub_gpu
import torch
from conftest import TESTS
from PIL import Image
from stub_gpu import GraphStrategy, Specialization, StubGpu
from tiny_onnx import TinyOnnx, tiny_images, write_tiny_onnx

from edc.benchmark.backends import available_backends, open_backend
from edc.benchmark.backends.contract import EngineFile, EngineSource, OnnxSource
from edc.benchmark.backends.onnxruntime_cuda import OnnxRuntimeCuda
from edc.benchmark.environment import environment_now
from edc.benchmark.workers.probe import Probe
from edc.benchmark.workers.process import WorkerProcess
from edc.benchmark.workers.protocol import Infer, Load, LoadReport, Refused, TimeRound
from edc.benchmark.workers.worker import Worker, serve
from edc.cli.deploy import _engines
from edc.cli.main import main
from edc.deploy.artifact.feed import as_fed
from edc.deploy.artifact.manifest import Preprocessing
from edc.deploy.engine.description import Engine, read_engine, sidecar_path
from edc.deploy.engine.from_onnx import engine_from_onnx
from edc.deploy.engine.run import EngineRunner, engine_outputs
from edc.deploy.engine_files import Built, EngineChoice, build_engines, choose_library, targets_of
from edc.deploy.gates import Gates
from edc.deploy.onnx.uint8_input import take_uint8_pixels
from edc.deploy.onnx_files import Samples, Written
from edc.errors import EngineError, NotInstalledError, ParityError, RequestError
from edc.subject import Subject
from edc.system.gpu import gpus_or_reason

STUDENT = Subject("student", name="student")
PIXELS = Preprocessing(layout="NHWC", dtype="uint8", color="RGB", image_size=(8, 8), resize="exact")
FLOATS = Preprocessing(color="RGB", image_size=(8, 8), resize="exact")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> StubGpu:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # for compiled kernels
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


def engines_of(
    tiny: TinyOnnx,
    *,
    precision: str = "fp32",
    how: Preprocessing = FLOATS,
    written: Sequence[Written] = (),
    judged: Any = lambda *_: nullcontext(),
    **options: Any,
) -> list[Built]:
    written = written or [Written(tiny.path, each, None, {}, {}) for each in dict.fromkeys(("fp32", precision))]
    choice = EngineChoice(**{"library": "tensorrt", **options})
    arguments = {"reference": Tiny(tiny), "samples": samples_of(tiny), "how": how, "max_batch": 8, "max_drop": 0.005}
    return build_engines(written, "student", choice, judged=judged, **arguments)


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
        report = worker.answer(Load("row", OnnxSource((tiny.path,), feed=PIXELS)))
        assert isinstance(report, LoadReport), report
        np.testing.assert_allclose(worker.answer(Infer("row", images)), tiny.logits(images), atol=1e-4)
        inputs = worker.inputs_of(2, worker.sources["row"])
        assert {(batch.dtype.name, batch.shape) for batch in inputs} == {("uint8", (2, 8, 8, 3))}
        answer = worker.answer(TimeRound("row", batch=2, first=0, num_runs=3, settle_ms=0.01))
        assert len(answer.samples) == 3


# What can go wrong


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_a_null_pointer_of_the_library_is_one_message_with_the_reason_of_its_log(gpu, tmp_path, library):
    path, engine = built(tmp_path, library)
    for gpu.null, act in (
        ("Builder", lambda: built(tmp_path, library)),
        ("Runtime", lambda: EngineRunner(path, engine)),
    ):
        with pytest.raises(EngineError, match="CUDA initialization failure with error: 35") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_timing_cache_that_is_damaged_or_of_another_gpu_is_written_anew(gpu, tmp_path):
    """The library makes None of damaged bytes, and does not attach a cache of another GPU."""
    cache = tmp_path / "timings"
    gpu.refused_caches = (b"damaged", b"of another GPU")
    for content in (None, b"damaged", b"of another GPU", b"timings of this GPU"):
        if content is not None:
            cache.write_bytes(content)
        gpu.caches.clear()
        built(tmp_path, timing_cache=cache)
        assert gpu.caches == ([content, b""] if content in gpu.refused_caches else [content or b""])
        assert cache.read_bytes() == b"timings of this GPU"


def test_parity_binds_once_a_size_and_contexts_share_what_was_compiled(gpu, tmp_path):
    path, engine = built(tmp_path, "tensorrt_rtx")
    runner = EngineRunner(path, engine)
    made: list[Any] = []
    original = runner._loaded.create_execution_context
    runner._loaded.create_execution_context = lambda config: made.append(config) or original(config)
    tiny, images = write_tiny_onnx(tmp_path / "a.onnx"), tiny_images(30)
    for size, num_bindings in ((1, 1), (7, 2), (8, 2)):
        made.clear()
        np.testing.assert_allclose(engine_outputs(runner, images, batch_size=size), tiny.logits(images), atol=1e-4)
        assert len(made) == num_bindings
        assert {config.dynamic_shapes_kernel_specialization_strategy for config in made} == {Specialization.EAGER}
        assert {config.cuda_graph_strategy for config in made} == {GraphStrategy.DISABLED}
        assert {id(config.cache) for config in made} == {id(runner._cache)}


def test_kernels_that_rtx_compiled_are_kept_for_this_user_and_used_by_the_next_process(gpu, tmp_path):
    path, engine = built(tmp_path, "tensorrt_rtx")
    images, found = tiny_images(8), []
    source = EngineSource(STUDENT, (EngineFile(path, engine.sha256),))

    def bench() -> list[int]:
        """Returns how many shapes were compiled when each of two batch sizes first ran."""
        before, loaded = gpu.num_compiled, open_backend("tensorrt-rtx", threads=1).load(source)
        found.append("kernels compiled by an earlier run" in loaded.what_ran.notes)
        return [len(loaded.infer(images[:size])) and gpu.num_compiled - before for size in (1, 8)]

    there = sorted(tmp_path.iterdir())
    path.with_name(f"{path.name}.{engine.sha256[:12]}.kernels").write_bytes(b"a stranger's code")
    assert bench() == [1, 2]
    assert bench() == [0, 0]
    assert len(sorted(tmp_path.iterdir())) == len(there) + 1, "the artifact's folder has files that nobody lists"
    engine_outputs(EngineRunner(path, engine), images, batch_size=8)
    assert gpu.num_compiled == 2
    kept = EngineRunner(path, engine).cache_path
    kept.write_bytes(b"damaged")  # the library refuses it
    assert bench() == [1, 2]
    kept.unlink()
    kept.mkdir()  # nothing can be written there
    assert bench() == [1, 2]
    assert found == [False, True, True, False]


def test_a_bench_runs_each_batch_size_with_the_kernels_that_were_chosen_for_it(gpu, tmp_path):
    path, engine = built(tmp_path)
    for cuda_graph in (False, True):
        source = EngineSource(replace(STUDENT, cuda_graph=cuda_graph), (EngineFile(path, engine.sha256),))
        loaded = open_backend("tensorrt", threads=1).load(source)
        assert "kernels chosen for batch 1 and 8" in loaded.what_ran.notes
        for size, profile in ((1, 0), (8, 1), (1, 0)):
            gpu.profiles_run.clear()
            loaded.infer(tiny_images(size))
            assert set(gpu.profiles_run) == {profile}


def test_rtx_records_its_own_cuda_graph_and_torch_captures_none(gpu, tmp_path, monkeypatch):
    path, engine = built(tmp_path, "tensorrt_rtx")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("torch captured a graph"))
    source = EngineSource(replace(STUDENT, cuda_graph=True), (EngineFile(path, engine.sha256),))
    loaded = open_backend("tensorrt-rtx", threads=1).load(source)
    images = tiny_images(3)
    np.testing.assert_allclose(loaded.infer(images), write_tiny_onnx(tmp_path / "a.onnx").logits(images), atol=1e-4)
    (context,) = [context() for context in gpu.contexts if context() is not None]
    assert context.config.cuda_graph_strategy == GraphStrategy.WHOLE_GRAPH_CAPTURE
    assert "CUDA graph by TensorRT-RTX itself" in loaded.what_ran.notes


def test_batch_1_has_kernels_of_its_own_and_old_engines_have_one_profile(gpu, tmp_path):
    path, engine = built(tmp_path)
    assert engine.tuned_for == (1, 8)
    runner, images = EngineRunner(path, engine), tiny_images(9)
    gpu.profiles_run.clear()
    engine_outputs(runner, images, batch_size=8)  # eight, then one
    engine_outputs(runner, images[:6], batch_size=3)
    assert gpu.profiles_run == [1, 0, 1, 1]
    description = json.loads(sidecar_path(path).read_text())
    del description["num_profiles"]
    sidecar_path(path).write_text(json.dumps(description))
    old = read_engine(path, "tensorrt", sha256=engine.sha256)
    assert (old.profile_for(1), old.profile_for(8), old.tuned_for) == (0, 0, (8,))


def test_int8_engine_is_judged_by_what_it_loses_on_the_device(gpu, tmp_path):
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    fp32, int8 = engines_of(tiny, precision="int8-trt")
    assert "validation" not in fp32.notes
    assert int8.notes["validation"] == "drop 0.00 points on 24 images (lost 0, gained 0, McNemar p 1)"
    gpu.wrong = lambda logits: -logits
    with pytest.raises(ParityError, match=r"a\.plan: largest difference"):
        engines_of(tiny)
    written = [Written(tiny.path, "int8-trt", None, {}, {})]
    with pytest.raises(ParityError, match=r"a\.plan: drop 100\.00 points on 24 images .* that --max-drop allows"):
        engines_of(tiny, written=written)


@pytest.mark.parametrize(
    ("generation", "installed", "options", "wanted"),
    [
        (86, ("tensorrt", "tensorrt_rtx"), {}, "tensorrt"),
        (86, ("tensorrt", "tensorrt_rtx"), {"wanted": "tensorrt_rtx"}, "tensorrt_rtx"),
        (86, ("tensorrt", "tensorrt_rtx"), {"compute_capabilities": (89, 120)}, "tensorrt_rtx"),
        (86, ("tensorrt_rtx",), {}, "tensorrt_rtx"),
        (90, ("tensorrt", "tensorrt_rtx"), {}, "tensorrt"),
        (90, ("tensorrt_rtx",), {"compute_capabilities": (120,)}, "tensorrt_rtx"),
        (90, ("tensorrt_rtx",), {}, "knows SM 75, 80, 86, 89, 120, 121 and not SM 90.* For this GPU, TensorRT: pip"),
        (86, ("tensorrt",), {"wanted": "tensorrt", "compute_capabilities": (89,)}, "--sm: TensorRT builds for the GPU"),
        (86, ("tensorrt",), {"wanted": "tensorrt_rtx"}, "tensorrt_rtx is not installed"),
        (86, (), {}, "--trt: no engine library here"),
        (90, ("tensorrt_rtx",), {"compute_capabilities": (90,)}, "--sm: 90 is not one .* TensorRT builds for it, with"),
    ],
)
def test_library_is_chosen_by_name_by_the_gpus_that_are_named_or_by_the_gpu_here(
    monkeypatch, generation, installed, options, wanted
):
    stub_gpu.install(monkeypatch, *installed, generation=generation)
    if wanted in ("tensorrt", "tensorrt_rtx"):
        assert choose_library(**options) == wanted
    else:
        with pytest.raises((RequestError, NotInstalledError), match=wanted):
            choose_library(**options)


def test_rtx_builds_for_the_gpu_here_where_it_would_leave_it_out(gpu):
    """Of itself for Ampere and later: on Turing the engine was built for other GPUs, and not run."""
    for gpu.generation, named, wanted in ((75, (), (75,)), (75, (86,), (86,)), (86, (), ())):
        assert targets_of("tensorrt_rtx", named) == wanted
    gpu.generation = 75
    assert targets_of("tensorrt", ()) == ()
    assert _engines(None, (), tf32=False).library == "tensorrt"
    choice = _engines("tensorrt_rtx", (), tf32=False)
    assert (choice.library, choice.compute_capabilities) == ("tensorrt_rtx", (75,))


def test_engine_for_another_gpu_is_built_and_not_run(gpu, tmp_path):
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    (elsewhere,) = engines_of(tiny, library="tensorrt_rtx", compute_capabilities=(120, 89))
    assert elsewhere.parity is None
    assert elsewhere.notes["run"].endswith("no parity figures (built for SM 89, 120, the GPU here is SM 86)")
    with pytest.raises(EngineError, match="built for SM 89, 120, the GPU here is SM 86; build it again with: edc exp"):
        EngineRunner(elsewhere.path, elsewhere.engine)
    gpu.generation = 90  # which --sm cannot name
    with pytest.raises(EngineError, match=r"SM 90; build it again with: edc export --trt --engine-library tensorrt$"):
        EngineRunner(elsewhere.path, elsewhere.engine)
    gpu.generation = 86
    assert not gpu.contexts
    (here,) = engines_of(tiny, library="tensorrt_rtx", compute_capabilities=(120, 86))
    assert here.parity.argmax_agreement == 1


def reason_of(path: Path, engine: Engine) -> str:
    source = EngineSource(STUDENT, (EngineFile(path, engine.sha256),))
    worker = Worker(open_backend("tensorrt", threads=1), tiny_images(4), threads=1)
    answer = worker.answer(Load("row", source))
    assert isinstance(answer, Refused), answer
    return answer.reason


def test_bad_engines_and_gpus_without_memory_are_one_message(gpu, tmp_path):
    path, engine = built(tmp_path)
    gpu.version = "11.0.0"
    trt = sys.modules["tensorrt"]
    vars(trt)["__version__"] = "11.0.0"
    assert "11.0.0 cannot load it: The engine plan file is not compatible with this version" in reason_of(path, engine)
    assert "(it was built by 10.9.0)" in reason_of(path, engine)
    gpu.version, vars(trt)["__version__"] = "10.9.0", "10.9.0"
    gpu.generation = 89
    assert "generated on an incompatible device" in reason_of(path, engine)
    assert "build it again here with edc export --trt" in reason_of(path, engine)
    gpu.generation, gpu.no_context = 86, True
    assert "the GPU has 12 of 8192 MiB free: end other programs on it" in reason_of(path, engine)
    gpu.no_context = False
    renamed = json.loads(sidecar_path(path).read_text()) | {"input_name": "pixels"}
    sidecar_path(path).write_text(json.dumps(renamed))
    assert "has no input pixels, but images, logits; export again" in reason_of(path, engine)
    for name, wanted in (
        ("scores", "has no output scores, but images, logits; export again"),
        ("images", "its output images is float32 (N, 3, 8, 8), expected float32 logits (N, classes); export again"),
    ):
        sidecar_path(path).write_text(json.dumps(renamed | {"input_name": "images", "output_name": name}))
        assert wanted in reason_of(path, engine)


def test_an_engine_that_the_gpu_fails_on_costs_no_other_file(gpu, tmp_path):
    """An illegal access and a lack of memory are torch's own errors, and took the whole export with them."""
    tiny = write_tiny_onnx(tmp_path / "a.onnx")
    for gpu.sticky in ("an illegal memory access was encountered", "out of memory"):
        gates = Gates(tmp_path, all_or_nothing=False)
        assert engines_of(tiny, judged=partial(gates.judged, STUDENT)) == []
        assert [(each.path, each.precision) for each in gates.missing] == [("a.plan", "fp32")]
        assert gates.missing[0].reason == f"cannot be run here: CUDA error: {gpu.sticky}"
        assert tiny.path.is_file()


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 12 MiB"


def test_a_gpu_without_memory_costs_a_row_and_not_its_worker(gpu, tmp_path, monkeypatch):
    """Wherever torch finds that out: here where the row's stream is made."""
    path, engine = built(tmp_path)
    worker = Worker(open_backend("tensorrt", threads=1), tiny_images(4), threads=1)
    load = Load("row", EngineSource(STUDENT, (EngineFile(path, engine.sha256),)))
    with monkeypatch.context() as full:
        full.setattr(torch.cuda, "Stream", Raises(torch.OutOfMemoryError(OUT_OF_MEMORY)))
        assert worker.answer(load) == Refused(f"the GPU failed: {OUT_OF_MEMORY}")
    assert isinstance(worker.answer(load), LoadReport)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError(f"{OUT_OF_MEMORY} is free.\nSee the documentation"), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_gpu_without_memory_ends_a_command_with_one_message_and_a_bug_keeps_its_traceback(
    error, is_memory, monkeypatch, capsys
):
    monkeypatch.setattr("edc.cli.main.app", Raises(error))
    with pytest.raises(SystemExit if is_memory else RuntimeError) as ended:
        main()
    said = capsys.readouterr().err
    if is_memory:
        assert ended.value.code == 1
        assert said.startswith(f"error: {str(error).splitlines()[0]} (what was saved is intact")
        assert "--set training.micro_batch_size=N" in said
        assert said.count("\n") == 1
    else:
        assert said == ""


class Raises:
    """Raises an error, whatever it is called with."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: object) -> None:
        raise self.error


def test_bad_engines_and_gpus_end_a_command_with_one_message_and_exit_code_1_or_2(gpu, tmp_path, monkeypatch, capsys):
    path, engine = built(tmp_path)
    pixels = replace(engine, input_name="pixels")
    cases = {
        "of another version": (lambda: setattr(gpu, "version", "11.0.0"), engine),
        "of another GPU": (lambda: setattr(gpu, "generation", 89), engine),
        "no free memory": (lambda: setattr(gpu, "no_context", True), engine),
        "a driver too old": (lambda: setattr(gpu, "null", "Runtime"), engine),
        "another input than described": (lambda: None, pixels),
    }
    healthy = {"version": "10.9.0", "generation": 86, "no_context": False, "null": ""}
    for name, (broken, described) in cases.items():
        for attribute, value in healthy.items():
            setattr(gpu, attribute, value)
        broken()

        def command(described: Engine = described) -> None:
            engine_outputs(EngineRunner(path, described), tiny_images(2), batch_size=2)

        monkeypatch.setattr("edc.cli.main.app", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code in (1, 2), name
        assert said.startswith(f"error: {path}: "), name
        assert said.count("error:") == 1 or "CUDA initialization failure with error: 35" in said, name
        assert "Traceback" not in said, name


def test_a_gpu_that_fails_every_later_call_ends_its_worker_and_other_rows_get_a_new_one(gpu, tmp_path, monkeypatch):
    path, engine = built(tmp_path)
    load = Load("row", EngineSource(STUDENT, (EngineFile(path, engine.sha256),)))
    images, breaks_with, real = tiny_images(4), [], Worker.answer

    def answer(worker: Worker, request: Any) -> Any:
        if isinstance(request, Infer):
            gpu.sticky = breaks_with[-1]
        return real(worker, request)

    def conversation(sticky: str | None) -> list[Any]:
        """Returns what the parent of a worker hears: the GPU breaks after the row is loaded."""
        ours, theirs = Pipe()
        breaks_with.append(sticky)
        gpu.sticky = None

        for message in (images, load, Infer("row", images if sticky else images[:, :, :4])):
            ours.send(message)
        serving = Thread(target=serve, args=(theirs, "tensorrt"), kwargs={"threads": 1}, daemon=True)
        serving.start()
        heard = [ours.recv() for _ in range(3)]
        if not sticky:  # it lives on
            ours.send(load)
            heard.append(ours.recv())
        ours.close()
        serving.join(timeout=10)
        assert not serving.is_alive()
        return heard

    monkeypatch.setattr(Worker, "answer", answer)
    monkeypatch.setattr("edc.benchmark.workers.worker.os.dup2", lambda *_: None)
    monkeypatch.setattr("edc.benchmark.workers.worker.signal.signal", lambda *_: None)
    _, loaded, refused, again = conversation(None)
    assert (type(loaded), refused.has_ended, type(again)) == (LoadReport, False, LoadReport)
    _, loaded, refused = conversation("an illegal memory access was encountered")
    assert isinstance(loaded, LoadReport)
    assert refused == Refused(refused.reason, has_ended=True)
    assert "an illegal memory access was encountered" in refused.reason
    assert "\n" not in refused.reason


def test_gpu_clocks_are_sampled_while_a_row_is_timed_and_a_change_is_flagged():
    """By the process that waits for the worker, which has nothing else to do."""
    probe, looks = Probe(), iter([1980.0, 1755.0, 1200.0])
    ours, theirs = Pipe()
    worker = object.__new__(WorkerProcess)
    dead, _ = Pipe()
    vars(worker).update(_connection=ours, limit_s=30.0, _is_ready=True, _process=SimpleNamespace(sentinel=dead))

    def look() -> None:
        probe.clocks_mhz.append(next(looks))
        if len(probe.clocks_mhz) == 3:
            theirs.send("the answer")

    assert worker.ask("time", doing="timing", look=look) == "the answer"
    assert probe.flags == ("GPU clock: between 1200 and 1980 MHz while this row was timed",)
    steady = Probe()
    steady.clocks_mhz += [1980, 1965, 1950]
    steady.gpu_ns += [100, 101, 100, 150, 150, 100]
    assert steady.flags == ("restless GPU: in 2 of 6 rounds the GPU itself was slower",)


def test_gpu_without_the_drivers_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("edc.system.gpu.DEVICES", tmp_path)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: exec("raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)"))
    assert gpus_or_reason() == ()
    (tmp_path / "nvidia0").touch()
    assert "NVML is missing (libnvidia-ml, which comes with nvidia-smi)" in gpus_or_reason()
    assert "torch-cuda" in available_backends(quick=True)
    flags = environment_now(threads=1).flags
    assert any(flag.startswith("GPU: there is a GPU, but the driver's NVML is missing") for flag in flags)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus_or_reason() == "there is a GPU, but the package nvidia-ml-py is missing"


def test_onnxruntime_for_cuda_is_imported_after_torch_whose_cuda_libraries_it_then_uses(monkeypatch):
    seen, real = [], builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: seen.append(name) or real(name, *rest))
    OnnxRuntimeCuda(threads=1)
    assert [name for name in seen if name in ("torch", "onnxruntime")] == ["torch", "onnxruntime"]
