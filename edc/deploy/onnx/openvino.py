"""OpenVINO: its import, its one Core, and what it answers, in float32 and the 8 bits of a quantised file."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edc.errors import FailedError

__all__ = ["has_openvino", "import_openvino", "openvino_core", "openvino_outputs", "reason_of"]


def has_openvino() -> bool:
    """Returns whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Returns the module `openvino`; its import would report to the vendor if its telemetry package could be found."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what makes an import fail
    import openvino

    return openvino


@cache
def openvino_core() -> Any:
    """Returns the one Core of this process, which is never destroyed.

    The CPU plugin gives the thread an alternate signal stack, and takes it away again with the Core. If two Cores end
    in the order in which they began, the second puts the first one's stack back, which is unmapped by then. The next
    signal crashes the process (found with OpenVINO 2026.4.1).
    """
    return import_openvino().Core()


def openvino_outputs(path: Path, images: NDArray[Any], *, batch_size: int) -> NDArray[np.float32]:
    """Returns the logits (N, K) of the file at `path`, on the CPU; what is not quantised is computed in float32.

    Raises:
        FailedError: OpenVINO does not load or run it.
    """
    try:
        compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
        parts = [
            np.array(request.infer({0: np.ascontiguousarray(images[start : start + batch_size])})[0], np.float32)
            for start in range(0, len(images), batch_size)
        ]
    except RuntimeError as error:
        raise FailedError(f"{path}: OpenVINO cannot run it: {reason_of(error)}") from error
    return np.concatenate(parts)


def reason_of(error: RuntimeError) -> str:
    """Returns the line of OpenVINO's message that says what happened: the first are where in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from")]
    return (said or ["no reason given"])[0][:300]
