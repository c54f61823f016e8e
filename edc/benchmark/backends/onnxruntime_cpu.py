"""ONNX Runtime on the CPU: one file, or the members' files in turn."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from edc.benchmark.backends.contract import Backend, Floats, Loaded, OnnxSource, Source, WhatRan
from edc.deploy.artifact.feed import Fed
from edc.deploy.onnx.precision import precision_of_graph
from edc.deploy.onnx.session import CPU, import_onnxruntime, ort_errors, ort_session, share_threads
from edc.errors import ArtifactError, FailedError, first_line
from edc.metrics.ensemble import ensemble_log_probs

__all__ = ["OnnxRuntimeCpu", "OnnxRuntimeLoaded", "graph_precision", "member_temperature_of", "one_line", "onnx_files"]


class OnnxRuntimeCpu(Backend):
    """ONNX Runtime with the CPU provider alone, so that nothing can fall back."""

    def __init__(self, *, threads: int) -> None:
        self.threads = threads
        self.version: str = import_onnxruntime().__version__
        self.precisions: dict[Path, str] = {}
        self._shares_threads = False

    def take_process(self) -> None:
        """Gives all sessions one pool of threads, as if they were one network."""
        share_threads(self.threads)
        self._shares_threads = True

    def prepare(self, source: Source) -> None:
        """Reads what precision the graphs are in: the CPU provider computes in the types of the graph."""
        for path in onnx_files(source):
            self.precisions[path] = graph_precision(path)

    def load(self, source: Source) -> "OnnxRuntimeLoaded":
        files = onnx_files(source)
        sessions = [
            ort_session(path, providers=(CPU,), threads=self.threads, shares_threads=self._shares_threads)
            for path in files
        ]
        precisions = sorted({self.precisions.get(path) or graph_precision(path) for path in files})
        what_ran = WhatRan(
            provider=sessions[0].get_providers()[0],
            precision=" + ".join(precisions),
            version=self.version,
            threads=self.threads if self._shares_threads else sessions[0].get_session_options().intra_op_num_threads,
            notes=("one pool of threads for all sessions",) if self._shares_threads else (),
        )
        file_bytes = sum(path.stat().st_size for path in files)
        return OnnxRuntimeLoaded(
            sessions, what_ran, file_bytes=file_bytes, member_temperature=member_temperature_of(source)
        )


class OnnxRuntimeLoaded(Loaded):
    """Sessions on the same images; several are averaged as probabilities."""

    def __init__(
        self, sessions: list[Any], what_ran: WhatRan, *, file_bytes: int, member_temperature: float = 1.0
    ) -> None:
        self.what_ran, self.file_bytes = what_ran, file_bytes
        self._temperature = member_temperature
        self._errors = ort_errors()
        self._runs: list[tuple[Callable[..., list[Floats]], str]] = [
            (session.run, session.get_inputs()[0].name) for session in sessions
        ]
        self._run, self._name = self._runs[0]

    def infer(self, batch: Fed, /) -> Floats:
        try:
            # A single session is run without a loop, which would take half a microsecond, 3 % of the smallest network.
            if len(self._runs) == 1:
                return self._run(None, {self._name: batch})[0]
            outputs = [run(None, {name: batch})[0] for run, name in self._runs]
            return ensemble_log_probs(outputs, temperature=self._temperature)
        except self._errors as error:
            raise FailedError(f"ONNX Runtime cannot run batch {len(batch)}: {one_line(error)}") from error


def onnx_files(source: Source) -> tuple[Path, ...]:
    """Returns the files of an ONNX source, which must be there."""
    if not isinstance(source, OnnxSource) or not source.files:
        raise FailedError(f"an ONNX backend runs ONNX files, not {source}")
    missing = [path for path in source.files if not path.is_file()]
    if missing:
        raise ArtifactError(f"{missing[0]}: no such file; export again with: edc export")
    return source.files


def member_temperature_of(source: Source) -> float:
    """Returns what divides the logits of each file's network before they are averaged."""
    return source.member_temperature if isinstance(source, OnnxSource) else 1.0


def graph_precision(path: Path) -> str:
    """Returns int8, fp16, bf16 or fp32: the lowest that an ONNX file's convolutions and matrix products are in."""
    try:
        counts = precision_of_graph(path)
    except DecodeError as error:
        raise FailedError(f"{path}: cannot load it, it is damaged or no ONNX file ({error})") from None
    if counts.num_heavy_int8:
        return "int8"
    if counts.num_heavy_fp16:
        return "fp16"
    return "bf16" if counts.num_bf16_nodes else "fp32"


def one_line(error: Exception) -> str:
    """Returns ONNX Runtime's message without its error number prefix, in one line."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", first_line(error))
