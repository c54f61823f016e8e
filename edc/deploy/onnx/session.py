"""The one place that imports ONNX Runtime, with its telemetry off and its provider checked."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edc.errors import FailedError, first_line

__all__ = ["import_onnxruntime", "ort_errors", "ort_session", "ort_session_from_bytes", "share_threads"]

CPU = "CPUExecutionProvider"


def import_onnxruntime() -> Any:
    """Returns the module `onnxruntime`; its Linux wheels since 1.29 send telemetry unless told not to before."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def share_threads(threads: int) -> None:
    """Makes one pool of threads for this process, which from then on only takes sessions with `shares_threads`.

    By default each session has its own pool, whose threads spin for a while after its last inference. Sessions that
    take turns then compete for the cores: four networks one after another took up to twenty times as long as one.
    """
    import_onnxruntime().set_global_thread_pool_sizes(threads, 1)


def ort_session(
    path: Path, *, providers: Sequence[str] = (CPU,), threads: int = 0, shares_threads: bool = False
) -> Any:
    """Returns an `InferenceSession` on `path` that really runs on the first of `providers`.

    ONNX Runtime falls back to the CPU with no more than a log line when a provider cannot start.

    Args:
        threads: threads inside an operator; 0 lets ONNX Runtime take every core.
        shares_threads: use the pool of `share_threads`, which has been called, instead of one of its own.

    Raises:
        FailedError: the file cannot be loaded, or the session would run on something else.
    """
    return ort_session_from_bytes(
        str(path), what=str(path), providers=providers, threads=threads, shares_threads=shares_threads
    )


def ort_session_from_bytes(
    model: bytes | str,
    *,
    what: str,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    shares_threads: bool = False,
) -> Any:
    """Returns what `ort_session` returns, for a model in memory (or a path); `what` names it in errors."""
    ort = import_onnxruntime()
    absent = [provider for provider in providers if provider not in ort.get_available_providers()]
    if absent:
        raise FailedError(f"onnxruntime: no {absent[0]} in this build, which has {ort.get_available_providers()}")
    options = ort.SessionOptions()
    if shares_threads:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # its warnings describe its own choice of nodes; errors raise
    try:
        session = ort.InferenceSession(model, sess_options=options, providers=list(providers))
    except ort_errors() as error:
        raise FailedError(f"{what}: ONNX Runtime cannot load it: {first_line(error)}") from error
    if session.get_providers()[0] != providers[0]:
        raise FailedError(f"{what}: asked ONNX Runtime for {providers[0]}, it runs on {session.get_providers()[0]}")
    return session


def ort_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that ONNX Runtime raises; they have no common base short of Exception."""
    state = import_onnxruntime().capi.onnxruntime_pybind11_state
    values = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return tuple(values)
