"""An ONNX file that ONNX's own checker has accepted."""

from pathlib import Path

import onnx

from edc.errors import FailedError, first_line
from edc.system.files import write_atomically

__all__ = ["REFUSALS", "write_checked"]

REFUSALS: tuple[type[Exception], ...] = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
"""The checker's errors for a graph that it does not accept."""


def write_checked(model: onnx.ModelProto, path: Path, *, what: str) -> None:
    """Writes the model to `path`, the same bytes each time; the file appears only if the checker accepts it.

    Args:
        what: names the graph in the error.

    Raises:
        FailedError: the checker rejects the graph; nothing is written.
    """
    with write_atomically(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(temporary, full_check=True)
        except REFUSALS as error:
            raise FailedError(f"{path}: the ONNX checker rejects {what}: {first_line(error)}") from error
