"""Parquet files in the Hugging Face image layout: a struct column {bytes, path} and an integer label."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edc.data import data_set
from edc.data.data_set import IMAGENET_MEAN, IMAGENET_STD, DataSet
from edc.data.images import FileImages, Images, MemoryImages, decode_image
from edc.data.sources import crop_fraction_of, in_memory
from edc.errors import DataError, NotInstalledError
from edc.recipe import DataSection

__all__ = ["load_parquet"]

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label", "labels")


def load_parquet(data: DataSection) -> DataSet:
    """Returns the data in `root/train-*.parquet`, `validation-*` or `valid-*` (optional) and `test-*`.

    Without `image_size` all images must have one size and are decoded into memory once; with it they are decoded when
    asked for, resized and cropped.
    """
    root = data.root or Path("data")
    files = {split: _files(root, split) for split in ("train", "validation", "valid", "test")}
    if not files["train"]:
        raise DataError(
            f"data.root: no train-*.parquet in {root.absolute()}; point data.root or --data-root at the files"
        )
    train, class_names = _read(data, files["train"])
    validation_files = files["validation"] or files["valid"]
    test_files = files["test"] if _labelled(data, files["test"]) else []
    if test_files or validation_files:  # without `test`, the public validation set is what papers test on
        test, _ = _read(data, test_files or validation_files, class_names)
    else:
        train, test = data_set.stratified_split(train, data.test or len(train) // 10, data.split_seed)
    if test_files and validation_files:
        validation, _ = _read(data, validation_files, class_names)
    elif data.kind != "parquet":  # the papers' fixed split of CIFAR and Fashion-MNIST, which come shuffled
        train, validation = data_set.split_at(train, data.validation or 5000)
    else:
        train, validation = data_set.stratified_split(train, data.validation or len(train) // 10, data.split_seed)
    if data.kind == "parquet":
        train = data_set.stratified_limit(train, data.train_limit, data.split_seed)
    if isinstance(train, MemoryImages):
        return in_memory(data, train, validation, test, class_names)
    size = train.size
    train = data_set.limit(train, data.train_limit)
    return DataSet(train, validation, test, class_names, (3, size, size), IMAGENET_MEAN, IMAGENET_STD)


def _files(root: Path, split: str) -> list[Path]:
    folders = (root, root / "data")
    return sorted(path for folder in folders for path in folder.glob(f"{split}-*.parquet") if path.is_file())


def _table(files: list[Path]) -> Any:
    """Returns the rows of all files; read without decoding an image."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise NotInstalledError("data.kind 'parquet' needs pyarrow: pip install 'edc[hf]'") from None
    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{files[0].parent}: not readable as parquet ({error})") from None


def _labelled(data: DataSection, files: list[Path]) -> bool:
    """Returns whether there are files with labels: ImageNet's test split comes with -1 for every one."""
    if not files:
        return False
    table = _table(files)
    column = _column(table, data.label_column, LABEL_COLUMNS, "label_column")
    return any(label != -1 for label in table[column].to_pylist())


def _read(
    data: DataSection, files: list[Path], expected_classes: tuple[str, ...] | None = None
) -> tuple[Images, tuple[str, ...]]:
    split = files[0].name.split("-", maxsplit=1)[0]
    table = _table(files)
    image_column = _column(table, data.image_column, IMAGE_COLUMNS, "image_column")
    label_column = _column(table, data.label_column, LABEL_COLUMNS, "label_column")
    if not str(table[label_column].type).startswith(("int", "uint")) or table[label_column].null_count:
        raise DataError(
            f"{files[0]}: column {label_column} is {table[label_column].type} with "
            f"{table[label_column].null_count} nulls, expected an integer class in every row"
        )
    labels = torch.from_numpy(table[label_column].to_numpy().astype(np.int64))
    class_names = expected_classes or _class_names(table.schema.metadata, label_column, labels)
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise DataError(
            f"{files[0]}: labels run from {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1}"
        )
    reader = ParquetReader(table[image_column].combine_chunks())
    names = tuple(f"{split}.{image_column}[{row}]" for row in range(len(labels)))
    root = str(files[0].parent)
    if data.image_size is not None:
        file_bytes = torch.tensor([len(reader(row)) for row in range(len(labels))])
        images = FileImages(names, labels, reader, data.image_size, crop_fraction_of(data), root, file_bytes)
        return images, class_names
    return MemoryImages(_decode_all(reader, [f"{root}/{name}" for name in names]), labels), class_names


class ParquetReader:
    """Returns the encoded bytes of row `index`; the Arrow column is shared with worker processes by fork."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __call__(self, index: int) -> bytes:
        value = self.column[index].as_py()
        return value["bytes"] if isinstance(value, dict) else value  # type: ignore[no-any-return]


def _decode_all(reader: ParquetReader, names: list[str]) -> torch.Tensor:
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
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
    except OSError as error:
        raise DataError(f"{name}: not a readable image ({error})") from None


def _column(table: Any, asked: str | None, usual: tuple[str, ...], field: str) -> str:
    names: list[str] = table.column_names
    found = asked if asked in names else next((name for name in usual if name in names), None)
    if found is None or (asked and asked not in names):
        raise DataError(f"data.{field}: found columns {', '.join(names)}, expected {asked or ' or '.join(usual)}")
    return found


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str, labels: torch.Tensor) -> tuple[str, ...]:
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label_column, {}).get("names")
    return tuple(names) if names else tuple(str(k) for k in range(int(labels.max()) + 1))
