"""Rows of parquet files: encoded images by number, from memory or by row groups, and what the schema says."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edc.errors import DataError, NotInstalledError, first_line

__all__ = ["ParquetReader", "RowGroupReader", "column_of", "schema_of", "table_of"]


def table_of(files: list[Path], columns: list[str]) -> Any:
    """Returns some columns of all files; read without decoding an image."""
    pa, pq = _pyarrow()
    try:
        return pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{files[0].parent}: not readable as parquet ({first_line(error)})") from None


def schema_of(file: Path) -> Any:
    pa, pq = _pyarrow()
    try:
        return pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as parquet ({error})") from None


def column_of(files: Iterable[Path], asked: str | None, usual: tuple[str, ...], field: str) -> str:
    """Returns the name of a column that every file has: the one asked for, or the first of the usual ones.

    Raises:
        DataError: about `data.<field>`, if one of the files has no such column.
    """
    column = None
    for file in files:
        names: list[str] = schema_of(file).names
        wanted = (column,) if column else (asked,) if asked else usual
        column = next((name for name in wanted if name in names), None)
        if column is None:
            raise DataError(
                f"data.{field}: found columns {', '.join(names[:50])}, expected {' or '.join(wanted)} ({file})"
            )
    assert column is not None  # there is a file
    return column


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise NotInstalledError("data.kind 'parquet' needs pyarrow: pip install 'edc[hf]'") from None
    return pa, pq


def require_images(files: Iterable[Path], column: str) -> None:
    """Raises `DataError` unless the column holds encoded images: bytes, or a struct with a field of bytes."""
    pa, _ = _pyarrow()
    for file in files:
        found = schema_of(file).field(column).type
        if pa.types.is_struct(found):
            names = [found.field(number).name for number in range(found.num_fields)]
            held = found.field(names.index("bytes")).type if "bytes" in names else pa.null()
        else:
            held = found
        if not (pa.types.is_binary(held) or pa.types.is_large_binary(held)):
            raise DataError(
                f"{file}: column {column} is {str(found)[:200]}, expected encoded images: bytes, or a struct of bytes "
                "and path, as the Hugging Face hub has it"
            )


class ParquetReader:
    """Returns the encoded bytes of row `index`; the Arrow column is shared with worker processes by fork."""

    is_costly = False

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __call__(self, index: int) -> bytes:
        return _bytes_of(self.column[index])

    def file_bytes(self) -> torch.Tensor:
        return torch.tensor([len(self(row)) for row in range(len(self))])


class RowGroupReader:
    """Returns the encoded bytes of row `index`, holding no more than a few row groups in memory.

    One image costs reading its whole row group (some 10 MB if the hub's writer made the files). In a shuffled epoch
    this takes about as long as decoding a photograph. If that is the limit, use WebDataset shards, which read one
    image.
    """

    is_costly = True

    def __init__(self, paths: tuple[str, ...], column: str) -> None:
        self.paths, self.column = paths, column
        groups = [
            (file, group, metadata.row_group(group))
            for file, path in enumerate(paths)
            for metadata in [_parquet_file(path).metadata]
            for group in range(metadata.num_row_groups)
        ]
        self.where = [(file, group) for file, group, _ in groups]
        self.num_rows = np.array([metadata.num_rows for _, _, metadata in groups])
        self.num_bytes = np.array([metadata.total_byte_size for _, _, metadata in groups])
        self.ends = np.cumsum(self.num_rows)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __call__(self, index: int) -> bytes:
        number = int(np.searchsorted(self.ends, index, side="right"))
        file, group = self.where[number]
        row = index - int(self.ends[number] - self.num_rows[number])
        return _bytes_of(_row_group(self.paths[file], group, self.column)[row])

    def file_bytes(self) -> torch.Tensor:
        """Returns each row group's size for its rows, because the images' own sizes would have to be read."""
        return torch.from_numpy(np.repeat(self.num_bytes, self.num_rows))


@lru_cache(maxsize=4)
def _row_group(path: str, group: int, column: str) -> Any:
    # Arrow's own threads do not survive the fork of a worker.
    pa, _ = _pyarrow()
    try:
        return _parquet_file(path).read_row_group(group, columns=[column], use_threads=False)[column]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: row group {group} cannot be read ({error})") from None


@lru_cache(maxsize=64)
def _parquet_file(path: str) -> Any:
    pa, pq = _pyarrow()
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as parquet ({error})") from None


def _bytes_of(value: Any) -> bytes:
    """Returns the encoded image in a value of the column; nothing for a row without one, or with a path alone."""
    value = value.as_py()
    return (value["bytes"] if isinstance(value, dict) else value) or b""
