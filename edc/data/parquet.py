"""Parquet files in the Hugging Face image layout: a struct column {bytes, path} and an integer label."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edc.console import console
from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import DataSet
from edc.data.files.classes import MOST_CLASSES
from edc.data.files.decode import GREY_MODES, converted, opened, turn_of
from edc.data.files.left_out import LeftOut, is_hidden, kind_of
from edc.data.files.look import look_at
from edc.data.files.splits import SPLITS, Split, split_at_the_start, split_of_folder
from edc.data.images import FileImages, Images, MemoryImages, crop_fraction_of, reading_of
from edc.data.names import Names
from edc.data.parquet_rows import ParquetReader, RowGroupReader, column_of, require_images, schema_of, table_of
from edc.data.sources import in_memory
from edc.data.tar_index import NO_LABEL
from edc.errors import DataError
from edc.recipe import DataSection
from edc.system.documents import json_from_text

__all__ = ["load_parquet", "load_unlabelled_parquet"]

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label", "labels")
IN_MEMORY_BYTES = 1 << 30
"""Files of a split up to this size are held in memory, encoded."""


def load_parquet(data: DataSection) -> DataSet:
    """Returns the data in `root/train-*.parquet`, `validation-*` (optional) and `test-*`, or other names of splits.

    Without `image_size` all images must have one size and are decoded into memory once; with it they are decoded on
    request, resized and cropped, and read from disk by row groups if the files are large.
    """
    files = _files(data.root or Path("data"))
    validation_files = files["validation"]
    test_files = files["test"] if _labelled(data, files["test"]) else []
    class_names: tuple[str, ...] | None = None
    if data.unlabelled and (test_files or validation_files):
        _, class_names = _labels(data, test_files or validation_files)
    train, class_names = _read(data, files["train"], class_names, labelled=not data.unlabelled)
    # Without `test`, the public validation set is what papers test on.
    validation = _read(data, validation_files, class_names)[0] if validation_files else None
    test = _read(data, test_files, class_names)[0] if test_files else None
    _require_like_channels({"train": train, "validation": validation, "test": test})
    if data.kind == "parquet":
        train, validation, test = data_set.divide(data, train, validation, test, class_names)
    elif validation is None or test is None:  # the papers' fixed split of CIFAR and Fashion-MNIST, which come shuffled
        test = test or validation
        if test is None:
            train, test = data_set.stratified_split(train, data.test or len(train) // 10, data.split_seed)
        train, validation = data_set.split_at(train, data.validation or 5000)
    if isinstance(train, MemoryImages):
        return in_memory(data, train, validation, test, class_names)
    return data_set.of_files((data_set.limit(train, data.train_limit), validation, test), class_names)


def load_unlabelled_parquet(data: DataSection) -> Images:
    """Returns the images of `root/train-*.parquet`, whatever labels they have."""
    return _read(data, _files(data.root or Path("data"))["train"], labelled=False)[0]


def _files(root: Path) -> dict[Split, list[Path]]:
    """Returns the files of each split, in `root`, `root/data` or a folder with a split's name; those of `train` exist.

    Raises:
        DataError: none for training, or files of one split under two names.
    """
    named: dict[Split, dict[str, list[Path]]] = {split: {} for split in SPLITS}
    left_out = LeftOut()
    for path in sorted(root.glob("*")):
        if path.suffix != ".parquet" and path.is_file():
            left_out.add(kind_of(path.name, "beside the parquet files"), path.name)
    for path in sorted(root.glob("*.parquet")) + sorted(root.glob("*/*.parquet")) + sorted(root.glob("*/*/*.parquet")):
        if any(is_hidden(part) for part in path.relative_to(root).parts):
            left_out.add("hidden", str(path.relative_to(root)))  # a Mac's `._0000.parquet` is none
            continue
        folder = path.parent.name if path.parent != root else ""
        is_deep = root not in (path.parent, path.parent.parent)
        if is_deep or not path.is_file() or (folder not in ("", "data") and not split_of_folder(folder)):
            left_out.add("parquet files in other folders", str(path.relative_to(root)))
            continue
        relative = path.name if folder in ("", "data") else f"{folder}/{path.name}"
        if (found := split_at_the_start(relative)) is None:
            left_out.add("parquet files of no known split", relative)
        else:
            split, word = found
            named[split].setdefault(word, []).append(path)
    left_out.report(str(root))
    for split, words in named.items():
        if len(words) > 1:
            both = " and ".join(str(paths[0].relative_to(root)) for paths in words.values())
            raise DataError(
                f"data.root: {root.absolute()} has {split} files of several names, {both}; expected one of them"
            )
    if not named["train"]:
        raise DataError(
            f"data.root: no train-*.parquet in {root.absolute()}; point data.root or --data-root at the files"
        )
    return {split: [path for paths in words.values() for path in paths] for split, words in named.items()}


def _require_like_channels(splits: dict[str, Images | None]) -> None:
    """Raises `DataError` if some splits in memory have colour and others have none."""
    channels = {name: images.image_shape[0] for name, images in splits.items() if images is not None}
    grey = [name for name, num in channels.items() if num == 1]
    if grey and len(grey) < len(channels):
        colour = [name for name in channels if name not in grey]
        raise DataError(
            f"data.channels: all images of {' and '.join(grey)} are grey, but {' and '.join(colour)} has colour; say 3 "
            "(RGB) or 1 (grey)"
        )


def _labelled(data: DataSection, files: list[Path]) -> bool:
    """Returns whether there are files with labels: ImageNet's test split comes with -1 for every one."""
    if not files:
        return False
    column = column_of(files, data.label_column, LABEL_COLUMNS, "label_column")
    labels = table_of(files, [column])[column].to_pylist()
    if not (found := any(label != -1 for label in labels)):
        console.print(
            f"data: {files[0].parent}: left out {len(labels):,} test images, which have no labels (-1)",
            highlight=False,
            markup=False,
        )
    return found


def _labels(
    data: DataSection, files: list[Path], expected_classes: tuple[str, ...] | None = None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Returns the labels (N,) of all rows and the class names."""
    column = column_of(files, data.label_column, LABEL_COLUMNS, "label_column")
    labels = table_of(files, [column])[column]
    if not str(labels.type).startswith(("int", "uint")) or labels.null_count:
        raise DataError(
            f"{files[0]}: column {column} is {str(labels.type)[:200]} with "
            f"{labels.null_count} nulls, expected an integer class in every row"
        )
    if not len(labels):
        raise DataError(f"{files[0]}: no rows in this file or the {len(files) - 1} after it")
    values = labels.to_numpy()
    lowest, highest = int(values.min()), int(values.max())
    own_names = _class_names(files, column)
    if own_names and expected_classes and own_names != expected_classes:
        raise DataError(
            f"{files[0]}: calls its classes {', '.join(own_names[:3])}, ..., where another split has "
            f"{', '.join(expected_classes[:3])}, ...; labels are numbers, so expected the same names in the same order"
        )
    names = expected_classes or own_names
    num_classes = len(names) if names else min(highest + 1, MOST_CLASSES)
    if lowest < 0 or highest >= num_classes:
        raise DataError(f"{files[0]}: labels run from {lowest} to {highest}, expected 0 to {num_classes - 1}")
    return torch.from_numpy(values.astype(np.int64)), names or tuple(str(k) for k in range(num_classes))


def _class_names(files: list[Path], column: str) -> tuple[str, ...] | None:
    """Returns the names that the hub's metadata give the classes; None: there are none, or none that can be read."""
    text = (schema_of(files[0]).metadata or {}).get(b"huggingface")
    if text is None:
        return None
    where: Any
    try:
        where = json_from_text(text.decode())
    except ValueError:
        where = "no JSON"
    for key in ("info", "features", column, "names"):
        if isinstance(where, dict) and where.get(key) is None:
            return None
        where = where[key] if isinstance(where, dict) else where
    if isinstance(where, list) and all(isinstance(name, str) for name in where):
        return tuple(where) or None
    console.print(
        f"data: {files[0]}: the hub's metadata does not list the names of the classes, but has {str(where)[:40]!r}; "
        "classes are called by their numbers",
        highlight=False,
        markup=False,
    )
    return None


def _read(
    data: DataSection, files: list[Path], expected_classes: tuple[str, ...] | None = None, *, labelled: bool = True
) -> tuple[Images, tuple[str, ...]]:
    split = files[0].name.split("-", maxsplit=1)[0]
    column = column_of(files, data.image_column, IMAGE_COLUMNS, "image_column")
    require_images(files, column)
    reader: ParquetReader | RowGroupReader
    if data.image_size is not None and sum(file.stat().st_size for file in files) > IN_MEMORY_BYTES:
        reader = RowGroupReader(tuple(str(file) for file in files), column)
    else:
        reader = ParquetReader(table_of(files, [column])[column].combine_chunks())
    if labelled:
        labels, class_names = _labels(data, files, expected_classes)
    else:
        labels, class_names = torch.full((len(reader),), NO_LABEL), expected_classes or ()
    names = Names.of(f"{split}.{column}[{row}]" for row in range(len(labels)))
    root, reading = str(files[0].parent), reading_of(data)
    read_otherwise = look_at(
        reader,
        lambda row: f"{root}/{names[row]}",
        len(names),
        reading,
        where=f"{root}/{split}",
        costly=reader.is_costly,
        tolerant=data.max_bad_fraction > 0,
    )
    if data.image_size is None:
        return MemoryImages(_decode_all(data, reader, [f"{root}/{name}" for name in names]), labels), class_names
    images = FileImages(
        names=names,
        labels=labels,
        read=reader,
        size=data.image_size,
        crop_fraction=crop_fraction_of(data),
        root=root,
        file_bytes=reader.file_bytes(),
        reading=reading,
        read_otherwise=read_otherwise,
        bad=BadImages(data.max_bad_fraction),
    )
    return images, class_names


def _decode_all(data: DataSection, reader: ParquetReader | RowGroupReader, names: list[str]) -> torch.Tensor:
    """Returns all images, (N, C, H, W): in colour if one of them has colour, unless the recipe says otherwise."""
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    for row, name in enumerate(names):
        with opened(reader(row), name) as image:
            channels = data.channels or (1 if image.mode in GREY_MODES else 3)
            turn = turn_of(image) if reading_of(data).upright else None
            upright = converted(image, name, channels, turn)
        width, height = upright.size
        if row == 0:
            pixels = np.empty((len(names), height, width, channels), np.uint8)
        if (height, width) != pixels.shape[1:3]:
            raise DataError(
                f"{name}: {width} x {height} pixels, the first image has "
                f"{pixels.shape[2]} x {pixels.shape[1]}; set data.image_size to resize them"
            )
        if channels > pixels.shape[3]:  # what is grey so far is the same in colour
            pixels = pixels.repeat(channels, axis=3)
        pixels[row] = np.asarray(upright).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
