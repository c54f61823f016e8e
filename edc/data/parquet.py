"""Parquet files in the Hugging Face image layout: a struct column {bytes, path} and an integer label."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import IMAGENET_MEAN, IMAGENET_STD, DataSet
from edc.data.images import FileImages, Images, MemoryImages, crop_fraction_of, decode_image, opened
from edc.data.names import Names
from edc.data.sources import in_memory
from edc.data.tar_index import NO_LABEL
from edc.errors import DataError, NotInstalledError
from edc.recipe import DataSection

__all__ = ["load_parquet", "load_unlabelled_parquet"]

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label", "labels")
IN_MEMORY_BYTES = 1 << 30
"""Files of a split up to this size are held in memory, encoded."""


def load_parquet(data: DataSection) -> DataSet:
    """Returns the data in `root/train-*.parquet`, `validation-*` or `valid-*` (optional) and `test-*`.

    Without `image_size` all images must have one size and are decoded into memory once; with it they are decoded on
    request, resized and cropped, and read from disk by row groups if the files are large.
    """
    root = data.root or Path("data")
    files = {split: _files(root, split) for split in ("train", "validation", "valid", "test")}
    _require_training_files(files["train"], root)
    validation_files = files["validation"] or files["valid"]
    test_files = files["test"] if _labelled(data, files["test"]) else []
    class_names: tuple[str, ...] | None = None
    if data.unlabelled and (test_files or validation_files):
        _, class_names = _labels(data, test_files or validation_files)
    train, class_names = _read(data, files["train"], class_names, labelled=not data.unlabelled)
    # Without `test`, the public validation set is what papers test on.
    validation = _read(data, validation_files, class_names)[0] if validation_files else None
    test = _read(data, test_files, class_names)[0] if test_files else None
    if data.kind == "parquet":
        train, validation, test = data_set.divide(data, train, validation, test)
    elif validation is None or test is None:  # the papers' fixed split of CIFAR and Fashion-MNIST, which come shuffled
        test = test or validation
        if test is None:
            train, test = data_set.stratified_split(train, data.test or len(train) // 10, data.split_seed)
        train, validation = data_set.split_at(train, data.validation or 5000)
    if isinstance(train, MemoryImages):
        return in_memory(data, train, validation, test, class_names)
    shape = (3, train.size, train.size)
    train = data_set.limit(train, data.train_limit)
    return DataSet(train, validation, test, class_names, shape, IMAGENET_MEAN, IMAGENET_STD)


def load_unlabelled_parquet(data: DataSection) -> Images:
    """Returns the images of `root/train-*.parquet`, whatever labels they have."""
    root = data.root or Path("data")
    files = _files(root, "train")
    _require_training_files(files, root)
    return _read(data, files, labelled=False)[0]


def _require_training_files(files: list[Path], root: Path) -> None:
    if not files:
        raise DataError(
            f"data.root: no train-*.parquet in {root.absolute()}; point data.root or --data-root at the files"
        )


def _files(root: Path, split: str) -> list[Path]:
    folders = (root, root / "data")
    return sorted(path for folder in folders for path in folder.glob(f"{split}-*.parquet") if path.is_file())


def _table(files: list[Path], columns: list[str]) -> Any:
    """Returns some columns of all files; read without decoding an image."""
    pa, pq = _pyarrow()
    try:
        return pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{files[0].parent}: not readable as parquet ({error})") from None


def _schema(file: Path) -> Any:
    pa, pq = _pyarrow()
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as parquet ({error})") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise NotInstalledError("data.kind 'parquet' needs pyarrow: pip install 'edc[hf]'") from None
    return pa, pq


def _labelled(data: DataSection, files: list[Path]) -> bool:
    """Returns whether there are files with labels: ImageNet's test split comes with -1 for every one."""
    if not files:
        return False
    column = _column(_schema(files[0]), data.label_column, LABEL_COLUMNS, "label_column")
    return any(label != -1 for label in _table(files, [column])[column].to_pylist())


def _labels(
    data: DataSection, files: list[Path], expected_classes: tuple[str, ...] | None = None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Returns the labels (N,) of all rows and the class names."""
    column = _column(_schema(files[0]), data.label_column, LABEL_COLUMNS, "label_column")
    table = _table(files, [column])
    if not str(table[column].type).startswith(("int", "uint")) or table[column].null_count:
        raise DataError(
            f"{files[0]}: column {column} is {table[column].type} with "
            f"{table[column].null_count} nulls, expected an integer class in every row"
        )
    labels = torch.from_numpy(table[column].to_numpy().astype(np.int64))
    class_names = expected_classes or _class_names(table.schema.metadata, column, labels)
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise DataError(
            f"{files[0]}: labels run from {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1}"
        )
    return labels, class_names


def _read(
    data: DataSection, files: list[Path], expected_classes: tuple[str, ...] | None = None, *, labelled: bool = True
) -> tuple[Images, tuple[str, ...]]:
    split = files[0].name.split("-", maxsplit=1)[0]
    image_column = _column(_schema(files[0]), data.image_column, IMAGE_COLUMNS, "image_column")
    reader: ParquetReader | RowGroupReader
    if data.image_size is not None and sum(file.stat().st_size for file in files) > IN_MEMORY_BYTES:
        reader = RowGroupReader(tuple(str(file) for file in files), image_column)
    else:
        reader = ParquetReader(_table(files, [image_column])[image_column].combine_chunks())
    if labelled:
        labels, class_names = _labels(data, files, expected_classes)
    else:
        labels, class_names = torch.full((len(reader),), NO_LABEL), expected_classes or ()
    names = Names.of(f"{split}.{image_column}[{row}]" for row in range(len(labels)))
    root = str(files[0].parent)
    if data.image_size is None:
        return MemoryImages(_decode_all(reader, [f"{root}/{name}" for name in names]), labels), class_names
    images = FileImages(
        names=names,
        labels=labels,
        read=reader,
        size=data.image_size,
        crop_fraction=crop_fraction_of(data),
        root=root,
        file_bytes=reader.file_bytes(),
        bad=BadImages(data.max_bad_fraction),
    )
    return images, class_names


class ParquetReader:
    """Returns the encoded bytes of row `index`; the Arrow column is shared with worker processes by fork."""

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
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: row group {group} cannot be read ({error})") from None


@lru_cache(maxsize=64)
def _parquet_file(path: str) -> Any:
    pa, pq = _pyarrow()
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as parquet ({error})") from None


def _bytes_of(value: Any) -> bytes:
    """Returns the encoded image in a value of the column; nothing for a row without one, or with a path alone."""
    value = value.as_py()
    return (value["bytes"] if isinstance(value, dict) else value) or b""


def _decode_all(reader: Callable[[int], bytes], names: list[str]) -> torch.Tensor:
    first = np.array(_open(reader(0), names[0]))
    channels = 3 if first.ndim == 3 else 1
    pixels = np.empty((len(names), first.shape[0], first.shape[1], channels), np.uint8)
    for row, name in enumerate(names):
        image = decode_image(reader(row), name, channels)
        if image.size != (first.shape[1], first.shape[0]):
            raise DataError(
                f"{name}: {image.size[0]} x {image.size[1]} pixels, the first image has "
                f"{first.shape[1]} x {first.shape[0]}; set data.image_size to resize them"
            )
        pixels[row] = np.asarray(image).reshape(pixels.shape[1:])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _open(content: bytes, name: str) -> Any:
    with opened(content, name) as image:
        return image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")


def _column(schema: Any, asked: str | None, usual: tuple[str, ...], field: str) -> str:
    names: list[str] = schema.names
    found = asked if asked in names else next((name for name in usual if name in names), None)
    if found is None or (asked and asked not in names):
        raise DataError(f"data.{field}: found columns {', '.join(names)}, expected {asked or ' or '.join(usual)}")
    return found


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str, labels: torch.Tensor) -> tuple[str, ...]:
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label_column, {}).get("names")
    return tuple(names) if names else tuple(str(k) for k in range(int(labels.max()) + 1))
