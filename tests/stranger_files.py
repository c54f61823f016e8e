"""Data sets as strangers leave them, written without edc: the same images as a folder, as tar shards and as parquet."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edc.data import DataSet, FileImages, load_data
from edc.recipe import DataSection

KINDS = ("image_folder", "webdataset", "parquet")
SIZE = 6


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape or (SIZE, SIZE, 3), dtype=dtype)


def in_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def in_parquet(path: Path, contents: list[bytes | None], labels: list[Any], metadata: bytes | None = None) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"image": [{"bytes": content, "path": None} for content in contents], "label": labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata} if metadata else None), path)


def write(root: Path, kind: str, split: str, contents: list[bytes], *, suffix: str = "png") -> None:
    """Writes one split of two classes, in turn, as a data set of this kind."""
    if kind == "image_folder":
        for i, content in enumerate(contents):
            path = root / split / f"class{i % 2}" / f"{i:03}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    elif kind == "webdataset":
        members = [
            (f"{i:03}.{e}", c) for i, x in enumerate(contents) for e, c in ((suffix, x), ("cls", b"%d" % (i % 2)))
        ]
        in_tar(root / f"{split}-000.tar", members)
    else:
        in_parquet(root / f"{split}-000.parquet", list(contents), [i % 2 for i in range(len(contents))])


def section(root: Path, kind: str = "image_folder", **options: Any) -> DataSection:
    return DataSection(**({"kind": kind, "root": root, "image_size": SIZE, "num_workers": 0} | options))


def loaded(root: Path, kind: str, contents: list[bytes], *, suffix: str = "png", **options: Any) -> DataSet:
    """Writes the same images as each of the three splits, and loads them."""
    for split in ("train", "val", "test"):
        write(root, kind, split, contents, suffix=suffix)
    return load_data(section(root, kind, **options))


def pixels_of(data: DataSet, split: str = "test") -> list[np.ndarray]:
    """Returns the evaluation views of a split, (H, W, C), in the order in which `write` got them."""
    images = getattr(data, split)
    rows = [images[i][0].permute(1, 2, 0).numpy() for i in range(len(images))]
    if not (isinstance(images, FileImages) and images.names[0].startswith("class")):
        return rows
    half = len(rows) // 2  # a folder has one class after the other
    return [row for pair in zip(rows[:half], rows[half:], strict=True) for row in pair]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())
