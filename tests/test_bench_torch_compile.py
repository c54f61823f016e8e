"""torch.compile compiles, says so, and is never timed while it does."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_onnx import tiny_images
from tiny_run import make_tiny_run
from torch import nn

from edc.benchmark.backends import _has_compiler
from edc.benchmark.backends.contract import TorchSource
from edc.benchmark.backends.torch_compiled import TorchCompiled, TorchCompiledLoaded
from edc.benchmark.backends.torch_eager import TorchLoaded
from edc.benchmark.workers.pool import NotRun, RowSpec, WorkerPool
from edc.benchmark.workers.protocol import Infer, LoadReport, Refused, RoundReport, TimeRound
from edc.benchmark.workers.worker import Worker
from edc.errors import FailedError
from edc.runs.networks import SubjectNetworks
from edc.subject import Subject

TEACHER = Subject("teacher", member=0)

pytestmark = [
    pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler"),
    pytest.mark.filterwarnings("default"),  # of torch's own compiler
]


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 8), nn.ReLU(), nn.Linear(8, 5))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchCompiled]:
    """The backend in this process; what it sets is put back."""
    import torch._dynamo

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    threads = torch.get_num_threads()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):
        yield TorchCompiled(threads=1)
    torch.set_num_threads(threads)


def load(backend: TorchCompiled, *networks: nn.Module) -> TorchCompiledLoaded:
    """Returns what the backend loads, without a run to load it from."""
    folder = backend.folder / str(len(list(backend.folder.iterdir())))
    backend._compile_into(folder)
    return TorchCompiledLoaded(SubjectNetworks(networks))


@pytest.mark.slow
def test_members_in_turn_compute_what_eager_torch_computes_in_few_graphs(backend):
    loaded = load(backend, linear(0), linear(1))
    eager = TorchLoaded(SubjectNetworks((linear(0), linear(1))))
    for batch in (1, 2, 7, 64, 1, 256, 31):
        images = tiny_images(batch)
        np.testing.assert_allclose(loaded.infer(images), eager.infer(images), rtol=1e-4, atol=1e-5)
    assert 1 < loaded.num_compilations() <= 3  # batch 1, any other, and what a library below does with large ones
    assert loaded.what_ran.provider == "torch.compile on cpu"
    assert loaded.file_bytes == eager.file_bytes


@pytest.mark.slow
def test_networks_of_one_class_do_not_share_a_limit_on_graphs(backend):
    """What torch has compiled too often it would run as eager torch."""
    all_loaded = [load(backend, linear(seed)) for seed in range(3)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for loaded in all_loaded:
            loaded.infer(tiny_images(1))
            loaded.infer(tiny_images(2))
    assert [loaded.num_compilations() for loaded in all_loaded] == [2, 2, 2]


@pytest.mark.slow
def test_round_in_which_something_was_compiled_is_refused(backend):
    worker = Worker(backend, tiny_images(64), threads=1)
    worker.loaded["a"] = load(backend, linear())
    worker.answer(Infer("a", tiny_images(1)))
    answers = [worker.answer(TimeRound("a", batch=2, first=0, num_runs=3, settle_ms=0.1)) for _ in range(2)]
    assert answers[0] == Refused("torch.compile on cpu: compiled 1 more graphs while it was timed")
    assert isinstance(answers[1], RoundReport)
    assert answers[1].samples.shape == (3,)
    assert answers[1].parts == {}


def test_compiler_that_is_switched_off_is_a_reason_not_eager_torch(backend):
    with (
        torch._dynamo.config.patch(disable=True),
        pytest.raises(FailedError, match=r"compiled nothing and ran eager|no compiled frames"),
    ):
        load(backend, linear()).infer(tiny_images(1))


@pytest.mark.slow
def test_what_cannot_be_compiled_whole_is_a_reason(backend):
    class Prints(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super().forward(images.flatten(1))

    with pytest.raises(FailedError, match="torch cannot run batch 1: "):
        load(backend, Prints(3 * 8 * 8, 5)).infer(tiny_images(1))


@pytest.mark.slow
def test_first_inference_of_each_row_holds_a_compilation_of_its_own(tmp_path):
    """Two teachers of one architecture: a cache that the first one filled would make the second one's free."""
    _, data = make_tiny_run(tmp_path / "tiny")
    images = data.test.images.float().numpy() / 255
    specs = [
        RowSpec(subject, "torch-compile", TorchSource(tmp_path / "tiny", subject))
        for subject in (Subject("teacher", member=0), Subject("teacher", member=1))
    ]
    with WorkerPool(images=images, threads=1) as pool:
        loads = [pool.load(spec) for spec in specs]
        outputs = pool.predict(specs, [images])
    assert all(isinstance(load, LoadReport) for load in loads)
    first, second = (load.first_inference_ms for load in loads)
    assert 1 / 4 < second / first < 4  # with a cache: a tenth
    assert not any(isinstance(output, NotRun) for output in outputs.values())


@pytest.mark.slow
def test_compiler_that_is_missing_is_a_reason_in_the_row(tmp_path, monkeypatch):
    _, data = make_tiny_run(tmp_path / "tiny")
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    spec = RowSpec(TEACHER, "torch-compile", TorchSource(tmp_path / "tiny", TEACHER))
    with WorkerPool(images=data.test.images.float().numpy() / 255, threads=1) as pool:
        refused = pool.load(spec)
    assert isinstance(refused, NotRun)
    assert "no-such-compiler" in refused.reason or "compiler" in refused.reason
    assert "\n" not in refused.reason
