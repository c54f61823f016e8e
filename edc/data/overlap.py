"""Finds extra images that are also validation or test images and warns, because they flatter a run's figures.

Files are compared by their content, images in memory by their pixels. Of many files, only some are compared.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edc.console import console
from edc.data.data_set import DataSet
from edc.data.images import FileImages, Images, MemoryImages
from edc.errors import DataError

__all__ = ["Overlap", "overlap_of", "warn_of_overlap"]

MOST_FILES = 1000
"""The most extra images in files that a comparison reads; they are compared with at most four times as many."""


@dataclass(frozen=True)
class Overlap:
    """How many of the extra images that were looked at are also in a split."""

    num_found: int
    num_looked_at: int


def warn_of_overlap(data: DataSet) -> None:
    """Warns of extra images that are also validation or test images, with their number."""
    for name, images in (("validation", data.validation), ("test", data.test)):
        overlaps = [overlap_of(part, images) for part in (data.extra.parts if data.extra else ())]
        num_found = sum(overlap.num_found for overlap in overlaps)
        num_looked_at = sum(overlap.num_looked_at for overlap in overlaps)
        if num_found:
            console.print(
                f"warning: data.extra: {num_found:,} of {num_looked_at:,} images looked at are {name} images, too. "
                f"Students learn the teachers' answers to them, so {name} figures flatter the students.",
                highlight=False,
            )


def overlap_of(extra: Images, images: Images) -> Overlap:
    """Returns how many of the `extra` images are among `images`.

    A file is read only if a file on the other side has the same size. Parquet files of more than 1 GB are not compared:
    they give the size of a row group, not of an image.
    """
    if isinstance(extra, FileImages) and isinstance(images, FileImages):
        alike = torch.isin(extra.file_bytes, images.file_bytes).nonzero().flatten()
        rows = _some(alike, MOST_FILES)
        others = torch.isin(images.file_bytes, extra.file_bytes[rows]).nonzero().flatten()
        known = set(_contents(images, _some(others, 4 * MOST_FILES)))
        num_found = sum(digest in known for digest in _contents(extra, rows))
        return Overlap(num_found, len(extra) if len(rows) == len(alike) else len(rows))
    rows = _looked_at(extra, MOST_FILES)
    known = set(_pixels(images, _looked_at(images, 4 * MOST_FILES)))
    return Overlap(sum(digest in known for digest in _pixels(extra, rows)), len(rows))


def _looked_at(images: Images, most: int) -> Tensor:
    everything = torch.arange(len(images))
    return everything if isinstance(images, MemoryImages) else _some(everything, most)


def _some(rows: Tensor, most: int) -> Tensor:
    """Returns the rows; if there are more than `most`, that many at equal distances."""
    return rows if len(rows) <= most else rows[torch.arange(most) * len(rows) // most]


def _contents(images: FileImages, rows: Tensor) -> Iterable[bytes]:
    """Yields a digest of the content of each file that can be read; training reports the others."""
    for row in rows.tolist():
        try:
            yield hashlib.sha256(images.read(row)).digest()
        except DataError:
            continue


def _pixels(images: Images, rows: Tensor) -> Iterable[bytes]:
    """Yields a digest of the pixels of each image, as the networks see it in an evaluation."""
    for row in rows.tolist():
        try:
            yield hashlib.sha256(images[row][0].numpy().tobytes()).digest()
        except DataError:
            continue
