"""What kind of file a teacher is, by its content, and whether it may be opened: some kinds run code.

A state dict holds tensors, an ONNX file a list of known operators. TorchScript is a program: it can loop for ever and
write files. An exported program unpickles what its archive holds. An ONNX file with control flow or operators of
others is a program, too. Such a file is opened only if its checkpoint says `trust: true` (docs/trust.md).
"""

from pathlib import Path
from typing import Literal

from edc.errors import CheckpointError, RecipeError, cut, first_line
from edc.recipe import CheckpointSection
from edc.system.archives import zip_entries
from edc.system.onnx_content import outside_arithmetic, read_onnx

__all__ = ["FileFormat", "format_of", "trusted_format", "what_runs"]

FileFormat = Literal["state_dict", "torchscript", "exported_program", "onnx"]
PROGRAMS = {"torchscript": "TorchScript, a program", "exported_program": "an exported program, which unpickles objects"}


def format_of(path: Path) -> FileFormat:
    """Returns what kind of file `path` is, by its content where the suffix does not say."""
    if path.suffix == ".onnx":
        return "onnx"
    archived = [] if path.suffix == ".safetensors" else zip_entries(path)
    entries = {entry.filename.partition("/")[2] for entry in archived}
    if "archive_format" in entries or (entries and path.suffix == ".pt2"):
        return "exported_program"
    return "torchscript" if "constants.pkl" in entries else "state_dict"  # load_state says what is wrong with another


def trusted_format(checkpoint: CheckpointSection, *, source: str) -> FileFormat:
    """Returns the kind of the file of `checkpoint`, which may be opened: it cannot run code, or it is trusted.

    Args:
        source: what messages call it.

    Raises:
        CheckpointError: a program without `trust: true`, or under a name or format that promises another kind.
        RecipeError: `trust: true` on a file that needs none.
    """
    path = checkpoint.file
    assert path is not None
    content = format_of(path)
    kind = content if checkpoint.format == "auto" else checkpoint.format
    if content == "exported_program" and path.suffix != ".pt2":
        raise CheckpointError(
            f"{source}: holds {PROGRAMS[content]}, under the name of a file of weights; not opened. If you know where "
            "it comes from, name it .pt2"
        )
    if content in PROGRAMS and kind != content:
        raise CheckpointError(f"{source}: holds {PROGRAMS[content]}, but format says {kind}; not opened")
    runs = what_runs(path, kind, source)
    if runs and not checkpoint.trust:
        raise CheckpointError(
            f"{source}: is {runs}: it can run code of its author. If you trust where it comes from, add trust: true "
            "to this checkpoint (docs/trust.md); a state dict (.safetensors, .pt) needs no trust"
        )
    if checkpoint.trust and not runs:
        raise RecipeError(f"{source}: trust: has no effect, because this file ({kind}) cannot run code; leave it out")
    return kind


def what_runs(path: Path, kind: str, source: str) -> str:
    """Returns what a file of this kind is, in words, if it can run code; "" if it cannot.

    Raises:
        CheckpointError: an ONNX file that cannot be read.
    """
    return _operators(path, source) if kind == "onnx" else PROGRAMS.get(kind, "")


def _operators(path: Path, source: str) -> str:
    try:
        found = outside_arithmetic(read_onnx(path))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{source}: not readable as ONNX ({first_line(error)})") from None
    return f"an ONNX file with {cut(', '.join(found), 100)}" if found else ""
