"""TensorRT and TensorRT-RTX: the engines of an artifact, one or the members' in turn, with and without a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from edc.benchmark.backends.contract import Backend, EngineSource, Loaded, Source, WhatRan
from edc.benchmark.backends.on_cuda import CudaLoaded, captured, device_is_lost
from edc.deploy.engine.description import read_engine
from edc.deploy.engine.library import Library, import_tensorrt
from edc.deploy.engine.run import EngineRunner
from edc.deploy.ensemble import ensemble_log_probs
from edc.errors import FailedError

__all__ = ["TensorRtEngines"]


class TensorRtEngines(Backend):
    """Either library: the one that the backend's name and each engine's description name."""

    def __init__(self, *, threads: int, library: Library) -> None:
        self.threads, self.library = threads, library
        torch.set_num_threads(threads)
        self.version = str(import_tensorrt(library).__version__)

    def is_lost(self) -> bool:
        return device_is_lost()

    def prepare(self, source: Source) -> None:
        """Nothing: files are all that loading needs."""

    def load(self, source: Source) -> Loaded:
        if not isinstance(source, EngineSource):
            raise FailedError(f"{self.library} runs engines, not {source}")
        if not source.files:
            raise FailedError(
                f"no {self.library} engine of {source.subject.label} in the artifact; edc export --trt builds engines, "
                "with TensorRT where it and a GPU are, else with TensorRT-RTX"
            )
        engines = [read_engine(file.path, self.library, sha256=file.sha256) for file in source.files]
        runners = [EngineRunner(file.path, engine) for file, engine in zip(source.files, engines, strict=True)]
        are_compiled = all(runner.cache_path.is_file() for runner in runners)
        what_ran = WhatRan(
            provider=f"{self.library} on {torch.cuda.get_device_name()}",
            precision=source.subject.precision,
            version=self.version,
            threads=torch.get_num_threads(),
            notes=(
                "TF32 on" if any(engine.tf32 for engine in engines) else "TF32 off",
                _how_it_is_asked(self.library, cuda_graph=source.subject.cuda_graph),
                f"kernels chosen for batch {' and '.join(str(batch) for batch in engines[0].tuned_for)}",
                "pinned buffers",
                *(["kernels compiled by an earlier run"] if are_compiled else []),
            ),
        )

        def keep_compiled() -> None:
            for runner in runners:
                runner.keep_compiled()

        return CudaLoaded(
            lambda images: _bound(runners, images, source),
            what_ran,
            file_bytes=sum(engine.bytes for engine in engines),
            max_batch=min(engine.max_batch for engine in engines),
            once_run=keep_compiled,
        )


def _how_it_is_asked(library: Library, *, cuda_graph: bool) -> str:
    if not cuda_graph:
        return "no CUDA graph"
    return "CUDA graph by TensorRT-RTX itself" if library == "tensorrt_rtx" else "CUDA graph"


def _bound(runners: list[EngineRunner], images: Tensor, source: EngineSource) -> Callable[[], Tensor]:
    """Returns what asks for the outputs: logits, or the log of the mean of the members' probabilities."""
    cuda_graph = source.subject.cuda_graph
    bindings = [runner.bind(images, cuda_graph=cuda_graph) for runner in runners]

    def compute() -> Tensor:
        for _, enqueue in bindings:
            enqueue()
        if len(bindings) == 1:
            return bindings[0][0]
        logits = torch.stack([logits for logits, _ in bindings])
        return ensemble_log_probs(logits, temperature=source.member_temperature)

    records_its_own = all(runner.engine.library == "tensorrt_rtx" for runner in runners)
    return captured(compute) if cuda_graph and not records_its_own else compute
