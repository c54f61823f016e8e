"""Documents that edc writes and reads back: one reader, which says which file is damaged, and where."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from edc.errors import EdcError, RunError, cut, first_line
from edc.system.documents import json_from_text, read_text, yaml_from_text

__all__ = ["fault_of", "read_saved"]

Kind = TypeVar("Kind")


def read_saved(
    kind: type[Kind],
    path: Path,
    *,
    advice: str,
    language: Literal["json", "yaml"] = "json",
    raises: type[EdcError] = RunError,
) -> tuple[Kind, Any]:
    """Returns the document at `path` as `kind`, and as it stands there.

    Args:
        advice: what to do about a damaged file.

    Raises:
        raises: it cannot be read, or is not what edc writes. A missing file is the caller's to explain.
    """
    try:
        text = read_text(path)
        document = json_from_text(text) if language == "json" else yaml_from_text(text)
        return TypeAdapter(kind).validate_python(document), document
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise raises(f"{path}: damaged ({fault_of(error)}); {advice}") from None


def fault_of(error: OSError | ValueError) -> str:
    """Returns in one line what is wrong with a document: the first field that does not fit, or the reader's words."""
    if not isinstance(error, ValidationError):
        return getattr(error, "strerror", None) or first_line(error)
    first, *others = error.errors(include_url=False)
    place = ".".join(str(part) for part in first["loc"])
    more = f", and {len(others)} more" if others else ""
    return cut(f"{place}: {first['msg']}" if place else str(first["msg"]), 300) + more
