"""A `bench.json` of an earlier run, read from its file and checked."""

from pathlib import Path
from typing import Any

from edc.benchmark.saved.document import SCHEMA_VERSION, whole_bench
from edc.errors import RequestError, shown
from edc.system.documents import json_from_text, read_text

__all__ = ["load_saved"]

FILE_NAME = "bench.json"


def load_saved(path: Path) -> dict[str, Any]:
    """Returns the document of a saved bench, checked.

    Args:
        path: a bench.json, or the artifact it is in.

    Raises:
        RequestError: it is missing, not JSON, of another version, or not what `edc bench` writes.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        document: dict[str, Any] = json_from_text(read_text(file))
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"{file}: not found; a saved bench is the {FILE_NAME} that `edc bench` wrote") from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # also bytes that are no UTF-8
        raise RequestError(f"{file}: not JSON ({error}); save the {FILE_NAME} of `edc bench` again") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise RequestError(
            f"{file}: schema_version is {shown(version)}, this edc compares version {SCHEMA_VERSION}; "
            "run `edc bench` again and save what it writes"
        )
    whole_bench(document, name=str(file))
    return document
