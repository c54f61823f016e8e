"""WebDataset shards as random-access images: what is in them, in an order that nobody's workers change."""

import gc
import io
import tarfile
import warnings
from pathlib import Path

import fsspec
import pytest
import torch
import webdataset
from data_files import WITH_WORKERS, Sample, jpeg, samples_of, write_shards
from fsspec.implementations.memory import MemoryFileSystem
from PIL.JpegImagePlugin import JpegImageFile

from edc.data import DataSet, FileImages, evaluation_batches, load_data, train_batches
from edc.data import tar_index as tar_index_module
from edc.data.tar_index import index_of_shard
from edc.errors import DataError, FailedError
from edc.recipe import DataSection

TRAIN, VALIDATION, TEST = samples_of(20), samples_of(6, first_seed=100), samples_of(7, first_seed=200)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edc/shards"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twenty training samples in three shards of 8, 8 and 4; 6 of validation; 7 of test."""
    root = tmp_path / "shards"
    for split, samples in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        write_shards(root, split, samples, 8)
    return root


def section(root: Path | str, **options) -> DataSection:
    return DataSection(kind="webdataset", root=root, image_size=8, num_workers=0, **options)


def contents_of(images: FileImages) -> list[tuple[bytes, int]]:
    return [(images.read(i), int(images.labels[i])) for i in range(len(images))]


def expected_of(samples: list[Sample]) -> list[tuple[bytes, int]]:
    return [(sample.content, sample.label) for sample in samples]


def streamed_from(paths: list[Path]) -> list[tuple[bytes, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves files to the garbage collector
        stream = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
        samples = [(sample["jpg"], int(sample["cls"])) for sample in stream]
        del stream
        gc.collect()
    return samples


def test_shards_hold_what_the_webdataset_package_reads_in_them(shards):
    data = load_data(section(shards))
    streamed = streamed_from(sorted(shards.glob("train-*.tar")))
    assert streamed == contents_of(data.train) == expected_of(TRAIN)
    assert contents_of(data.validation) == expected_of(VALIDATION)
    assert contents_of(data.test) == expected_of(TEST)
    assert data.train.names[9] == "train-000001.tar/00009.jpg"
    assert data.class_names == ("0", "1")


def test_shards_lie_anywhere_that_fsspec_reaches(shards):
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe(f"/bucket/imagenet/{path.name}", path.read_bytes())
    try:
        there, here = load_data(section("memory://bucket/imagenet")), load_data(section(shards))
        for split in ("train", "validation", "test"):
            assert contents_of(getattr(there, split)) == contents_of(getattr(here, split))
        assert there.fingerprint() == here.fingerprint()
    finally:
        memory.rm("/bucket", recursive=True)


def test_splits_are_told_by_names_or_folders_and_classes_by_a_list(tmp_path):
    root = tmp_path / "hub"
    write_shards(root, "imagenet1k-train", TRAIN, 8)
    write_shards(root / "validation", "part", VALIDATION, 8)
    write_shards(root, "mytest", TEST, 8)  # not a word of its own
    (root / "classes.txt").write_text("cat\ndog\n")
    data = load_data(section(root, validation=4))
    assert contents_of(data.test) == expected_of(VALIDATION)
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert data.class_names == ("cat", "dog")


def test_index_is_kept_until_the_shard_changes(shards, cache, monkeypatch):
    load_data(section(shards))
    assert len(list(cache.glob("*.npz"))) == 5

    def scan(file: object, path: str) -> None:
        raise AssertionError(f"{path} was looked at again")

    with monkeypatch.context() as patched:
        patched.setattr(tar_index_module, "_scan", scan)
        assert contents_of(load_data(section(shards)).train) == expected_of(TRAIN)
    write_shards(shards, "train", samples_of(20, first_seed=500), 8)
    assert contents_of(load_data(section(shards)).train) == expected_of(samples_of(20, first_seed=500))
    for path in cache.glob("*.npz"):
        path.write_bytes(b"half a file")
    assert contents_of(load_data(section(shards)).test) == expected_of(TEST)


def test_cache_that_cannot_be_written_is_no_error(shards, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert contents_of(load_data(section(shards)).train) == expected_of(TRAIN)


def test_keys_end_at_the_first_dot_and_folders_belong_to_them(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, content in [
            ("a/x.seg.png", b"1"), ("a/x.jpg", b"22"), ("a/x.cls", b"3"),
            ("b/x.JPEG", b"333"), ("b/x.cls", b"10\n"), ("b/.hidden", b"?"), ("b/x2.json", b"{}"),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    index = index_of_shard(fsspec.filesystem("file"), str(tmp_path / "train-0.tar"))
    assert list(index.names) == ["a/x.jpg", "b/x.jpeg"]
    assert index.labels.tolist() == [3, 10]
    content = (tmp_path / "train-0.tar").read_bytes()
    assert [content[o : o + s] for o, s in zip(index.offsets, index.sizes, strict=True)] == [b"22", b"333"]
    assert not index.damage


def test_names_tell_shards_of_one_name_in_several_folders_apart(tmp_path):
    write_shards(tmp_path / "train", "part", TRAIN, 20)
    write_shards(tmp_path / "val", "part", VALIDATION, 8)
    data = load_data(section(tmp_path, validation=4))
    assert sorted(data.test.names) == [f"val/part-000000.tar/{s.key}.jpg" for s in VALIDATION]
    assert sorted([*data.train.names, *data.validation.names]) == [f"train/part-000000.tar/{s.key}.jpg" for s in TRAIN]


# Damage ---------------------------------------------------------------------------------------------------------------


def data_offsets(path: Path) -> dict[str, int]:
    with tarfile.open(path) as archive:
        return {member.name: member.offset_data for member in archive}


BREAKS = {  # the writer puts a sample's label before its image
    "in an image": ("00012.jpg", 100),
    "in a header": ("00012.cls", -300),
    "between label and image": ("00012.jpg", -512),
    "in the padding of an image": ("00011.jpg", len(TRAIN[11].content)),
    "between two samples": ("00012.cls", -512),
}


@pytest.mark.parametrize("place", BREAKS)
def test_truncated_shard_is_named_and_its_whole_samples_are_kept(shards, place, capsys):
    shard = shards / "train-000001.tar"
    member, distance = BREAKS[place]
    shard.write_bytes(shard.read_bytes()[: data_offsets(shard)[member] + distance])
    # Samples 8 to 11 are whole; the largest whole shard has 8, so 12 to 15 are lost.
    with pytest.raises(DataError, match=r"train-000001.tar breaks off .*4 samples before it: about 4 of 20 samples"):
        load_data(section(shards))
    with pytest.raises(DataError, match=r"max_bad_fraction is 0\.1"):
        load_data(section(shards, max_bad_fraction=0.1))
    data = load_data(section(shards, max_bad_fraction=0.2))
    assert contents_of(data.train) == expected_of(TRAIN[:12] + TRAIN[16:])
    assert "train-000001.tar breaks off" in capsys.readouterr().err


def test_shard_with_junk_in_its_middle_is_read_up_to_there(shards):
    shard = shards / "train-000001.tar"
    content, at = bytearray(shard.read_bytes()), data_offsets(shard)["00012.cls"] - 512
    content[at : at + 512] = b"x" * 512
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000001.tar breaks off .*, 4 samples before it"):
        load_data(section(shards))


def test_samples_lost_with_shards_count_towards_the_rate_of_bad_images(shards):
    shard = shards / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[: len(shard.read_bytes()) // 2])
    broken = bytearray((shards / "train-000000.tar").read_bytes())
    at = data_offsets(shards / "train-000000.tar")["00003.jpg"]
    broken[at : at + 200] = bytes(200)
    (shards / "train-000000.tar").write_bytes(broken)
    data = load_data(section(shards, max_bad_fraction=0.19))
    with pytest.raises(DataError, match=r"1 of \d+ images could not be read and \d lost with damaged shards"):
        loaded(data, epoch=0)


def test_samples_lost_with_shards_count_when_validation_is_held_out_of_the_rest(tmp_path):
    write_shards(tmp_path, "train", samples_of(60), 10)
    shard = tmp_path / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[: data_offsets(shard)["00014.jpg"]])
    data = load_data(section(tmp_path, max_bad_fraction=0.5, validation=8, test=8, train_limit=30))
    assert len(data.train) == 30
    assert data.train.bad.num_lost == 4, "30 of 54 samples that are there have 30 of 54 of the 6 that are lost"


@pytest.mark.parametrize("whole_last", [False, True])
def test_loss_is_unknown_and_refused_without_a_whole_shard_to_compare_with(tmp_path, whole_last):
    for split, samples in (("val", VALIDATION), ("test", TEST)):
        write_shards(tmp_path, split, samples, 8)
    write_shards(tmp_path, "train", samples_of(70 if whole_last else 60), 60)  # a last shard of 10 says nothing of 60
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[: data_offsets(shard)["00030.jpg"]])
    message = (
        r"train-000000.tar breaks off .*, 30 samples before it: how many are lost is unknown, because no whole shard "
        r"shows how many samples one has \(the last may have fewer\). Fetch the damaged ones again, or remove them.$"
    )
    with pytest.raises(DataError, match=message):
        load_data(section(tmp_path, max_bad_fraction=0.9))


@pytest.mark.parametrize("split", ["val", "test"])
def test_damaged_shard_of_a_split_that_figures_are_made_of_is_refused_at_any_rate(tmp_path, split):
    for name in ("train", "val", "test"):
        write_shards(tmp_path, name, TRAIN, 8)
    shard = tmp_path / f"{split}-000001.tar"
    shard.write_bytes(shard.read_bytes()[: data_offsets(shard)["00012.jpg"]])
    message = rf"{split}-000001.tar breaks off .*, 4 samples before it. Validation and test splits must be whole: fetch"
    with pytest.raises(DataError, match=message):
        load_data(section(tmp_path, max_bad_fraction=0.9))


def test_unreadable_image_is_named_by_its_shard_and_key(shards):
    shard = shards / "test-000000.tar"
    content, at = bytearray(shard.read_bytes()), data_offsets(shard)["00003.jpg"]
    content[at : at + 200] = bytes(200)
    shard.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        list(evaluation_batches(load_data(section(shards, max_bad_fraction=0.9)).test, batch_size=4))
    assert str(refusal.value) == (
        f"{shard}/00003.jpg: not a readable image (its {len(TEST[3].content)} bytes are in no format that Pillow "
        "knows, or break off in the header). Replace or remove it. edc replaces no validation or test image, "
        "because every figure is about a whole split."
    )


def test_file_that_is_no_archive_is_named(shards):
    (shards / "train-000002.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(DataError, match=r"train-000002.tar breaks off .* 0 samples before it"):
        load_data(section(shards))


def test_shard_that_disappears_or_shrinks_is_named(shards):
    data = load_data(section(shards))
    (shards / "val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"val-000000.tar: cannot be read"):
        list(evaluation_batches(data.validation, batch_size=2))
    (shards / "test-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"test-000000.tar: ends before byte"):
        list(evaluation_batches(data.test, batch_size=2))


class Flaky(MemoryFileSystem):
    """Memory, as far away as a bucket: so many requests of a range fail before one is answered."""

    protocol = "flaky"
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options) -> bytes:
        if Flaky.failures:
            Flaky.failures -= 1
            raise RuntimeError("server disconnected\nsomewhere")
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def far_away(shards, monkeypatch):
    """Address of the shards on a filesystem of another machine; asked again without waiting."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("edc.data.webdataset.PAUSES", (0.0, 0.0))
    monkeypatch.setattr(Flaky, "failures", 0)
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe(f"/far/{path.name}", path.read_bytes())
    yield "flaky://far"
    memory.rm("/far", recursive=True)


def test_image_of_a_remote_shard_is_asked_for_again(far_away):
    data = load_data(section(far_away))
    Flaky.failures = 2
    assert contents_of(data.train) == expected_of(TRAIN)
    assert Flaky.failures == 0


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [0, 1])
def test_remote_shard_that_does_not_answer_ends_the_run_and_is_no_unreadable_image(far_away, num_workers):
    data = load_data(section(far_away, max_bad_fraction=0.9))
    Flaky.failures = 1000
    with pytest.raises(FailedError, match=r"train-00000\d.tar: cannot be read, asked 3 times \(server disconnected\);"):
        loaded(data, epoch=0, num_workers=num_workers)


def test_place_without_access_is_named(far_away, monkeypatch):
    def refuse(*_arguments, **_options):
        raise RuntimeError("Unable to locate credentials")

    for method in ("glob", "ukey", "exists"):
        with monkeypatch.context() as patched:
            patched.setattr(Flaky, method, refuse)
            with pytest.raises(DataError, match=r"far.*: cannot be read \(Unable to locate credentials\)"):
                load_data(section(far_away))


@pytest.mark.parametrize(("label", "message"), [(b"cat", "found b'cat', expected the number"), (b"-1", "found -1")])
def test_label_that_is_no_class_is_named(shards, label, message):
    with tarfile.open(shards / "train-000003.tar", "w") as archive:
        for name, content in (("z.jpg", jpeg(1)), ("z.cls", label)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=rf"train-000003.tar/z.cls: {message}"):
        load_data(section(shards))


def test_samples_without_labels_are_refused_unless_they_may_have_none(shards):
    write_shards(shards, "train", TRAIN, 8, labelled=False)
    with pytest.raises(DataError, match=r"train-000000.tar: 8 samples without a label, .*data.unlabelled: true"):
        load_data(section(shards))
    data = load_data(section(shards, unlabelled=True))
    assert contents_of(data.train) == [(sample.content, -1) for sample in TRAIN]
    assert contents_of(data.validation) == expected_of(VALIDATION)
    write_shards(shards, "test", TEST, 8, labelled=False)
    with pytest.raises(DataError, match=r"test-000000.tar: 7 samples without a label"):
        load_data(section(shards, unlabelled=True))


def test_folder_without_shards_and_classes_beyond_the_list_are_refused(shards, tmp_path):
    with pytest.raises(DataError, match=r"data.root: no train-\*.tar in .*nowhere"):
        load_data(section(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"1 classes, but a .cls in the shards says 1"):
        load_data(section(shards, num_classes=1))


def loaded(data: DataSet, *, num_workers: int = 0, **options) -> list[torch.Tensor]:
    loading = section("x", augmentation="resized_crop_flip").model_copy(update={"num_workers": num_workers})
    return [pixels for pixels, _ in train_batches(data.train, loading, batch_size=4, seed=3, **options)]


def test_training_view_of_a_large_jpeg_is_nearly_that_of_a_full_decode(tmp_path):
    for split in ("train", "val", "test"):
        write_shards(tmp_path, split, [Sample(f"{i}", jpeg(i, 640, 480), i % 2) for i in range(8)], 8)
    data = load_data(section(tmp_path))
    fast = torch.cat(loaded(data, epoch=0)).float()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JpegImageFile, "draft", lambda *_: None)
        slow = torch.cat(loaded(data, epoch=0)).float()
    difference = (fast - slow).abs()
    assert 0 < difference.max() <= 12
    assert difference.mean() < 1
