"""Where every image of a tar shard lies: the index that makes WebDataset shards readable in any order.

Streaming readers (the `webdataset` package) shuffle through a buffer and give whole shards to workers. So their order
depends on the number of workers and processes, and a resumed epoch has to be read again from its start. With byte
offsets an image of a shard is a file like any other. The order is a permutation drawn from seed and epoch, whoever
reads, and a resumed run reads nothing twice. The price is one look at the headers of each shard (kept in the user's
cache until the shard changes), and one range request per image if shards are remote. If that is the limit, copy them to
a local disk.
"""

import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edc.data.files.classes import MOST_DIGITS, class_number
from edc.data.files.left_out import LeftOut, is_hidden
from edc.data.files.regular import MOST_BYTES
from edc.data.names import Names
from edc.errors import DataError, EdcError, FailedError, first_line
from edc.method.losses import NO_LABEL
from edc.system.files import user_cache, write_atomically

__all__ = ["IMAGE_EXTENSIONS", "NO_LABEL", "ShardIndex", "index_of_shard", "is_local", "reachable"]

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif"}
)
FORMAT = 3


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
    left_out: LeftOut = field(default_factory=LeftOut)
    """What is in it beside images and their labels."""


def index_of_shard(filesystem: Any, path: str) -> ShardIndex:
    """Returns the index of the tar archive at `path` of an fsspec filesystem, from the cache if it has not changed.

    Raises:
        DataError: it cannot be opened, or a label is no number. A damaged archive is no error: see `damage`.
    """
    with reachable(path, filesystem):
        if is_local(filesystem) and not filesystem.isfile(path):
            raise DataError(f"{path}: expected a regular file; remove it")
        version = filesystem.ukey(path)
    key = hashlib.sha256(repr((FORMAT, filesystem.protocol, path, version)).encode()).hexdigest()
    cached = user_cache("shards") / f"{key}.npz"
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
    left_out = LeftOut()
    members, damage = _members(file, num_bytes, left_out)
    for key, parts in _samples(members, left_out):
        image = next(((extension, *where) for extension, where in parts.items() if _is_image(extension)), None)
        if image is None:
            continue  # counted; a label whose image is beyond the break, or a sample of something else
        label = _label(file, parts["cls"], f"{path}/{key}.cls") if "cls" in parts else NO_LABEL
        samples.append((f"{key}.{image[0]}", image[1], image[2], label))
    if damage and samples and samples[-1][3] == NO_LABEL and any(sample[3] != NO_LABEL for sample in samples):
        samples.pop()  # its label is beyond the break
    columns = np.array([sample[1:] for sample in samples], np.int64).reshape(-1, 3).T
    return ShardIndex(Names.of(sample[0] for sample in samples), columns[0], columns[1], columns[2], damage, left_out)


def _members(file: IO[bytes], num_bytes: int, left_out: LeftOut) -> tuple[list[tuple[str, int, int]], str]:
    """Returns (name, offset, size) of the regular files that are whole, and how the archive breaks off, if it does."""
    members: list[tuple[str, int, int]] = []
    damage = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember them all
                if not member.isfile():
                    if not member.isdir():
                        left_out.add("links or devices", member.name)
                elif member.size > MOST_BYTES:
                    left_out.add(f"of more than {MOST_BYTES:,} bytes", member.name)
                elif member.offset_data + member.size <= num_bytes:
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


Parts = dict[str, tuple[int, int]]
"""Of a sample: where each of its files lies, (offset, size), by its extension."""


def _samples(members: list[tuple[str, int, int]], left_out: LeftOut) -> Iterator[tuple[str, Parts]]:
    """Yields the samples, each with at most one image and a label, and counts everything else.

    A key ends at the first dot, as the `webdataset` package has it. Where it then has no image of its own, but longer
    extensions that end in one (`IMG.00001.png`), keys are taken to have dots, and end at the last one.
    """
    for key, parts in _grouped(members, left_out):
        plain = [extension for extension in parts if _is_image(extension)]
        dotted = [extension for extension in parts if "." in extension and _is_image(extension.rpartition(".")[2])]
        if not plain and len(dotted) == 1 and "cls" in parts:
            parts[dotted[0].rpartition(".")[2]] = parts.pop(dotted[0])  # x.photo.jpg beside x.cls
            dotted = []
        samples = _with_dots(key, parts) if dotted and not plain else {key: parts}
        for name, own in samples.items():
            images = [extension for extension in own if _is_image(extension)]
            for extension in own:
                if extension not in (*images[:1], "cls" if images else ""):
                    kind = f".{extension}" if images or extension != "cls" else ".cls without an image"
                    left_out.add(kind, f"{name}.{extension}")
            yield name, own


def _with_dots(key: str, parts: Parts) -> dict[str, Parts]:
    samples: dict[str, Parts] = {}
    for extension, where in parts.items():
        rest, dot, last = extension.rpartition(".")
        samples.setdefault(f"{key}{dot}{rest}", {})[last] = where
    return samples


def _is_image(extension: str) -> bool:
    return extension in IMAGE_EXTENSIONS


def _grouped(members: list[tuple[str, int, int]], left_out: LeftOut) -> Iterator[tuple[str, Parts]]:
    """Yields neighbours of one name up to the first dot of its last part, by what follows."""
    key, parts = "", Parts()
    for name, offset, size in members:
        folder, slash, last = name.rpartition("/")
        stem, _, extension = last.partition(".")
        if is_hidden(last) or not stem or any(is_hidden(part) and part != "." for part in folder.split("/") if part):
            left_out.add("hidden", name)
            continue
        found = f"{folder}{slash}{stem}"
        if found != key and parts:
            yield key, parts
            parts = {}
        key = found
        if _lower(extension) in parts:
            left_out.add("earlier files of the same name", name)
        parts[_lower(extension)] = (offset, size)
    if parts:
        yield key, parts


def _lower(extension: str) -> str:
    """Returns an extension with its last part in lower case; what is before it may belong to a key."""
    rest, dot, last = extension.rpartition(".")
    return f"{rest}{dot}{last.lower()}"


def _label(file: IO[bytes], where: tuple[int, int], name: str) -> int:
    file.seek(where[0])
    return class_number(file.read(min(where[1], MOST_DIGITS + 1)), name)


def _read_cache(path: Path) -> ShardIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = Names.of(stored["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
            left_out = LeftOut({kind: (num, name) for kind, num, name in json.loads(str(stored["left_out"]))})
            offsets, sizes, labels = (stored[column] for column in ("offsets", "sizes", "labels"))
            index = ShardIndex(names, offsets, sizes, labels, str(stored["damage"]), left_out)
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
                left_out=json.dumps([(kind, num, name) for kind, (num, name) in index.left_out.kinds.items()]),
            )
    except (OSError, FailedError):
        return  # no home to write to: the next call looks at the headers again
