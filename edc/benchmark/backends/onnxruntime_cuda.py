"""ONNX Runtime on the GPU, inputs and outputs bound to its memory: one file, or the members' files in turn.

When the CUDA provider cannot start, ONNX Runtime logs that and computes on the CPU; such a row fails.
"""

import sys
from collections import deque
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edc.benchmark.backends.contract import Backend, Floats, Loaded, Nanoseconds, Source, WhatRan
from edc.benchmark.backends.on_cuda import device_is_lost, gpu_probe_ns
from edc.benchmark.backends.onnxruntime_cpu import graph_precision, member_temperature_of, one_line, onnx_files
from edc.deploy.artifact.feed import Fed
from edc.deploy.onnx.precision import HEAVY_OPERATORS
from edc.deploy.onnx.session import import_onnxruntime, ort_errors
from edc.errors import FailedError
from edc.metrics.ensemble import ensemble_log_probs
from edc.system.gpu import gpus_now

__all__ = ["BoundSessions", "OnnxRuntimeCuda"]

CUDA = "CUDAExecutionProvider"
_HEAVY = (*HEAVY_OPERATORS, *(f"Fused{name}" for name in HEAVY_OPERATORS))


class OnnxRuntimeCuda(Backend):
    """ONNX Runtime with the CUDA provider, TF32 off, and no convolution or matrix product left to the CPU."""

    def __init__(self, *, threads: int) -> None:
        import torch  # noqa: F401 - before ONNX Runtime: both then use torch's own CUDA libraries

        self.threads = threads
        self.ort = import_onnxruntime()
        self.precisions: dict[Path, str] = {}

    def is_lost(self) -> bool:
        return device_is_lost()

    def prepare(self, source: Source) -> None:
        """Reads what precision the graphs are in, and loads CUDA's libraries where pip put them."""
        for path in onnx_files(source):
            self.precisions[path] = graph_precision(path)
        if hasattr(self.ort, "preload_dlls"):  # since 1.21
            # It prints what it does not find, and stdout is the document's with --json.
            with redirect_stdout(sys.stderr):
                self.ort.preload_dlls()

    def load(self, source: Source) -> "BoundSessions":
        files = onnx_files(source)
        sessions = [self._session(path) for path in files]
        what_ran = WhatRan(
            provider=sessions[0].get_providers()[0],
            precision=" + ".join(sorted({self.precisions.get(path) or graph_precision(path) for path in files})),
            version=self.ort.__version__,
            threads=sessions[0].get_session_options().intra_op_num_threads,
            notes=("TF32 off", "I/O binding", "parts by the host's clock, each waited for"),
        )
        file_bytes = sum(path.stat().st_size for path in files)
        return BoundSessions(
            sessions, what_ran, file_bytes=file_bytes, member_temperature=member_temperature_of(source)
        )

    def _session(self, path: Path) -> Any:
        if CUDA not in self.ort.get_available_providers():
            raise FailedError("onnxruntime-cuda: this ONNX Runtime is built without CUDA: pip install onnxruntime-gpu")
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = self.ort.InferenceSession(str(path), options, providers=[(CUDA, {"use_tf32": "0"})])
        except ort_errors() as error:
            raise FailedError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from error
        if (first := session.get_providers()[0]) != CUDA:
            cause = "the reason is on stderr" if gpus_now() else "no CUDA device"
            raise FailedError(f"onnxruntime-cuda: {cause}; ONNX Runtime fell back to {first}")
        if hasattr(session, "get_provider_graph_assignment_info"):
            require_heavy_on(CUDA, session)
        return session


class BoundSessions(Loaded):
    """Sessions that read the same images on the device; several are averaged as probabilities, on the host."""

    on_gpu = True

    def __init__(
        self,
        sessions: list[Any],
        what_ran: WhatRan,
        *,
        file_bytes: int,
        member_temperature: float = 1.0,
        device: str = "cuda",
    ) -> None:
        self.what_ran, self.file_bytes, self.device = what_ran, file_bytes, device
        self._temperature = member_temperature
        # Errors with bindings come as plain RuntimeError.
        self._errors: tuple[type[Exception], ...] = (*ort_errors(), RuntimeError)
        self._sessions = sessions
        self._borders_ns: deque[tuple[int, int, int, int]] = deque(maxlen=10_000)
        self._shape: tuple[int, ...] = ()

    def infer(self, batch: Fed, /) -> Floats:
        try:
            if batch.shape != self._shape:
                self._prepare(batch)
            start = perf_counter_ns()
            self._images.update_inplace(batch)
            copied_in = perf_counter_ns()
            for session, binding in zip(self._sessions, self._bindings, strict=True):
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            computed = perf_counter_ns()
            outputs: list[Floats] = [binding.copy_outputs_to_cpu()[0] for binding in self._bindings]
            self._borders_ns.append((start, copied_in, computed, perf_counter_ns()))
        except self._errors as error:
            raise FailedError(f"ONNX Runtime cannot run batch {len(batch)}: {one_line(error)}") from error
        return outputs[0] if len(outputs) == 1 else ensemble_log_probs(outputs, temperature=self._temperature)

    def probe_ns(self) -> int | None:
        return gpu_probe_ns() if self.device == "cuda" else None

    def parts_of_last(self, num_runs: int) -> dict[str, Nanoseconds]:
        borders = np.array(list(self._borders_ns)[-num_runs:], np.int64).T
        names = ("copy_in", "compute", "copy_out")
        return {name: borders[i + 1] - borders[i] for i, name in enumerate(names)}

    def _prepare(self, batch: Fed) -> None:
        self._shape = ()
        ort = import_onnxruntime()
        self._images = ort.OrtValue.ortvalue_from_shape_and_type(list(batch.shape), batch.dtype.type, self.device, 0)
        self._bindings = []
        for session in self._sessions:
            binding = session.io_binding()
            binding.bind_ortvalue_input(session.get_inputs()[0].name, self._images)
            binding.bind_output(session.get_outputs()[0].name, self.device)
            self._bindings.append(binding)
        self._shape = batch.shape


def require_heavy_on(provider: str, session: Any) -> None:
    """Raises if a convolution or matrix product of the session is not on `provider`; shapes may be on the CPU."""
    for subgraph in session.get_provider_graph_assignment_info():
        heavy = [node.op_type for node in subgraph.get_nodes() if node.op_type in _HEAVY]
        if heavy and subgraph.ep_name != provider:
            raise FailedError(f"ONNX Runtime left {', '.join(heavy)} to {subgraph.ep_name}, not {provider}")
