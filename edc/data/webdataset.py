"""WebDataset shards, local or at any fsspec address: tar files of `key.jpg` and `key.cls` side by side."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edc.console import console
from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import DataSet
from edc.data.files.classes import MOST_BYTES_OF_NAMES, names_in
from edc.data.files.left_out import LeftOut, is_hidden, kind_of
from edc.data.files.look import look_at
from edc.data.files.splits import Split, split_of_file
from edc.data.images import FileImages, crop_fraction_of, reading_of
from edc.data.names import Names
from edc.data.tar_index import NO_LABEL, ShardIndex, index_of_shard, is_local, reachable
from edc.errors import DataError, FailedError, NotInstalledError, first_line
from edc.recipe import DataSection

__all__ = ["ShardReader", "load_unlabelled_shards", "load_webdataset"]

PAUSES = (1.0, 5.0, 20.0)
"""Seconds before a remote shard is asked again for an image it did not give."""
NUM_THREADS = 16
"""Shards whose headers are read in parallel, because remote ones wait for the network."""


def load_webdataset(data: DataSection) -> DataSet:
    """Returns the data in `root/*.tar` (or one folder below), the split being the word train, val or test in a name.

    A sample is `key.<image>` with the number of its class in `key.cls`. `classes.txt`, one name a line, names them.

    Raises:
        DataError: no shards, no labels, a damaged validation or test shard, or more training samples lost with
            damaged shards than `data.max_bad_fraction` allows, or an unknown number of them.
    """
    filesystem, root, address, shards = _found_shards(data)
    splits = {
        split: _read_split(data, filesystem, paths, root=root, address=address, is_train=split == "train")
        for split, paths in shards.items()
        if paths
    }
    with reachable(f"data.root: {address}", filesystem):
        class_names = _class_names(data, filesystem, root, [images for images in splits.values() if images is not None])
    divided = data_set.divide(data, splits["train"], splits.get("validation"), splits.get("test"), class_names)
    return data_set.of_files(divided, class_names)


def load_unlabelled_shards(data: DataSection) -> FileImages:
    """Returns the images of the training shards, whatever labels they have; `data` says that they have none."""
    filesystem, root, address, shards = _found_shards(data)
    return _read_split(data, filesystem, shards["train"], root=root, address=address, is_train=True)


@dataclass(frozen=True)
class ShardReader:
    """Reads image `index` of a list of shards; picklable, and opens nothing before it is asked in its own process."""

    address: str
    """What fsspec opens: `protocol://`, or empty for local paths."""
    paths: tuple[str, ...]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __call__(self, index: int) -> bytes:
        path, offset, size = self.paths[self.shards[index]], int(self.offsets[index]), int(self.sizes[index])
        content = self._fetched(path, offset, size) if self.address else self._read(path, offset, size)
        if len(content) != size:
            raise DataError(f"{path}: ends before byte {offset + size}; was it changed while the run was going on?")
        return content

    def _read(self, path: str, offset: int, size: int) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path for every image costs as much as the read
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})") from None

    def _fetched(self, path: str, offset: int, size: int) -> bytes:
        """Returns bytes from another machine, asking again where it does not answer.

        Another image may not replace this one, because the images of a training must not depend on a network.
        """
        import fsspec

        for attempt in count():
            try:
                filesystem, _ = fsspec.core.url_to_fs(self.address)
                content: bytes = filesystem.cat_file(path, start=offset, end=offset + size)
            except Exception as error:  # noqa: BLE001 - as in `reachable`
                if attempt == len(PAUSES):
                    raise FailedError(
                        f"{path}: cannot be read, asked {attempt + 1} times ({first_line(error)}); the same command "
                        "continues from the last checkpoint"
                    ) from None
                time.sleep(PAUSES[attempt])
            else:
                return content
        raise AssertionError


def address_of(data: DataSection) -> str:
    """Returns `data.root` as fsspec wants it: a path has swallowed one slash of s3://bucket."""
    return re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", data.root.as_posix() if data.root else "data")


def _filesystem(data: DataSection) -> tuple[Any, str, str]:
    """Returns the filesystem, the root's path on it, and the address people know it by."""
    import fsspec

    address = address_of(data)
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # s3fs, gcsfs and the like come by themselves
        raise NotInstalledError(f"data.root: {address}: {error}") from None
    return filesystem, path, address


def _found_shards(data: DataSection) -> tuple[Any, str, str, dict[Split, list[str]]]:
    """Returns what `_filesystem` does, and the shards of each split; those of `train` are there."""
    filesystem, root, address = _filesystem(data)
    with reachable(f"data.root: {address}", filesystem):
        shards = _shards(filesystem, root)
    if not shards["train"]:
        raise DataError(
            f"data.root: no train-*.tar in {address}; point data.root or --data-root at the shards (uncompressed: "
            "images in a .tar.gz cannot be read one by one)"
        )
    return filesystem, root, address, shards


def _shards(filesystem: Any, root: str) -> dict[Split, list[str]]:
    found: dict[Split, list[str]] = {"train": [], "validation": [], "test": []}
    left_out = LeftOut()
    root = root.rstrip("/")
    beside = {path: about["type"] for path, about in filesystem.glob(f"{root}/*", detail=True).items()}
    within = filesystem.glob(f"{root}/*/*.t*")
    for path in sorted({*beside, *within}):
        relative = path.removeprefix(root).strip("/")
        if any(is_hidden(part) for part in relative.split("/")):
            left_out.add("hidden", relative)  # a Mac's `._train-0.tar` is no shard
        elif relative.endswith(".tar"):
            split = split_of_file(relative)
            if split:
                found[split].append(path)
            else:
                left_out.add("shards of no known split", relative)
        elif beside.get(path) == "directory":
            if not any(inside.startswith(f"{path}/") for inside in within):
                left_out.add("folders without shards", relative)
        elif relative != "classes.txt":
            left_out.add(kind_of(relative), relative)
    left_out.report(root)
    return found


def _read_split(
    data: DataSection, filesystem: Any, paths: list[str], *, root: str, address: str, is_train: bool
) -> FileImages:
    with ThreadPoolExecutor(min(NUM_THREADS, len(paths))) as pool:
        indices = list(pool.map(lambda path: index_of_shard(filesystem, path), paths))
    num_lost = _num_lost(paths, indices, max_fraction=data.max_bad_fraction if is_train else None)
    shard_names = [path.removeprefix(root).strip("/") for path in paths]
    labels = np.concatenate([index.labels for index in indices])
    if is_train and data.unlabelled:
        labels[:] = NO_LABEL
    else:
        _require_labels(shard_names, indices)
    sizes = np.concatenate([index.sizes for index in indices])
    if not len(sizes):
        raise DataError(f"{paths[0]}: no images (key.jpg, key.png, ...) in this shard or the {len(paths) - 1} after it")
    left_out = LeftOut()
    for index in indices:
        left_out.update(index.left_out)
    where = shard_names[0] if len(paths) == 1 else f"{shard_names[0]} to {shard_names[-1]}"
    left_out.report(where)
    names = Names.of(f"{name}/{key}" for name, index in zip(shard_names, indices, strict=True) for key in index.names)
    read = ShardReader(
        address="" if is_local(filesystem) else address,
        paths=tuple(paths),
        shards=np.repeat(np.arange(len(paths)), [len(index.names) for index in indices]),
        offsets=np.concatenate([index.offsets for index in indices]),
        sizes=sizes,
    )
    reading = reading_of(data)
    assert data.image_size is not None  # the recipe's rule
    return FileImages(
        names=names,
        labels=torch.from_numpy(labels),
        read=read,
        size=data.image_size,
        crop_fraction=crop_fraction_of(data),
        reading=reading,
        read_otherwise=look_at(
            read,
            lambda index: f"{address}/{names[index]}",
            len(names),
            reading,
            where=where,
            costly=bool(read.address),
            num_threads=NUM_THREADS if read.address else 1,
            tolerant=data.max_bad_fraction > 0,
        ),
        root=address,
        file_bytes=torch.from_numpy(sizes),
        bad=BadImages(data.max_bad_fraction, num_lost=num_lost),
    )


def _num_lost(paths: list[str], indices: list[ShardIndex], *, max_fraction: float | None) -> int:
    """Returns how many samples damaged shards have lost (a whole shard's number less theirs), and names the shards.

    Args:
        max_fraction: the largest share of the split that may be lost; None: nothing (figures need the whole split).
    """
    damaged = [(path, index) for path, index in zip(paths, indices, strict=True) if index.damage]
    if not damaged:
        return 0
    listed = "; ".join(f"{path} {index.damage}, {len(index.names)} samples before it" for path, index in damaged[:5])
    listed += "; ..." if len(damaged) > 5 else ""
    if max_fraction is None:
        raise DataError(f"{listed}. Validation and test splits must be whole: fetch these shards again.")
    usual = max((len(index.names) for index in indices[:-1] if not index.damage), default=-1)  # the last may be shorter
    if any(len(index.names) > usual for _, index in damaged):
        raise DataError(
            f"{listed}: how many are lost is unknown, because no whole shard shows how many samples one "
            "has (the last may have fewer). Fetch the damaged ones again, or remove them."
        )
    num_lost = sum(max(usual - len(index.names), 1) for _, index in damaged)
    num_read = sum(len(index.names) for index in indices)
    found = f"{listed}: about {num_lost} of {num_read + num_lost} samples lost"
    if num_lost > max_fraction * (num_read + num_lost):
        raise DataError(
            f"{found}, and data.max_bad_fraction is {max_fraction:g}. Fetch the shards again, or allow for more."
        )
    console.print(f"data: {found}; continuing without them", highlight=False)
    return num_lost


def _require_labels(names: list[str], indices: list[ShardIndex]) -> None:
    for name, index in zip(names, indices, strict=True):
        missing = np.flatnonzero(index.labels == NO_LABEL)
        if len(missing):
            key = index.names[missing[0]].rpartition(".")[0]
            raise DataError(
                f"{name}: {len(missing)} samples without a label, the first without {key}.cls. Training images "
                "need none with data.unlabelled: true; validation and test images do."
            )


def _class_names(data: DataSection, filesystem: Any, root: str, splits: list[FileImages]) -> tuple[str, ...]:
    largest = max(int(images.labels.max()) for images in splits)
    listing = f"{root.rstrip('/')}/classes.txt"
    if filesystem.exists(listing):
        if filesystem.size(listing) > MOST_BYTES_OF_NAMES:
            raise DataError(f"{listing}: more than {MOST_BYTES_OF_NAMES:,} bytes, expected one name a line")
        names = names_in(filesystem.cat_file(listing), listing)
    else:
        names = tuple(str(k) for k in range(data.num_classes or largest + 1))
    if largest >= len(names):
        raise DataError(f"data.num_classes: {len(names)} classes, but a .cls in the shards says {largest}")
    return names
