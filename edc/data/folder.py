"""Folders of image files: one folder per class, or training images without classes."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from edc.console import console
from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import IMAGENET_MEAN, IMAGENET_STD, DataSet
from edc.data.images import FileImages, FolderReader, crop_fraction_of
from edc.data.names import Names
from edc.data.tar_index import NO_LABEL
from edc.errors import DataError
from edc.recipe import DataSection

__all__ = ["load_image_folder", "load_unlabelled_folder"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


def load_image_folder(data: DataSection) -> DataSet:
    """Returns `root/train/<class>/*`, with `val` and `test` beside it or held out of `train` by a seeded split.

    With `data.unlabelled`, the images are those anywhere under `root/train`, and the classes those of `val` or `test`.
    """
    root = data.root or Path("data")
    train_folder = root / "train" if (root / "train").is_dir() else root
    held_out = {name: root / name for name in ("val", "test") if (root / name).is_dir()}
    if data.unlabelled:
        if not (root / "train").is_dir():
            raise DataError(f"data.root: no folder {(root / 'train').absolute()} for the unlabelled training images")
        class_names = tuple(sorted({name for folder in held_out.values() for name in _class_folders(folder)}))
        train = load_unlabelled_folder(data)
    else:
        class_names = _class_folders(train_folder)
        train = _labelled_images(data, train_folder, class_names)
    splits = {name: _labelled_images(data, folder, class_names) for name, folder in held_out.items()}
    divided = data_set.divide(data, train, splits.get("val"), splits.get("test"))
    assert data.image_size is not None  # the recipe's rule
    return DataSet(*divided, class_names, (3, data.image_size, data.image_size), IMAGENET_MEAN, IMAGENET_STD)


def load_unlabelled_folder(data: DataSection) -> FileImages:
    """Returns the images anywhere under `root/train`, or under `root` where it has no such folder, without labels."""
    root = data.root or Path("data")
    folder = root / "train" if (root / "train").is_dir() else root
    if not folder.is_dir():
        raise DataError(f"data.root: no folder {folder.absolute()}; point data.root at the images")
    found = _images_under(folder, "folder")
    return _file_images(data, folder, ((path, num_bytes, NO_LABEL) for path, num_bytes in found))


def _class_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"data.root: no folder {folder.absolute()}; point data.root or --data-root at the images")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if len(names) < 2:
        raise DataError(
            f"data.root: {folder.absolute()} has {len(names)} class folders, expected one folder per class (at least "
            "2). Training images without classes need data.unlabelled: true"
        )
    return names


def _labelled_images(data: DataSection, folder: Path, class_names: tuple[str, ...]) -> FileImages:
    unknown = sorted(set(_class_folders(folder)) - set(class_names))
    if unknown:
        raise DataError(f"{folder}: classes {', '.join(unknown[:5])} are not among the training classes")
    missing = [name for name in class_names if not (folder / name).is_dir()]
    if missing:
        console.print(
            f"data: {folder} has no images of {len(missing)} of {len(class_names)} classes ({missing[0]}, ...)",
            highlight=False,
        )

    def rows() -> Iterator[tuple[str, int, int]]:
        for label, name in enumerate(class_names):
            if name not in missing:  # a class without images to test on; an empty folder would be a mistake
                found = _images_under(folder / name, "class folder")
                yield from ((f"{name}/{path}", num_bytes, label) for path, num_bytes in found)

    return _file_images(data, folder, rows())


def _images_under(folder: Path, what: str) -> Iterator[tuple[str, int]]:
    """Yields (path below `folder`, size in bytes) of the images there, in the order of the parts of their paths."""
    found = _walk(str(folder), "")
    first = next(found, None)
    if first is None:
        raise DataError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this {what}")
    yield first
    yield from found


def _walk(folder: str, below: str) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{below}{entry.name}/")
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 - a Path costs as much as the rest
            yield f"{below}{entry.name}", _size_of(entry)


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # perhaps a broken link: reading it will say so, and count it
        return 0


def _file_images(data: DataSection, folder: Path, rows: Iterator[tuple[str, int, int]]) -> FileImages:
    """Returns the images of `rows`: path below `folder`, size in bytes, label."""
    assert data.image_size is not None  # the recipe's rule
    file_bytes, labels = array("q"), array("q")

    def paths() -> Iterator[str]:
        for path, num_bytes, label in rows:
            file_bytes.append(num_bytes)
            labels.append(label)
            yield path

    names = Names.of(paths())
    return FileImages(
        names=names,
        root=str(folder),
        file_bytes=torch.from_numpy(np.array(file_bytes)),
        labels=torch.from_numpy(np.array(labels)),
        read=FolderReader(str(folder), names),
        size=data.image_size,
        crop_fraction=crop_fraction_of(data),
        bad=BadImages(data.max_bad_fraction),
    )
