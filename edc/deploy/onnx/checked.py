"""ONNX files that ONNX's own checker has accepted, and those of others that hold nothing but arithmetic."""

from pathlib import Path

import onnx

from edc.errors import ArtifactError, FailedError, cut, first_line, shown
from edc.system.files import write_atomically
from edc.system.onnx_content import outside_arithmetic, read_onnx, weights_outside

__all__ = ["REFUSALS", "read_arithmetic", "write_checked"]

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


def read_arithmetic(path: Path) -> onnx.ModelProto:
    """Returns the model in a file of an artifact, which anybody may have made; nothing of it has been run.

    Raises:
        ArtifactError: it is no ONNX, keeps weights in another file, or has control flow or operators of others.
    """
    try:
        model: onnx.ModelProto = read_onnx(path)
        outside, foreign = weights_outside(model), outside_arithmetic(model)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a valid ONNX file ({first_line(error)})") from None
    if outside:  # whoever opens it would follow the reference
        name, place = outside[0]
        raise ArtifactError(f"{path}: keeps the weight {shown(name)} outside the file, in {shown(place)}; not trusted")
    if foreign:
        found = cut(", ".join(foreign), 200)
        raise ArtifactError(f"{path}: has {found}, which edc never writes: control flow or code of others; not trusted")
    return model
