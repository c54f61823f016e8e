"""A file of predictions, one row per image, also for an image that could not be read: CSV, Parquet or JSON lines."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edc.errors import NotInstalledError
from edc.system.files import require_free_name, write_atomically

__all__ = ["Row", "require_writable", "rows_to"]

SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True)
class Row:
    """What a network made of one image."""

    image: str
    """Its path below the folder."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable classes and their probabilities; none for an image that could not be read."""
    abstained: bool = False
    """Whether the first probability is below the confidence that was asked for."""
    error: str = ""
    """Why the image could not be read."""


Write = Callable[[Sequence[Row]], object]


def require_writable(path: Path, *, force: bool) -> None:
    """Raises unless a file of predictions may be written to `path`, in the format that its suffix says."""
    require_free_name(path, suffixes=SUFFIXES, force=force)
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise NotInstalledError("--out: .parquet needs pyarrow: pip install 'edc[hf]'") from None


@contextmanager
def rows_to(path: Path, *, num_top: int) -> Iterator[Write]:
    """Yields what writes rows; the file appears whole when the block ends well, and not at all when it does not."""
    writers = {".csv": _csv_writer, ".parquet": _parquet_writer, ".jsonl": _json_writer}
    with write_atomically(path) as temporary, writers[path.suffix](temporary, num_top) as write:
        yield write


@contextmanager
def _csv_writer(path: Path, num_top: int) -> Iterator[Write]:
    columns = _columns(num_top)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        yield lambda rows: writer.writerows(_in_csv(_cells(row, num_top)) for row in rows)


@contextmanager
def _json_writer(path: Path, num_top: int) -> Iterator[Write]:
    def line(row: Row) -> str:
        document = _cells(row, 1)
        document["top"] = [{"class": name, "probability": probability} for name, probability in row.top]
        return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"

    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(line(row) for row in rows)


@contextmanager
def _parquet_writer(path: Path, num_top: int) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in _columns(num_top).items()])
    with parquet.ParquetWriter(path, schema) as writer:

        def write(rows: Sequence[Row]) -> None:
            writer.write_table(pyarrow.Table.from_pylist([_cells(row, num_top) for row in rows], schema=schema))

        yield write


def _columns(num_top: int) -> dict[str, type]:
    """Returns the columns and their types: with several classes asked for, each of them has two."""
    columns: dict[str, type] = {"image": str, "class": str, "probability": float}
    for place in range(1, num_top + 1) if num_top > 1 else ():
        columns |= {f"class_{place}": str, f"probability_{place}": float}
    return columns | {"abstained": bool, "error": str}


def _cells(row: Row, num_top: int) -> dict[str, Any]:
    """Returns the row by column; None where there is nothing: no class where the network abstains."""
    first = row.top[0] if row.top else (None, None)
    cells = dict[str, Any].fromkeys(_columns(num_top))
    cells |= {"image": row.image, "class": None if row.abstained else first[0], "probability": first[1]}
    for place, (name, probability) in enumerate(row.top if num_top > 1 else (), start=1):
        cells |= {f"class_{place}": name, f"probability_{place}": probability}
    return cells | {"abstained": row.abstained, "error": row.error or None}


def _in_csv(cells: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in cells.items()}
