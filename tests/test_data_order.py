"""Files of every kind: the same images in the same order, whoever reads them and wherever an epoch is taken up."""

from pathlib import Path

import pytest
import torch
from data_files import WITH_WORKERS, Sample, digest_of, samples_of, write_class_folders, write_parquet, write_shards

from edc.data import evaluation_batches, load_data, parquet_rows, train_batches
from edc.data import parquet as parquet_module
from edc.data.parquet import RowGroupReader
from edc.recipe import DataSection

SPLITS = {"train": samples_of(26), "val": samples_of(6, first_seed=100), "test": samples_of(7, first_seed=200)}
BATCH_SIZE, SEED = 6, 5
KINDS = ["image_folder", "webdataset", "parquet", "parquet, by row groups"]


def sections(root: Path, kind: str, **options) -> DataSection:
    return DataSection(
        kind=kind.partition(",")[0], root=root, image_size=8, augmentation="resized_crop_flip", **options
    )


@pytest.fixture(params=KINDS)
def section(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSection:
    """The same samples in every kind of file."""
    kind = request.param
    if kind.startswith("parquet"):
        pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if kind == "parquet, by row groups":
        monkeypatch.setattr(parquet_module, "IN_MEMORY_BYTES", 0)
    for split, samples in SPLITS.items():
        write(tmp_path / "data", kind, split, samples)
    return sections(tmp_path / "data", kind, num_workers=0)


def write(root: Path, kind: str, split: str, samples: list[Sample]) -> None:
    if kind == "image_folder":
        write_class_folders(root / split, samples)
    elif kind == "webdataset":
        write_shards(root, split, samples, 7)
    else:
        name = "validation" if split == "val" else split
        for number, start in enumerate(range(0, len(samples), 10)):
            write_parquet(root / f"{name}-{number:05}.parquet", samples[start : start + 10], row_group_size=4)


def epoch_of(section: DataSection, *, num_workers: int = 0, epoch: int = 2, **options) -> list[tuple[bytes, int]]:
    chosen = section.model_copy(update={"num_workers": num_workers})
    batches = train_batches(load_data(section).train, chosen, batch_size=BATCH_SIZE, seed=SEED, epoch=epoch, **options)
    return [row for pixels, labels in batches for row in zip(digest_of(pixels), labels.tolist(), strict=True)]


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [1, 3])
def test_epoch_does_not_depend_on_the_number_of_workers(section, num_workers, monkeypatch):
    monkeypatch.setattr("edc.data.batches.num_cpus", lambda: 4)
    expected = epoch_of(section)
    assert epoch_of(section, num_workers=num_workers) == expected
    assert len(set(expected)) == len(expected) == 24
    assert epoch_of(section, epoch=3) != expected


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_taken_up_in_the_middle_goes_on_with_the_next_batch(section, num_workers):
    for first_batch in (1, 3, 4):
        rest = epoch_of(section, num_workers=num_workers, first_batch=first_batch)
        assert rest == epoch_of(section)[first_batch * BATCH_SIZE :]


@pytest.mark.parametrize("num_processes", [2, 3])
def test_rows_of_the_processes_are_the_batches_of_one(section, num_processes):
    share = BATCH_SIZE // num_processes
    parts = [epoch_of(section, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    batches = [[row for part in parts for row in part[b * share : (b + 1) * share]] for b in range(4)]
    assert [row for batch in batches for row in batch] == epoch_of(section)


def test_kinds_of_files_show_the_same_images(section, tmp_path):
    for split, samples in SPLITS.items():
        write(tmp_path / "folder", "image_folder", split, samples)
    folder = load_data(sections(tmp_path / "folder", "image_folder", num_workers=0))
    for split in ("train", "validation", "test"):
        here, there = (
            {
                pixels.numpy().tobytes(): int(label)
                for batch in evaluation_batches(getattr(data, split), batch_size=5)
                for pixels, label in zip(*batch, strict=True)
            }
            for data in (load_data(section), folder)
        )
        assert here == there
        assert len(here) == len(SPLITS["val" if split == "validation" else split])


def test_row_groups_are_read_only_where_files_are_large(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    for split, samples in SPLITS.items():
        write(tmp_path, "parquet", split, samples)
    section = sections(tmp_path, "parquet", num_workers=0)
    assert not isinstance(load_data(section).train.read, RowGroupReader)
    monkeypatch.setattr(parquet_module, "IN_MEMORY_BYTES", 0)
    train = load_data(section).train
    assert isinstance(train.read, RowGroupReader)
    assert [train.read(i) for i in range(26)] == [sample.content for sample in SPLITS["train"]]
    parquet_rows._row_group.cache_clear()
    for i in torch.randperm(26, generator=torch.Generator().manual_seed(0)).tolist():
        assert train.read(i) == SPLITS["train"][i].content
    assert parquet_rows._row_group.cache_info().currsize <= 4
