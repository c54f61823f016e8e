"""Folders, shards and parquet as strangers leave them: what is used, what is left out and named, what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stranger_files import KINDS, encoded, in_parquet, in_tar, loaded, noise, said, section, write

from edc.data import load_data, load_training_data
from edc.data.files.classes import names_in, require_names
from edc.data.files.splits import looks_like_a_split, split_at_the_start, split_of_file, split_of_folder
from edc.data.images import require_proportions
from edc.errors import DataError
from edc.recipe import DataSection


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(images: Any) -> list[bytes]:
    return sorted(images.read(i) for i in range(len(images)))


SMALL = [encoded(noise(i)) for i in range(24)]


def write_classes(folder: Path, images: list[bytes], *, suffix: str = "png") -> None:
    for i, content in enumerate(images):
        path = folder / f"class{i % 2}" / f"{i:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),  # Roboflow
        ("Train", "Validation", "Test"),
        ("training_set", "dev_set", "test_set"),
        ("seg_train", "val", "seg_test"),
        ("TRAIN", "VAL", "TESTING"),
        ("train-images", "validation-images", "eval"),
    ],
)
def test_folders_of_all_usual_names_are_the_splits(names, tmp_path):
    for name, images in zip(names, (SMALL[:12], SMALL[12:18], SMALL[18:]), strict=True):
        write_classes(tmp_path / name, images)
    data = load_data(section(tmp_path))
    assert data.class_names == ("class0", "class1")
    assert contents(data.train) == sorted(SMALL[:12])
    assert contents(data.validation) == sorted(SMALL[12:18])
    assert contents(data.test) == sorted(SMALL[18:])


def test_training_and_testing_are_no_classes(tmp_path):
    """Kaggle's scans of brains."""
    write_classes(tmp_path / "Training", SMALL[:18])
    write_classes(tmp_path / "Testing", SMALL[18:])
    data = load_data(section(tmp_path, validation=4))
    assert data.class_names == ("class0", "class1")
    assert contents(data.test) == sorted(SMALL[18:])
    assert sorted([*contents(data.train), *contents(data.validation)]) == sorted(SMALL[:18])


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("train_v2", "test_v2"),
            r"has test_v2, train_v2, which looks like splits, but no training images",
        ),
        (("class0", "class1", "test"), r"has test, which looks like splits, but no training images under a name"),
        (("train", "valid", "val"), r"has two folders for the validation images, val and valid; expected one of them"),
        (("train", "val_v2"), r"has train, val_v2, which looks like splits, but val_v2 is no name that edc knows; exp"),
        (("train", "test", "valid1"), r"has test, train, valid1, .* but valid1 is no name that edc knows"),
        (("train", "Training"), r"has two folders for the train images, (Training and train|train and Training)"),
    ],
)
def test_folders_that_nearly_are_splits_are_refused(folders, message, tmp_path):
    for name in folders:
        write_classes(tmp_path / name, SMALL[:4])
    with pytest.raises(DataError, match=message):
        load_data(section(tmp_path))


def test_folder_that_is_like_a_split_that_is_there_is_left_out_and_said(tmp_path, capsys):
    for name in ("train", "val", "test", "test_old"):
        write_classes(tmp_path / name, SMALL[:4])
    data = load_data(section(tmp_path))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4, 4, 4]
    assert "left out 1 folders beside the splits (test_old)" in said(capsys)


def test_splits_within_the_classes_are_refused(tmp_path):
    """They would be taken for one split, and cut at random."""
    for name in ("cat", "dog"):
        for split, images in (("train", SMALL[:6]), ("Test", SMALL[6:12])):
            (tmp_path / name / split).mkdir(parents=True)
            for i, image in enumerate(images):
                (tmp_path / name / split / f"{i}.png").write_bytes(image)
    with pytest.raises(
        DataError, match=r"has Test, train within its class folders \(cat, \.\.\.\), expected the classes"
    ):
        load_data(section(tmp_path))
    shutil.rmtree(tmp_path / "dog")
    write_classes(tmp_path, SMALL)  # folders that say nothing of a split
    assert load_data(section(tmp_path)).class_names == ("cat", "class0", "class1")


def test_test_images_without_class_folders_are_left_out_and_said(tmp_path, capsys):
    """As many competitions have them."""
    write_classes(tmp_path / "train", SMALL)
    (tmp_path / "test").mkdir()
    for i in range(3):
        (tmp_path / "test" / f"{i}.png").write_bytes(encoded(noise(100 + i)))
    data = load_data(section(tmp_path, validation=4, test=4))
    assert sorted([*contents(data.train), *contents(data.validation), *contents(data.test)]) == sorted(SMALL)
    assert "test: left out 3 images, which lie in no class folders and so have no labels" in said(capsys)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_one_test_folder_that_is_no_class_holds_images_without_labels(tmp_path, capsys, unlabelled):
    """As torchvision's reader asks for it (test/unknown): the run ended, with advice about training images."""
    write_classes(tmp_path / "train", SMALL[:12])
    write_classes(tmp_path / "val", SMALL[12:])
    (tmp_path / "test/unknown").mkdir(parents=True)
    (tmp_path / "test/unknown/0.png").write_bytes(encoded(noise(100)))
    asked = section(tmp_path, unlabelled=unlabelled, **({} if unlabelled else {"validation": 4}))
    data = load_data(asked)
    assert data.class_names == ("class0", "class1")
    found = [*contents(data.train), *contents(data.validation), *contents(data.test)]
    assert sorted(found) == sorted(SMALL)
    assert "unknown: left out 1 images, which lie in no class folders" in said(capsys)
    (tmp_path / "test/unknown").rename(tmp_path / "test/class0")
    with pytest.raises(DataError, match=r"test has 1 class folders, expected one folder per class \(at least 2\)\.$"):
        load_data(asked)


def test_split_within_its_own_folder_is_found_as_zip_files_make_them(tmp_path, capsys):
    """seg_train/seg_train/<class> of landscapes, and test/test/<image> of many competitions."""
    write_classes(tmp_path / "seg_train/seg_train", SMALL[:12])
    write_classes(tmp_path / "val/val", SMALL[12:18])
    (tmp_path / "test/test").mkdir(parents=True)
    (tmp_path / "test/test/0.png").write_bytes(SMALL[18])
    (tmp_path / "seg_train/loose.png").write_bytes(SMALL[19])
    data = load_data(section(tmp_path, validation=2))
    assert sorted([*contents(data.train), *contents(data.validation)]) == sorted(SMALL[:12])
    assert contents(data.test) == sorted(SMALL[12:18])
    line = said(capsys)
    assert "test/test: left out 1 images, which lie in no class folders" in line
    assert "left out 1 .png beside seg_train (loose.png)" in line
    unlabelled = load_data(section(tmp_path, unlabelled=True)).train  # which may lie anywhere
    assert contents(unlabelled) == sorted([*SMALL[:12], SMALL[19]])


def test_parquet_test_images_without_labels_are_said(tmp_path, capsys):
    in_parquet(tmp_path / "train-0.parquet", list(SMALL), [i % 2 for i in range(24)])
    in_parquet(tmp_path / "test-0.parquet", list(SMALL[:3]), [-1] * 3)
    load_data(section(tmp_path, "parquet", validation=4, test=4))
    assert "left out 3 test images, which have no labels (-1)" in said(capsys)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_held_out_images_of_one_class_alone_are_doubted(kind, tmp_path, capsys):
    """Many a test split without labels has a 0 for each."""
    write(tmp_path, kind, "train", SMALL)
    write(tmp_path, kind, "val", SMALL[:6])
    write(tmp_path, kind, "test", SMALL[:1])
    load_data(section(tmp_path, kind))
    line = said(capsys)
    assert "data: test has no images of 1 of 2 classes (1). All are of class 0: are they labelled?" in line
    assert "validation has no images" not in line


def test_folder_names_with_accents_of_macos_and_of_linux_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for split, name in (("train", composed), ("val", decomposed), ("test", composed)):
        for folder, content in ((name, SMALL[0]), ("tea", SMALL[1])):
            (tmp_path / split / folder).mkdir(parents=True)
            (tmp_path / split / folder / "0.png").write_bytes(content)
    data = load_data(section(tmp_path))
    assert data.class_names == (composed, "tea")
    for split in (data.train, data.validation, data.test):
        assert [(split.read(i), int(split.labels[i])) for i in range(2)] == [(SMALL[0], 0), (SMALL[1], 1)]
    (tmp_path / "test" / decomposed).mkdir()
    with pytest.raises(DataError, match=r"two folders of class .*'cafe\\u0301' and 'caf\\xe9'"):
        load_data(section(tmp_path))


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_files_and_folders_that_are_not_read_are_said(kind, tmp_path, capsys):
    """Among them whole splits: compressed, deeper, or in a folder that says nothing."""
    write(tmp_path, kind, "train", SMALL)
    suffix = "tar" if kind == "webdataset" else "parquet"
    for name in (f"val-0.{suffix}.gz", f"other/deep/val-0.{suffix}", "notes.md", "classes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0\n1\n")
    load_data(section(tmp_path, kind, validation=4, test=4))
    line = said(capsys)
    assert f"1 .gz{' beside the parquet files' * (kind == 'parquet')} (val-0.{suffix}.gz)" in line
    assert "1 .md" in line
    where = "parquet files in other folders (other/deep/val-0.parquet)"
    assert (where if kind == "parquet" else "1 folders without shards (other)") in line
    assert ("classes.txt" in line) == (kind == "parquet")  # where it says nothing


def test_classes_that_sound_like_splits_are_classes(tmp_path):
    for name in ("test tube", "training shoe", "trainer", "testudo"):
        (tmp_path / name).mkdir()
        for i in range(6):
            (tmp_path / name / f"{i}.png").write_bytes(encoded(noise(i)))
    assert load_data(section(tmp_path, validation=4, test=4)).class_names == (
        "test tube", "testudo", "trainer", "training shoe",
    )  # fmt: skip


def test_files_of_splits_may_be_called_as_folders_are():
    names = ("trainset-000.tar", "testing_images.tar", "Validset.parquet", "training-0.tar", "untrained-1.tar", "x.tar")
    expected = ["train", "test", "validation", "train", None, None]
    assert [split_of_file(name) for name in names] == expected
    assert [found and found[0] for found in map(split_at_the_start, names)] == expected


def test_words_of_splits():
    assert [split_of_folder(name) for name in ("Valid", "dev", "evaluation", "trainset", "train2", "trains", "t")] == [
        "validation", "validation", "test", "train", None, None, None,
    ]  # fmt: skip
    assert [looks_like_a_split(name) for name in ("train2", "old_test_set", "latest", "trains", "valley")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    files = ("train-000.tar", "imagenet_valid_01.tar", "dev-0.tar", "Testing/part-0.tar", "mytest-0.tar", "x/y.tar")
    assert [split_of_file(name) for name in files] == ["train", "validation", "validation", "test", None, None]
    with pytest.raises(DataError, match=r"my-test-set-train-0.tar: its name says test and train, and edc cannot tell"):
        split_of_file("my-test-set-train-0.tar")


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train-0.parquet", "valid-0.parquet", "testing-0.parquet"), (12, 6, 6)),
        (("train.parquet", "dev.parquet", "test.parquet"), (12, 6, 6)),
        (
            ("train/0000.parquet", "validation/0000.parquet", "test/0000.parquet"),
            (12, 6, 6),
        ),  # of the hub
        (("data/training-0.parquet", "data/val-0.parquet", "data/eval-0.parquet"), (12, 6, 6)),
    ],
)
def test_parquet_of_all_usual_names(names, sizes, tmp_path):
    for name, size in zip(names, sizes, strict=True):
        in_parquet(tmp_path / name, list(SMALL[:size]), [i % 2 for i in range(size)])
    data = load_data(section(tmp_path, "parquet"))
    assert (len(data.train), len(data.validation), len(data.test)) == sizes


def test_parquet_of_one_split_under_two_names_is_refused(tmp_path):
    for name in ("train-0.parquet", "train.parquet"):
        in_parquet(tmp_path / name, list(SMALL[:4]), [0, 1] * 2)
    with pytest.raises(DataError, match=r"has train files of several names, train-0.parquet and train.parquet"):
        load_data(section(tmp_path, "parquet"))


# Left out -------------------------------------------------------------------------------------------------------------


def test_what_machines_leave_in_folders_is_left_out_and_said(tmp_path, capsys):
    """Jupyter's copies, macOS's doubles, a zip file's other half, notes: counted, with one of each kind."""
    write_classes(tmp_path / "train", SMALL[:12])
    write_classes(tmp_path / "val", SMALL[12:])
    cat = tmp_path / "train/class0"
    (cat / ".ipynb_checkpoints").mkdir()
    shutil.copy(cat / "000.png", cat / ".ipynb_checkpoints/000-checkpoint.png")
    (cat / "._000.png").write_bytes(b"AppleDouble")
    for name in ("a.txt", "b.txt", "c.mp4", "noext"):
        (cat / name).write_bytes(b"?")
    (tmp_path / "train/__MACOSX").mkdir()
    (tmp_path / "train/loose.png").write_bytes(SMALL[0])
    (tmp_path / "annotations").mkdir()
    data = load_data(section(tmp_path, validation=2))
    assert data.class_names == ("class0", "class1")
    assert sorted([*contents(data.train), *contents(data.validation)]) == sorted(SMALL[:12])
    line = said(capsys)
    for part in ("1 folders beside the splits (annotations)", "3 hidden (__MACOSX)", "2 .txt (a.txt)", "1 .mp4 (c.mp4)",
                 "1 without a suffix (noext)", "1 .png beside the class folders (loose.png)"):  # fmt: skip
        assert part in line


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "GIF"), ("jfif", "JPEG"), ("pgm", "PPM"), ("jpe", "JPEG")])
@pytest.mark.parametrize("data_kind", ["image_folder", "webdataset"])
def test_further_suffixes_of_images_are_read(suffix, kind, data_kind, tmp_path):
    images = [encoded(Image.fromarray(noise(i, 6, 6)), kind) for i in range(6)]
    data = loaded(tmp_path, data_kind, images, suffix=suffix)
    assert contents(data.test) == sorted(images)


def test_links_to_folders_are_followed_as_torchvision_does_but_not_in_circles(tmp_path, capsys):
    from torchvision.datasets import ImageFolder

    write_classes(tmp_path / "train", SMALL[:12])
    write_classes(tmp_path / "elsewhere", SMALL[12:18])
    (tmp_path / "train/class0/more").symlink_to(tmp_path / "elsewhere/class0")
    (tmp_path / "train/class2").symlink_to(tmp_path / "elsewhere/class1")
    whole = load_data(section(tmp_path, validation=3, test=3))
    parts = (whole.train, whole.validation, whole.test)
    found = sorted((int(label), content) for part in parts for content, label in zip(
        [part.read(i) for i in range(len(part))], part.labels, strict=True))  # fmt: skip
    expected = ImageFolder(tmp_path / "train").samples
    assert found == sorted((label, Path(path).read_bytes()) for path, label in expected)
    assert len(found) == 18
    capsys.readouterr()
    (tmp_path / "train/class1/up").symlink_to(tmp_path / "train")
    assert len(load_data(section(tmp_path, validation=3, test=3)).train) == 12
    assert "1 links to a folder above (up)" in said(capsys)


@pytest.mark.parametrize("named", ["IMG.{}.png", "a.b/photo.v2.{}.png", "{}.png"])
def test_keys_of_shards_may_have_dots(named, tmp_path):
    for split, images in (("train", SMALL[:12]), ("val", SMALL[12:18]), ("test", SMALL[18:])):
        members = []
        for i, content in enumerate(images):
            name = named.format(f"{i:05}")
            members += [(name, content), (f"{name.removesuffix('.png')}.cls", b"%d" % (i % 2))]
        in_tar(tmp_path / f"{split}-0.tar", members)
    data = load_data(section(tmp_path, "webdataset"))
    assert contents(data.train) == sorted(SMALL[:12])
    assert [data.test.read(i) for i in range(6)] == SMALL[18:]
    assert data.test.labels.tolist() == [0, 1] * 3


def test_what_a_shard_holds_beside_samples_is_counted_also_from_the_cache(tmp_path, capsys):
    members = []
    for i in range(6):
        members += [(f"{i}.jpg", SMALL[i]), (f"{i}.cls", b"%d" % (i % 2)), (f"{i}.json", b"{}")]
    members += [("x.photo.png", SMALL[6]), ("x.cls", b"1"), ("alone.cls", b"0"), ("._0.jpg", b"?"), ("5.jpg", SMALL[7])]
    members += [("two.jpg", SMALL[8]), ("two.png", SMALL[9]), ("two.cls", b"0"), ("film.mp4", b"?")]
    for split in ("train", "val", "test"):
        in_tar(tmp_path / f"{split}-0.tar", members if split != "train" else members[: 3 * 6])
    in_tar(tmp_path / "other.tar", members)
    with pytest.raises(DataError, match=r"val-0.tar: 1 samples without a label, the first without 5.cls"):
        load_data(section(tmp_path, "webdataset"))
    members.remove(("5.jpg", SMALL[7]))
    for split in ("val", "test"):
        in_tar(tmp_path / f"{split}-0.tar", members)
    for _ in range(2):
        capsys.readouterr()
        data = load_data(section(tmp_path, "webdataset"))
        assert [data.test.read(i) for i in range(8)] == [*SMALL[:7], SMALL[8]]
        line = said(capsys)
        assert "1 shards of no known split (other.tar)" in line
        assert "train-0.tar: left out 6 .json (0.json)" in line
        of_test = line.split("test-0.tar: left out ")[1]
        beside = ("6 .json (0.json)", "1 .cls without an image (alone.cls)", "1 hidden (._0.jpg)", "1 .png (two.png)")
        for part in (*beside, "1 .mp4 (film.mp4)"):
            assert part in of_test


def test_classes_without_training_images_are_said(tmp_path, capsys):
    for split in ("train", "val", "test"):
        in_tar(tmp_path / f"{split}-0.tar", [(f"{i}.{e}", c) for i in range(6)
               for e, c in (("png", SMALL[i]), ("cls", b"%d" % (1 + i % 3)))])  # fmt: skip
    data = load_data(section(tmp_path, "webdataset"))
    assert data.class_names == ("0", "1", "2", "3")
    assert "1 of 4 classes have no training images: 0. Do its labels count from 1?" in said(capsys)


# Colour ---------------------------------------------------------------------------------------------------------------


def test_one_grey_image_does_not_make_a_split_grey(tmp_path):
    colour = [noise(i) for i in range(8)]
    grey = noise(99, 6, 6)
    for split in ("train", "validation", "test"):
        images = [encoded(grey), *map(encoded, colour)] if split == "test" else list(map(encoded, colour))
        in_parquet(tmp_path / f"{split}-0.parquet", list(images), [i % 2 for i in range(len(images))])
    data = load_data(section(tmp_path, "parquet", image_size=None))
    assert data.image_shape == (3, 6, 6)
    expected = np.stack([grey[:, :, None].repeat(3, 2), *colour]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.test.images.numpy(), expected)


@pytest.mark.parametrize("grey", ["train", "test"])
def test_splits_that_differ_in_colour_are_refused_unless_the_recipe_decides(grey, tmp_path):
    for split in ("train", "validation", "test"):
        images = [encoded(noise(i, 6, 6) if split == grey else noise(i)) for i in range(6)]
        in_parquet(tmp_path / f"{split}-0.parquet", list(images), [0, 1] * 3)
    with pytest.raises(DataError, match=rf"data.channels: all images of {grey} are grey, but .* has colour; say 3 "):
        load_data(section(tmp_path, "parquet", image_size=None))
    for channels in (1, 3):
        data = load_data(section(tmp_path, "parquet", image_size=None, channels=channels))
        assert data.image_shape == (channels, 6, 6)
    assert np.array_equal(getattr(data, grey).images[2].numpy(), noise(2, 6, 6)[None].repeat(3, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_make_images_grey_in_every_kind(kind, tmp_path):
    data = loaded(tmp_path, kind, SMALL[:4], channels=1)
    assert data.image_shape == (1, 6, 6)
    assert (data.mean, data.std) == ((0.449,), (0.226,))
    assert np.array_equal(data.test[0][0][0].numpy(), np.asarray(Image.fromarray(noise(0)).convert("L")))


def test_extra_images_are_read_as_the_labelled_ones_are(tmp_path):
    colour, grey = [encoded(noise(i)) for i in range(6)], [encoded(noise(i, 6, 6)) for i in range(6)]
    for split in ("train", "validation", "test"):
        in_parquet(tmp_path / f"{split}-0.parquet", list(colour), [0, 1] * 3)
    in_parquet(tmp_path / "more/train-0.parquet", list(grey), [0, 1] * 3)
    extra = {"kind": "parquet", "root": str(tmp_path / "more")}
    data = load_training_data(section(tmp_path, "parquet", image_size=None, extra=extra))
    assert data.extra
    assert np.array_equal(data.extra.parts[0].images[1].numpy(), noise(1, 6, 6)[None].repeat(3, 0))


# Bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_image_that_is_far_too_long_is_refused_by_name(kind, tmp_path):
    long = encoded(Image.new("L", (1, 1_000_000)))
    data = loaded(tmp_path, kind, [*SMALL[:3], long], image_size=224)
    message = r"(003\.png|image\[3\]): 1 x 1000000 pixels, which is too long: with a shorter side of 256 it would"
    with pytest.raises(DataError, match=message):
        [data.test[i] for i in range(4)]
    with pytest.raises(DataError, match="too long"):
        [data.train.load(i, augment_seed=0) for i in range(len(data.train))]
    require_proportions((256, 256 * 1000), "a panorama", 256)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_files_without_end_are_refused_at_once(make: Callable[[Path], None], tmp_path):
    write_classes(tmp_path / "train", SMALL[:12])
    write_classes(tmp_path / "val", SMALL[12:])
    data = load_data(section(tmp_path, validation=2))
    path = tmp_path / "val/class0/000.png"
    path.unlink()
    make(path)
    message = r"val/class0/000.png: is a (pipe|device), expected a regular file; remove it"
    with pytest.raises(DataError, match=message):
        load_data(section(tmp_path))
    with pytest.raises(DataError, match=message):
        contents(data.test)  # it was a file when the folder was listed


APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4064)
"""What macOS leaves beside each file on a disk that is not its own."""


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_files_that_macs_leave_beside_shards_are_left_out_and_said(kind, tmp_path, capsys):
    """They were taken for damaged shards, and a good data set was refused."""
    for split, images in (("train", SMALL[:12]), ("val", SMALL[12:18]), ("test", SMALL[18:])):
        write(tmp_path, kind, split, images)
    if kind == "parquet":  # as the hub's converter lays them out
        for path in list(tmp_path.glob("*.parquet")):
            split = path.name.partition("-")[0]
            (tmp_path / split).mkdir()
            path.rename(tmp_path / split / "0000.parquet")
    for path in list(tmp_path.rglob("*.*")):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    data = load_data(section(tmp_path, kind))
    assert [len(images) for images in (data.train, data.validation, data.test)] == [12, 6, 6]
    assert "hidden (" in said(capsys)


def test_shard_that_is_a_pipe_is_refused_at_once(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, "webdataset", split, SMALL[:6])
    os.mkfifo(tmp_path / "test-000.tar")
    with pytest.raises(DataError, match=r"test-000.tar: expected a regular file; remove it"):
        load_data(section(tmp_path, "webdataset"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"1000000000", r"0.cls: found 1000000000, expected the number of a class, 0 or more and less than 1,000,000"),
        (b"12345678901234567890", r"0.cls: found 12345678901234567890, expected the number of a class, 0 or more"),
        (b"9" * 5000, r"0.cls: found b'99999999999999999999', expected the number of a class$"),
        (b"\xe9", r"0.cls: found b'\\xe9', expected the number of a class$"),
    ],
)
def test_labels_of_shards_have_a_bound(label, message, tmp_path):
    for split in ("train", "val", "test"):
        in_tar(tmp_path / f"{split}-0.tar", [("0.png", SMALL[0]), ("0.cls", label)])
    with pytest.raises(DataError, match=message):
        load_data(section(tmp_path, "webdataset"))


def test_names_of_classes_have_a_bound():
    with pytest.raises(DataError, match=r"classes.txt: 1,000,001 names, expected at most 1,000,000, one a line"):
        names_in(b"ab\n" * 1_000_001, "classes.txt")


@pytest.mark.parametrize("largest", [10**9, 2**63 + 5])
def test_labels_of_parquet_have_a_bound(largest, tmp_path):
    import pyarrow as pa

    labels = pa.array([0, largest] * 6, pa.uint64())
    in_parquet(tmp_path / "train-0.parquet", list(SMALL[:12]), labels)
    with pytest.raises(DataError, match=rf"labels run from 0 to {largest}, expected 0 to 999999"):
        load_data(section(tmp_path, "parquet"))


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "crème\nbrûlée\n".encode("latin-1"),
            None,
            r"classes.txt: byte 2 \(0xe8\) is not UTF-8; save",
        ),
        ("crème\nbrûlée\n".encode("utf-16"), None, r"classes.txt: byte 0 \(0xff\) is not UTF-8"),
        ("crème\r\nbrûlée\r\n".encode("utf-8-sig"), ("crème", "brûlée"), None),
    ],
)
def test_classes_txt_is_utf_8(text, names, message, tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path, "webdataset", split, SMALL[:6])
    (tmp_path / "classes.txt").write_bytes(text)
    if message:
        with pytest.raises(DataError, match=message):
            load_data(section(tmp_path, "webdataset"))
    else:
        assert load_data(section(tmp_path, "webdataset")).class_names == names


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines", "", " ", "a\u2028b", "x" * 2000])
def test_classes_that_no_artifact_could_hold_are_refused_when_data_are_read(name, tmp_path):
    with pytest.raises(DataError, match=r"data: the name of class '.*' (is not|has a).*, so no artifact could hold it"):
        require_names(("cat", name))
    if name == "caf\udce9":
        write_classes(tmp_path / "train", SMALL[:12])
        (tmp_path / "train/class1").rename(tmp_path / "train" / os.fsdecode(b"caf\xe9"))
        with pytest.raises(DataError, match=r"data: the name of class 'caf\\udce9' is not UTF-8"):
            load_data(section(tmp_path, validation=2, test=2))


HUB = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
UNUSUAL = {
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "a list": b"[1]",
    "null": b"null",
    "a list of features": json.dumps({"info": {"features": [{"name": "label"}]}}).encode(),
    "names by number": json.dumps({"info": {"features": {"label": {"names": {"0": "no", "1": "yes"}}}}}).encode(),
    "numbers": json.dumps({"info": {"features": {"label": {"names": [0, 1]}}}}).encode(),
    "far too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_metadata_of_the_hub_is_said_and_classes_are_numbers(case, tmp_path, capsys):
    in_parquet(tmp_path / "train-0.parquet", list(SMALL[:20]), [0, 1] * 10, UNUSUAL[case])
    assert load_data(section(tmp_path, "parquet", validation=2, test=2)).class_names == ("0", "1")
    assert "the hub's metadata does not list the names of the classes, but has" in said(capsys)


@pytest.mark.parametrize("metadata", [{}, {"info": None}, {"info": {"features": {"label": {"_type": "Value"}}}}])
def test_metadata_without_names_is_nothing_to_talk_about(metadata, tmp_path, capsys):
    in_parquet(tmp_path / "train-0.parquet", list(SMALL[:20]), [0, 1] * 10, json.dumps(metadata).encode())
    assert load_data(section(tmp_path, "parquet", validation=2, test=2)).class_names == ("0", "1")
    assert "metadata" not in said(capsys)


def test_splits_that_name_their_classes_in_another_order_are_refused(tmp_path):
    other = json.dumps(HUB).replace('["no", "yes"]', '["yes", "no"]')
    in_parquet(tmp_path / "train-0.parquet", list(SMALL[:20]), [0, 1] * 10, json.dumps(HUB).encode())
    in_parquet(tmp_path / "test-0.parquet", list(SMALL[:4]), [0, 1] * 2, other.encode())
    with pytest.raises(DataError, match=r"test-0.parquet: calls its classes yes, no, ..., where another split has"):
        load_data(section(tmp_path, "parquet"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a.png", "b.png"] * 2, r"column image is string, expected encoded images"),
        ([[{"bytes": b"1"}]] * 4, r"column image is list<.*, expected encoded images"),
        ([{"path": "a.png"}] * 4, r"column image is struct<path: string>, expected encoded images"),
        ([], r"column image is null|no rows"),
    ],
)
def test_columns_that_hold_no_images_are_refused(column, message, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": column, "label": pa.array(([0, 1] * 2)[: len(column)], pa.int64())}),
                   tmp_path / "train-0.parquet")  # fmt: skip
    with pytest.raises(DataError, match=message):
        load_data(section(tmp_path, "parquet"))


def test_options_of_files_have_no_effect_elsewhere_and_are_refused():
    for option in ({"channels": 1}, {"orientation": "stored"}):
        with pytest.raises(ValueError, match=r"(channels|orientation) has no effect with kind 'digits'"):
            DataSection(kind="digits", **option)
