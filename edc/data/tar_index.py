"""Where every image of a tar shard lies: the index that makes WebDataset shards readable in any order.

Streaming readers (the `webdataset` package) shuffle through a buffer and give whole shards to workers. So their order
depends on the number of workers and processes, and a resumed epoch has to be read again from its start. With byte
offsets an image of a shard is a file like any other. The order is a permutation drawn from seed and epoch, whoever
reads, and a resumed run reads nothing twice. The price is one look at the headers of each shard (kept in the user's
cache until the shard changes), and one range request per image if shards are remote. If that is the limit, copy them to
a local disk.
"""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edc.data.names import Names
from edc.errors import DataError, EdcError, FailedError, first_line
from edc.method.losses import NO_LABEL
from edc.system.files import write_atomically

__all__ = ["NO_LABEL", "ShardIndex", "index_of_shard", "is_local", "reachable"]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "bmp", "webp", "ppm", "tif", "tiff"})
FORMAT = 2


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard in the order of the archive.

    Shapes: `offsets`, `sizes` (bytes of the encoded image) and `labels` (`NO_LABEL` where there is none): (N,) int64.
    """

    names: Names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    damage: str
    """Where and how the archive breaks off; empty if it is whole."""


def index_of_shard(filesystem: Any, path: str) -> ShardIndex:
    """Returns the index of the tar archive at `path` of an fsspec filesystem, from the cache if it has not changed.

    Raises:
        DataError: it cannot be opened, or a label is no number. A damaged archive is no error: see `damage`.
    """
    with reachable(path, filesystem):
        version = filesystem.ukey(path)
    key = hashlib.sha256(repr((FORMAT, filesystem.protocol, path, version)).encode()).hexdigest()
    cached = _cache_folder() / f"{key}.npz"
    if (found := _read_cache(cached)) is not None:
        return found
    with reachable(path, filesystem), filesystem.open(path, "rb") as file:
        index = _scan(file, path)
    _write_cache(cached, index)
    return index


@contextmanager
def reachable(what: str, filesystem: Any) -> Iterator[None]:
    """Raises any failure of `filesystem` in the block as a `DataError` about `what`."""
    try:
        yield
    except EdcError:
        raise
    except Exception as error:
        # No network, no bucket, no credentials: a library of a cloud has exceptions of its own for them.
        if is_local(filesystem) and not isinstance(error, OSError):
            raise
        raise DataError(f"{what}: cannot be read ({first_line(error)})") from None


def is_local(filesystem: Any) -> bool:
    """Returns whether an fsspec filesystem is the one of this machine."""
    return "file" in ([filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _scan(file: IO[bytes], path: str) -> ShardIndex:
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    samples: list[tuple[str, int, int, int]] = []
    members, damage = _members(file, num_bytes)
    for key, parts in _grouped(members):
        image = next(((extension, *where) for extension, where in parts.items() if extension in IMAGE_EXTENSIONS), None)
        if image is None:
            continue  # a label whose image is beyond the break, or a sample of something else
        label = _label(file, parts["cls"], f"{path}/{key}.cls") if "cls" in parts else NO_LABEL
        samples.append((f"{key}.{image[0]}", image[1], image[2], label))
    if damage and samples and samples[-1][3] == NO_LABEL and any(sample[3] != NO_LABEL for sample in samples):
        samples.pop()  # its label is beyond the break
    columns = np.array([sample[1:] for sample in samples], np.int64).reshape(-1, 3).T
    return ShardIndex(Names.of(sample[0] for sample in samples), columns[0], columns[1], columns[2], damage)


def _members(file: IO[bytes], num_bytes: int) -> tuple[list[tuple[str, int, int]], str]:
    """Returns (name, offset, size) of the regular files that are whole, and how the archive breaks off, if it does."""
    members: list[tuple[str, int, int]] = []
    damage = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember them all
                if member.isfile() and member.offset_data + member.size <= num_bytes:
                    members.append((member.name, member.offset_data, member.size))
            end = archive.offset
            file.seek(end)
            # tarfile takes a broken header for the end, but a whole archive ends in a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                damage = f"breaks off at byte {end}"
    except (tarfile.TarError, EOFError) as error:
        end = max((offset + size for _, offset, size in members), default=0)
        damage = f"breaks off after byte {end} of {num_bytes} ({error})"
    return members, damage


def _grouped(members: list[tuple[str, int, int]]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yields the samples: neighbours of one name up to the first dot of its last part, by their extensions."""
    key, parts = "", dict[str, tuple[int, int]]()
    for name, offset, size in members:
        folder, slash, last = name.rpartition("/")
        stem, _, extension = last.partition(".")
        if not stem:  # .DS_Store and its like
            continue
        found = f"{folder}{slash}{stem}"
        if found != key and parts:
            yield key, parts
            parts = {}
        key = found
        parts[extension.lower()] = (offset, size)
    if parts:
        yield key, parts


def _label(file: IO[bytes], where: tuple[int, int], name: str) -> int:
    file.seek(where[0])
    text = file.read(where[1])
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{name}: found {text[:20]!r}, expected the number of a class") from None
    if label < 0:
        raise DataError(f"{name}: found {label}, expected the number of a class, 0 or more")
    return label


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edc/shards"


def _read_cache(path: Path) -> ShardIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = Names.of(stored["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
            index = ShardIndex(names, stored["offsets"], stored["sizes"], stored["labels"], str(stored["damage"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, or left half-written by something else: it is made again
    return index if len(names) == len(index.offsets) else None


def _write_cache(path: Path, index: ShardIndex) -> None:
    names = np.frombuffer(b"".join(index.names.encoded()), np.uint8)
    try:
        with write_atomically(path) as temporary:
            np.savez(
                temporary,
                names=names,
                offsets=index.offsets,
                sizes=index.sizes,
                labels=index.labels,
                damage=index.damage,
            )
    except (OSError, FailedError):
        return  # no home to write to: the next call looks at the headers again
