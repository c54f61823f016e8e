"""Names of images in arrays, and how a folder is walked."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_files import jpeg, samples_of, write_class_folders

from edc.data import evaluation_batches, load_data
from edc.data.files.left_out import LeftOut
from edc.data.folder import IMAGE_SUFFIXES, images_under
from edc.data.names import Names
from edc.errors import DataError
from edc.recipe import DataSection

WORDS = ["a/1.jpg", "", "größe 2.png", os.fsdecode(b"\xff\xfe.jpg"), "x" * 300]


def unlabelled(root: Path) -> DataSection:
    return DataSection(kind="image_folder", root=root, image_size=8, num_workers=0, unlabelled=True)


def test_names_are_the_strings_they_were_made_of_in_any_order():
    names = Names.of(iter(WORDS))
    assert list(names) == WORDS
    assert list(names.take(np.array([3, 0, 0, 4]))) == [WORDS[k] for k in (3, 0, 0, 4)]
    assert list(pickle.loads(pickle.dumps(names))) == WORDS
    assert b"".join(names.encoded()) == b"".join(os.fsencode(word) + b"\0" for word in WORDS)
    assert (len(names), len(Names.of([]))) == (5, 0)


def test_folder_is_read_in_the_order_of_the_parts_of_its_paths(tmp_path):
    write_class_folders(tmp_path / "val", samples_of(8))
    train = tmp_path / "train"
    for number, name in enumerate(
        ["b/x.jpg", "b.jpg", "b-c/x.JPEG", "B/1.png", "b/a/y.jpg", "b/a.jpg", "10.jpg", "9.jpg"]
    ):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_bytes(jpeg(number))
    (train / "notes.txt").write_text("not an image")
    (train / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg(8))
    images = load_data(unlabelled(tmp_path)).train
    paths = sorted(path for path in train.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    assert len(paths) == 9
    assert list(images.names) == [path.relative_to(train).as_posix() for path in paths]
    assert images.file_bytes.tolist() == [path.stat().st_size for path in paths]
    assert [images.read(row) for row in range(9)] == [path.read_bytes() for path in paths]


def test_link_to_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    for split in ("train", "test"):
        write_class_folders(tmp_path / split, samples_of(20))
    link = tmp_path / "test/class0/00000.jpg"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere.jpg")
    data = load_data(DataSection(kind="image_folder", root=tmp_path, image_size=8, num_workers=0, validation=4))
    with pytest.raises(DataError, match=rf"{link}: cannot be read \(No such file or directory\)"):
        list(evaluation_batches(data.test, batch_size=4))


def test_link_to_itself_is_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "loop").symlink_to("loop")
    assert list(images_under(tmp_path, "folder", LeftOut())) == [("loop.jpg", 0)]
