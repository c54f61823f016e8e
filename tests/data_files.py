"""Image files for tests of data sets: the same samples as a folder, as tar shards and as parquet."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch import Tensor

WITH_WORKERS = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create .* worker processes",  # on one core
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",  # Python 3.12 and later
)


@dataclass(frozen=True)
class Sample:
    key: str
    content: bytes
    label: int


def jpeg(seed: int, width: int = 40, height: int = 30, quality: int = 90) -> bytes:
    """Returns a JPEG of smooth colours with some noise."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def samples_of(num_samples: int, num_classes: int = 2, *, first_seed: int = 0) -> list[Sample]:
    return [Sample(f"{i:05}", jpeg(first_seed + i, 40 + i % 7, 30), i % num_classes) for i in range(num_samples)]


def write_shards(root: Path, split: str, samples: Sequence[Sample], per_shard: int, *, labelled: bool = True) -> None:
    """Writes shards with the `webdataset` package's own writer."""
    root.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(samples), per_shard)):
        with webdataset.TarWriter(str(root / f"{split}-{number:06}.tar")) as shard:
            for sample in samples[start : start + per_shard]:
                label = {"cls": sample.label} if labelled else {}
                shard.write({"__key__": sample.key, "jpg": sample.content, **label})


def write_class_folders(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        folder = root / f"class{sample.label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sample.key}.jpg").write_bytes(sample.content)


def write_parquet(path: Path, samples: Sequence[Sample], *, row_group_size: int, labelled: bool = True) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": pa.array([{"bytes": s.content, "path": None} for s in samples])}
    names = [f"class{k}" for k in range(max(s.label for s in samples) + 1)]
    if labelled:
        columns["label"] = pa.array([s.label for s in samples], pa.int64())
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def digest_of(pixels: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in pixels]
