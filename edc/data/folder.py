"""Folders of image files: one folder per class, or training images without classes."""

import os
import unicodedata
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from edc.console import console
from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import DataSet
from edc.data.files.left_out import LeftOut, is_folder, is_hidden, kind_of
from edc.data.files.look import look_at
from edc.data.files.regular import require_regular
from edc.data.files.splits import SPLITS, Split, may_be_a_missing_split, split_of_folder
from edc.data.images import FileImages, FolderReader, crop_fraction_of, reading_of
from edc.data.names import Names
from edc.data.tar_index import IMAGE_EXTENSIONS, NO_LABEL
from edc.errors import DataError
from edc.recipe import DataSection

__all__ = ["images_under", "load_image_folder", "load_unlabelled_folder"]

IMAGE_SUFFIXES = {f".{extension}" for extension in IMAGE_EXTENSIONS}


def load_image_folder(data: DataSection) -> DataSet:
    """Returns `root/train/<class>/*`, with validation and test beside it or held out of `train` by a seeded split.

    With `data.unlabelled`, the images are those anywhere under `root/train`, and the classes those of the other splits.
    """
    root = data.root or Path("data")
    splits = _splits(root, unlabelled=data.unlabelled)
    held_out = {name: folder for name, folder in splits.items() if name != "train"}
    says_classes = splits.get("validation" if data.unlabelled else "train")
    if "test" in held_out and _is_without_labels(held_out["test"], beside=says_classes):
        del held_out["test"]
    if data.unlabelled:
        class_names = tuple(sorted({name for folder in held_out.values() for name in _class_folders(folder)}))
        train = _unlabelled(data, splits["train"])
    else:
        class_names = _class_folders(
            splits["train"], hint=" Training images without classes need data.unlabelled: true"
        )
        train = _labelled_images(data, splits["train"], class_names)
    others = {name: _labelled_images(data, folder, class_names) for name, folder in held_out.items()}
    divided = data_set.divide(data, train, others.get("validation"), others.get("test"), class_names)
    return data_set.of_files(divided, class_names)


def load_unlabelled_folder(data: DataSection) -> FileImages:
    """Returns the images anywhere under `root/train`, or under `root` where it has no such folder, without labels."""
    root = data.root or Path("data")
    train = [folder for folder in _folders(root) if split_of_folder(folder.name) == "train"]
    return _unlabelled(data, train[0] if len(train) == 1 else root)


def _unlabelled(data: DataSection, folder: Path) -> FileImages:
    left_out = LeftOut()
    found = images_under(folder, "folder", left_out)
    images = _file_images(data, folder, ((path, num_bytes, NO_LABEL) for path, num_bytes in found))
    left_out.report(str(folder))
    return images


def _splits(root: Path, *, unlabelled: bool) -> dict[Split, Path]:
    """Returns the folder of each split; of a root without any, that of the training images is the root itself.

    Raises:
        DataError: two folders of one split, no training images beside the others, or names that are nearly those of
            splits.
    """
    if unlabelled and not root.is_dir():
        raise _without_train(root)
    found: dict[Split, Path] = {}
    others = []
    for folder in _folders(root):
        split = split_of_folder(folder.name)
        if split is None:
            others.append(folder)
        elif split in found:
            raise DataError(
                f"data.root: {root.absolute()} has two folders for the {split} images, {found[split].name} and "
                f"{folder.name}; expected one of them"
            )
        else:
            found[split] = folder
    like = [folder for folder in others if any(_folders(folder)) and may_be_a_missing_split(folder.name, found)]
    if "train" in found and not like:
        left_out = _files_beside_folders(root, "beside the splits")
        for folder in others:
            left_out.add("folders beside the splits", folder.name)
        left_out.report(str(root))
        with_classes = {split: folder for split, folder in found.items() if split != "train" or not unlabelled}
        return found | {split: _innermost(folder, split) for split, folder in with_classes.items()}
    if unlabelled and "train" not in found:
        raise _without_train(root)
    if found or like:
        listed = ", ".join(folder.name for folder in (*found.values(), *like))
        known = "; ".join(f"{', '.join(words)}" for words in SPLITS.values())
        missing = f"{like[0].name} is no name" if "train" in found else "no training images under a name"
        raise DataError(
            f"data.root: {root.absolute()} has {listed}, which looks like splits, but {missing} that edc knows; "
            f"expected folders with names of these: {known}"
        )
    _require_no_splits_within(root, others)
    return {"train": root}


def _require_no_splits_within(root: Path, class_folders: list[Path]) -> None:
    """Raises `DataError` if every class is divided into splits, which would be taken for one."""
    within = {inside.name: None for folder in class_folders[:1] for inside in _folders(folder)}
    splits = [name for name in within if split_of_folder(name)]
    if splits and all(any(split_of_folder(inside.name) for inside in _folders(one)) for one in class_folders):
        raise DataError(
            f"data.root: {root.absolute()} has {', '.join(splits)} within its class folders ({class_folders[0].name}, "
            "...), expected the classes within the splits, as in train/<class>"
        )


def _is_without_labels(folder: Path, *, beside: Path | None) -> bool:
    """Returns whether a test folder holds images, but no class folders, as in many competitions; and says so.

    A single folder that is no class in the split `beside` is none: torchvision's reader asks for one, as test/unknown.
    """
    folders = _folders(folder)
    classes = {unicodedata.normalize("NFC", one.name) for one in _folders(beside)} if beside else set()
    is_class = [not classes or unicodedata.normalize("NFC", one.name) in classes for one in folders]
    if len(folders) > 1 or any(is_class):
        return False
    where = folders[0] if folders else folder
    num_images = sum(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in os.scandir(where))
    if num_images:
        console.print(
            f"data: {where}: left out {num_images:,} images, which lie in no class folders and so have no labels",
            highlight=False,
            markup=False,
        )
    return num_images > 0


def _innermost(folder: Path, split: Split) -> Path:
    """Returns a split's folder, or the one of that split which alone lies in it, as zip files make them."""
    folders = _folders(folder)
    if len(folders) == 1 and split_of_folder(folders[0].name) == split:
        _files_beside_folders(folder, f"beside {folders[0].name}").report(str(folder))
        return folders[0]
    return folder


def _without_train(root: Path) -> DataError:
    return DataError(f"data.root: no folder {(root / 'train').absolute()} for the unlabelled training images")


def _files_beside_folders(folder: Path, where: str) -> LeftOut:
    left_out = LeftOut()
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name) or not entry.is_dir():
            left_out.add(kind_of(entry.name, where), entry.name)
    return left_out


def _folders(root: Path) -> list[Path]:
    """Returns the folders in `root`, also those that links lead to, in order; none of those that machines make."""
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root.absolute()}; point data.root or --data-root at the images")
    try:
        return sorted(entry for entry in root.iterdir() if not is_hidden(entry.name) and entry.is_dir())
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error.strerror})") from None


def _class_folders(folder: Path, *, hint: str = "") -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in _folders(folder)))
    if len(names) < 2:
        raise DataError(
            f"data.root: {folder.absolute()} has {len(names)} class folders, expected one folder per class (at least "
            f"2).{hint}"
        )
    return names


def _labelled_images(data: DataSection, folder: Path, class_names: tuple[str, ...]) -> FileImages:
    own = _by_class(folder, class_names)
    missing = [name for name in class_names if name not in own]
    if missing:
        console.print(
            f"data: {folder} has no images of {len(missing)} of {len(class_names)} classes ({missing[0]}, ...)",
            highlight=False,
        )
    left_out = _files_beside_folders(folder, "beside the class folders")

    def rows() -> Iterator[tuple[str, int, int]]:
        for label, name in enumerate(class_names):
            if name not in missing:  # a class without images to test on; an empty folder would be a mistake
                found = images_under(folder / own[name], "class folder", left_out)
                yield from ((f"{own[name]}/{path}", num_bytes, label) for path, num_bytes in found)

    images = _file_images(data, folder, rows())
    left_out.report(str(folder))
    return images


def _by_class(folder: Path, class_names: tuple[str, ...]) -> dict[str, str]:
    """Returns the folder of each class that has one: an accent is one letter on Linux, and may be two on macOS."""
    composed = {unicodedata.normalize("NFC", name): name for name in class_names}
    found: dict[str, str] = {}
    for name in _class_folders(folder):
        known = composed.get(unicodedata.normalize("NFC", name), name)
        if known in found:
            raise DataError(
                f"{folder}: has two folders of class {known}, whose accents are written in two ways "
                f"({found[known]!a} and {name!a}); make one of them"
            )
        found[known] = name
    if unknown := sorted(set(found) - set(class_names)):
        raise DataError(f"{folder}: classes {', '.join(unknown[:5])} are not among the training classes")
    return found


def images_under(folder: Path, what: str, left_out: LeftOut, *, refuses: bool = True) -> Iterator[tuple[str, int]]:
    """Yields (path below `folder`, size in bytes) of the images there, in the order of the parts of their paths.

    Args:
        refuses: whether a pipe, a device or a huge file is an error at once, and not when it is read.
    """
    found = _walk(str(folder), "", left_out, (os.path.realpath(folder.parent),), refuses=refuses)
    first = next(found, None)
    if first is None:
        raise DataError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this {what}")
    yield first
    yield from found


def _walk(
    folder: str, below: str, left_out: LeftOut, above: tuple[str, ...], *, refuses: bool
) -> Iterator[tuple[str, int]]:
    """Yields as `images_under`; follows links, but not to this folder, one `above`, or what holds one."""
    here = (*above, os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in listed:
        if is_hidden(entry.name):
            left_out.add("hidden", f"{below}{entry.name}")
        elif is_folder(entry):
            if entry.is_symlink() and any(Path(one).is_relative_to(os.path.realpath(entry.path)) for one in here):
                left_out.add("links to a folder above", f"{below}{entry.name}")
            else:
                yield from _walk(entry.path, f"{below}{entry.name}/", left_out, here, refuses=refuses)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 - a Path costs as much as the rest
            yield f"{below}{entry.name}", _size_of(entry, refuses=refuses)
        else:
            left_out.add(kind_of(entry.name), f"{below}{entry.name}")


def _size_of(entry: os.DirEntry[str], *, refuses: bool) -> int:
    try:
        status = entry.stat()
    except OSError:  # perhaps a broken link: reading it will say so, and count it
        return 0
    if refuses:
        require_regular(status, entry.path)
    return status.st_size


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
    read, reading = FolderReader(str(folder), names), reading_of(data)
    return FileImages(
        names=names,
        root=str(folder),
        file_bytes=torch.from_numpy(np.array(file_bytes)),
        labels=torch.from_numpy(np.array(labels)),
        read=read,
        size=data.image_size,
        crop_fraction=crop_fraction_of(data),
        reading=reading,
        read_otherwise=look_at(
            read, names.__getitem__, len(names), reading, where=str(folder), tolerant=data.max_bad_fraction > 0
        ),
        bad=BadImages(data.max_bad_fraction),
    )
