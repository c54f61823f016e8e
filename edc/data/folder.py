"""Folders of image files: a folder a class, or training images of no class at all."""

from pathlib import Path

import torch

from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import IMAGENET_MEAN, IMAGENET_STD, DataSet
from edc.data.images import FileImages, FolderReader, crop_fraction_of
from edc.data.tar_index import NO_LABEL
from edc.errors import DataError
from edc.recipe import DataSection
from edc.report.progress import console

__all__ = ["load_image_folder"]

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
        train = _file_images(data, train_folder, _images_under(train_folder, "folder"), NO_LABEL)
    else:
        class_names = _class_folders(train_folder)
        train = _labelled_images(data, train_folder, class_names)
    splits = {name: _labelled_images(data, folder, class_names) for name, folder in held_out.items()}
    divided = data_set.divide(data, train, splits.get("val"), splits.get("test"))
    assert data.image_size is not None  # the recipe's rule
    return DataSet(*divided, class_names, (3, data.image_size, data.image_size), IMAGENET_MEAN, IMAGENET_STD)


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
    paths: list[Path] = []
    labels: list[int] = []
    missing = [name for name in class_names if not (folder / name).is_dir()]
    if missing:
        console.print(
            f"data: {folder} has no images of {len(missing)} of {len(class_names)} classes ({missing[0]}, ...)",
            highlight=False,
        )
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue  # a class without images to test on; an empty folder would be a mistake
        found = _images_under(folder / name, "class folder")
        paths += found
        labels += [label] * len(found)
    return _file_images(data, folder, paths, labels)


def _images_under(folder: Path, what: str) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this {what}")
    return found


def _file_images(data: DataSection, folder: Path, paths: list[Path], labels: list[int] | int) -> FileImages:
    assert data.image_size is not None  # the recipe's rule
    return FileImages(
        names=tuple(path.relative_to(folder).as_posix() for path in paths),
        root=str(folder),
        file_bytes=torch.tensor([path.stat().st_size for path in paths]),
        labels=torch.tensor([labels] * len(paths) if isinstance(labels, int) else labels),
        read=FolderReader(tuple(paths)),
        size=data.image_size,
        crop_fraction=crop_fraction_of(data),
        bad=BadImages(data.max_bad_fraction),
    )
