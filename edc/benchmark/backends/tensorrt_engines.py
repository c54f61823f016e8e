"""TensorRT and TensorRT-RTX: the engines of an artifact, one or the members' in turn, with and without a CUDA graph."""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from edc.benchmark.backends.contract import Backend, EngineFile, EngineSource, Loaded, Source, WhatRan
from edc.benchmark.backends.on_cuda import CudaLoaded, captured
from edc.deploy.engine.from_onnx import Engine, Library, import_tensorrt, sidecar_path
from edc.deploy.engine.run import EngineRunner
from edc.deploy.ensemble import ensemble_log_probs
from edc.errors import ArtifactError, FailedError

__all__ = ["TensorRtEngines", "read_engine"]


class TensorRtEngines(Backend):
    """Either library: the one that the backend's name and each engine's description name."""

    def __init__(self, *, threads: int, library: Library) -> None:
        self.threads, self.library = threads, library
        torch.set_num_threads(threads)
        self.version = str(import_tensorrt(library).__version__)

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
        engines = [read_engine(file, self.library) for file in source.files]
        runners = [EngineRunner(file.path, engine) for file, engine in zip(source.files, engines, strict=True)]
        what_ran = WhatRan(
            provider=f"{self.library} on {torch.cuda.get_device_name()}",
            precision=source.subject.precision,
            version=self.version,
            threads=torch.get_num_threads(),
            notes=(
                "TF32 on" if any(engine.tf32 for engine in engines) else "TF32 off",
                "CUDA graph" if source.subject.cuda_graph else "no CUDA graph",
                "pinned buffers",
            ),
        )
        return CudaLoaded(
            lambda images: _bound(runners, images, source),
            what_ran,
            file_bytes=sum(engine.bytes for engine in engines),
            max_batch=min(engine.max_batch for engine in engines),
        )


def read_engine(file: EngineFile, library: Library) -> Engine:
    """Returns what the description beside an engine says of it, with the digest that the manifest gives.

    Raises:
        ArtifactError: one of the two is missing, or the description is not one, or of another library's engine.
    """
    description = sidecar_path(file.path)
    for path in (file.path, description):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; export again with: edc export --trt")
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        engine = Engine(**{**content, "sha256": file.sha256})
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{description}: not the description of an engine ({error}); export again") from error
    if engine.library != library:
        raise ArtifactError(f"{file.path}: is an engine for {engine.library}, not for {library}")
    return engine


def _bound(runners: list[EngineRunner], images: Tensor, source: EngineSource) -> Callable[[], Tensor]:
    """Returns what asks for the outputs: logits, or the log of the mean of the members' probabilities."""
    bindings = [runner.bind(images) for runner in runners]

    def compute() -> Tensor:
        for _, enqueue in bindings:
            enqueue()
        if len(bindings) == 1:
            return bindings[0][0]
        logits = torch.stack([logits for logits, _ in bindings])
        return ensemble_log_probs(logits, temperature=source.member_temperature)

    return captured(compute) if source.subject.cuda_graph else compute
