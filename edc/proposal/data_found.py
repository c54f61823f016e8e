"""A look at a folder of images before a recipe is written: its kind, classes, sizes, and what would stop a run."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edc.console import console
from edc.data import DataSet, FileImages, Images, load_training_data
from edc.data.files.decode import opened
from edc.data.files.left_out import is_hidden
from edc.data.overlap import overlap_of
from edc.errors import DataError
from edc.recipe import DataSection
from edc.system.machine import num_cpus

__all__ = ["DataFound", "SplitFound", "is_held_out", "look_at_data", "place_and_kind", "sides_of"]

MOST_SIZES, MOST_READ = 200, 20_000
"""Images of a split whose size is looked at, and that are read to their end."""
SMALL = 48
"""Pixels to which a JPEG is decoded for a look: all of it is read, few of its pixels are made."""


@dataclass(frozen=True)
class SplitFound:
    """One split: how many images of each class it has, and which cannot be read."""

    name: str
    num_images: int
    num_by_class: dict[str, int]
    num_read: int
    unreadable: dict[str, str]

    @property
    def majority(self) -> float:
        """The share of the most frequent class: what a network is right on that always answers it."""
        return max(self.num_by_class.values(), default=0) / max(self.num_images, 1)


LISTS = (".csv", ".tsv", ".xlsx", ".jsonl")
"""Suffixes of files that name images and their labels, as Kaggle gives them."""


@dataclass(frozen=True)
class DataFound:
    """What lies in a folder of images, read as a recipe with `section` reads it."""

    section: DataSection
    data: DataSet
    splits: tuple[SplitFound, ...]
    duplicates: dict[str, tuple[int, int]]
    """By a pair of splits: images of the first that are also in the second, and how many were looked at."""
    extra: SplitFound | None = None
    """The images without labels."""


def place_and_kind(folder: Path) -> tuple[Path, str]:
    """Returns where the images of `folder` are, and their kind by what lies there.

    A folder that holds one folder and nothing else, as zip files and Kaggle make them, stands for that one.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        what = "a file, expected a folder of images" if folder.exists() else "no such folder of images"
        raise DataError(f"{folder.absolute()}: {what}{of_lists(folder)}")
    for _ in range(5):
        inside = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
        if len(inside) != 1 or not inside[0].is_dir():
            break
        folder = inside[0]
    names = [entry.name for entry in [*folder.iterdir(), *folder.glob("data/*")]]
    for suffix, kind in ((".parquet", "parquet"), (".tar", "webdataset")):
        if any(name.endswith(suffix) for name in names):
            return folder, kind
    return folder, "image_folder"


def of_lists(place: Path) -> str:
    """Returns a word about a list of names and labels, at `place` or in it: it is not read."""
    files = [place] if place.is_file() else place.glob("*") if place.is_dir() else ()
    for file in sorted(files):
        if file.suffix.lower() in LISTS:
            return (
                f"; {file.name}: a list of names and labels is not read: make a folder per class of it, parquet or "
                "shards (recipes/README.md, Images)"
            )
    return ""


def is_held_out(kind: str, data: DataSet) -> bool:
    """Returns whether the validation images are some of the folder of the training images."""
    roots = [images.root for images in (data.train, data.validation) if isinstance(images, FileImages)]
    return kind == "image_folder" and len(roots) == 2 and roots[0] == roots[1]


def sides_of(images: Images) -> tuple[int, ...]:
    """Returns the shorter sides in pixels of some images, evenly spread, in order of size; of memory, that of all."""
    if not isinstance(images, FileImages):
        return (min(images.image_shape[1:]),)
    rows = np.linspace(0, len(images) - 1, min(len(images), MOST_SIZES)).astype(int)
    sides = []
    for row in rows.tolist():
        try:
            with opened(images.read(row), images.names[row]) as image:
                sides.append(min(image.size))
        except DataError:
            continue
    return tuple(sorted(sides))


def look_at_data(section: DataSection) -> DataFound:
    """Returns what `section` describes, with every image read once (of very many, some).

    Raises:
        DataError: no data set; or validation or test images that cannot be read, which would end a run.
    """
    data = load_training_data(section)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found = tuple(_look_at_split(name, images, data.class_names) for name, images in splits.items())
    held_out = [reason for split in found[1:] for reason in split.unreadable.values()]
    if held_out:
        listed = "\n  ".join(held_out[:10])
        raise DataError(
            f"{section.root}: {len(held_out)} validation or test images cannot be read, and figures are of whole "
            f"splits; replace or remove them\n  {listed}"
        )
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    overlaps = {pair: overlap_of(*(splits[name] for name in pair)) for pair in pairs}
    duplicates = {" and ".join(pair): (one.num_found, one.num_looked_at) for pair, one in overlaps.items()}
    if data.extra is None:
        return DataFound(section, data, found, duplicates)
    (without_labels,) = data.extra.parts
    for name in ("validation", "test"):
        overlap = overlap_of(without_labels, splits[name])
        duplicates[f"extra and {name}"] = overlap.num_found, overlap.num_looked_at
    return DataFound(section, data, found, duplicates, _look_at_split("extra", without_labels, ()))


def _look_at_split(name: str, images: Images, class_names: Sequence[str]) -> SplitFound:
    counts = Counter(images.labels.tolist())
    by_class = {class_name: counts.get(k, 0) for k, class_name in enumerate(class_names)}
    if not isinstance(images, FileImages):
        return SplitFound(name, len(images), by_class, len(images), {})
    rows = np.linspace(0, len(images) - 1, min(len(images), MOST_READ)).astype(int).tolist()

    def fault(row: int) -> str | None:
        where = f"{images.root}/{images.names[row]}"
        try:
            with opened(images.read(row), where) as image:
                image.draft(None, (SMALL, SMALL))
                image.load()
        except DataError as error:
            return str(error)
        return None

    with console.status(f"reading {len(rows):,} {name} images"), ThreadPoolExecutor(num_cpus()) as pool:
        faults = dict(zip(rows, pool.map(fault, rows), strict=True))
    unreadable: dict[str, Any] = {images.names[row]: why for row, why in faults.items() if why}
    return SplitFound(name, len(images), by_class, len(rows), unreadable)
