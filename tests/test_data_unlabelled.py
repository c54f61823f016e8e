"""Training images without labels, and images that cannot be read."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_files import WITH_WORKERS, digest_of, jpeg, samples_of, write_class_folders, write_parquet

from edc.data import DataSet, evaluation_batches, load_data, train_batches
from edc.data.bad_images import BadImages
from edc.errors import DataError
from edc.recipe import DataSection, Recipe
from edc.runs.trial import few_images

TRAIN, HELD_OUT = samples_of(24), samples_of(12, first_seed=100)


def section(root: Path, **options) -> DataSection:
    return DataSection(**({"kind": "image_folder", "root": root, "image_size": 8, "num_workers": 0} | options))


def write_flat(folder: Path, num_images: int = 24) -> None:
    """Images in no class: some at the top, some in folders that mean nothing."""
    for i in range(num_images):
        path = folder / ("" if i % 3 else f"part{i % 2}") / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))


def epoch_of(data: DataSet, options: DataSection) -> list[tuple[bytes, int]]:
    """Returns (pixels, label) of every image of an epoch of training."""
    return [
        (row, label)
        for pixels, labels in train_batches(data.train, options, batch_size=6, seed=1, epoch=0)
        for row, label in zip(digest_of(pixels), labels.tolist(), strict=True)
    ]


def contents(data: DataSet, split: str) -> list[tuple[bytes, int]]:
    images = getattr(data, split)
    return [(images.read(i), int(images.labels[i])) for i in range(len(images))]


# Without labels -------------------------------------------------------------------------------------------------------


def test_folder_without_classes_has_its_classes_from_the_held_out_images(tmp_path):
    write_flat(tmp_path / "train")
    write_class_folders(tmp_path / "val", HELD_OUT[:6])
    write_class_folders(tmp_path / "test", HELD_OUT[6:])
    data = load_data(section(tmp_path, unlabelled=True))
    assert sorted(contents(data, "train")) == sorted((jpeg(i), -1) for i in range(24))
    assert sorted(contents(data, "validation")) == sorted((s.content, s.label) for s in HELD_OUT[:6])
    assert sorted(contents(data, "test")) == sorted((s.content, s.label) for s in HELD_OUT[6:])
    assert data.class_names == ("class0", "class1")


def test_class_folders_of_unlabelled_training_images_mean_nothing(tmp_path):
    write_class_folders(tmp_path / "train", TRAIN)
    (tmp_path / "train/class0").rename(tmp_path / "train/whatever")
    write_class_folders(tmp_path / "val", HELD_OUT)
    data = load_data(section(tmp_path, unlabelled=True))
    assert sorted(contents(data, "train")) == sorted((s.content, -1) for s in TRAIN)


def test_one_held_out_split_gives_validation_and_test(tmp_path):
    write_flat(tmp_path / "train")
    write_class_folders(tmp_path / "val", HELD_OUT)
    for asked, sizes in ((None, (6, 6)), (4, (4, 8))):
        data = load_data(section(tmp_path, unlabelled=True, validation=asked))
        assert (len(data.validation), len(data.test)) == sizes
        both = contents(data, "validation") + contents(data, "test")
        assert sorted(both) == sorted((s.content, s.label) for s in HELD_OUT)
        assert len(data.train) == 24


def test_classes_of_unlabelled_images_are_those_of_all_held_out_folders(tmp_path, capsys):
    write_flat(tmp_path / "train")
    write_class_folders(tmp_path / "val", HELD_OUT)
    write_class_folders(tmp_path / "test", [replace(s, label=s.label + 1) for s in HELD_OUT])
    data = load_data(section(tmp_path, unlabelled=True))
    assert data.class_names == ("class0", "class1", "class2")
    assert sorted(set(data.validation.labels.tolist())) == [0, 1]
    assert sorted(set(data.test.labels.tolist())) == [1, 2]
    said = capsys.readouterr().err.replace("\n", "")
    assert "val has no images of 1 of 3 classes (class2, ...)" in said


@pytest.mark.parametrize("size", [8, None])
def test_parquet_may_have_no_label_column_for_training(tmp_path, size):
    pytest.importorskip("pyarrow")
    square = [replace(sample, content=jpeg(i)) for i, sample in enumerate(TRAIN)]
    write_parquet(tmp_path / "train-0.parquet", square[:16], row_group_size=5, labelled=False)
    write_parquet(tmp_path / "validation-0.parquet", square[16:], row_group_size=5)
    data = load_data(section(tmp_path, kind="parquet", unlabelled=True, image_size=size))
    assert data.train.labels.tolist() == [-1] * 16
    assert sorted([*data.validation.labels.tolist(), *data.test.labels.tolist()]) == [0] * 4 + [1] * 4
    assert data.class_names == ("class0", "class1")
    with pytest.raises(DataError, match=r"data.label_column: found columns image"):
        load_data(section(tmp_path, kind="parquet", image_size=size))


def test_limit_of_unlabelled_images_is_a_seeded_draw(tmp_path):
    write_flat(tmp_path / "train")
    write_class_folders(tmp_path / "val", HELD_OUT)
    drawn = [load_data(section(tmp_path, unlabelled=True, train_limit=9, split_seed=k)).train for k in (0, 0, 1)]
    assert list(drawn[0].names) == list(drawn[1].names) != list(drawn[2].names)
    assert len(set(drawn[0].names)) == 9


def test_without_any_labels_the_run_is_refused(tmp_path):
    write_flat(tmp_path / "train")
    with pytest.raises(DataError, match=r"data.unlabelled: found no val and no test split with labels"):
        load_data(section(tmp_path, unlabelled=True))
    (tmp_path / "flat/train").mkdir(parents=True)
    (tmp_path / "flat/train/a.jpg").write_bytes(jpeg(0))
    with pytest.raises(DataError, match=r"has 0 class folders, .* need data.unlabelled: true"):
        load_data(section(tmp_path / "flat"))
    with pytest.raises(DataError, match=r"data.root: no folder .*empty/train for the unlabelled"):
        load_data(section(tmp_path / "empty", unlabelled=True))


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "name": "unlabelled",
        "data": {"kind": "image_folder", "image_size": 8, "unlabelled": True},
        "network": "wrn10x1",
        "teachers": {"checkpoints": ["a.pt", "b.pt"]},
        "students": {"be": {"method": "latent_be"}},
    } | changes


def test_recipe_without_labels_needs_own_teachers_and_alpha_1():
    assert Recipe.model_validate(recipe()).data.unlabelled
    with pytest.raises(ValueError, match=r"data.unlabelled: teachers cannot be trained without labels; list your own"):
        Recipe.model_validate(recipe(teachers={"ensemble_size": 2}))
    with pytest.raises(ValueError, match=r"students.kd.alpha: found 0.9, but data.unlabelled leaves no labels"):
        Recipe.model_validate(recipe(students={"kd": {"method": "kd", "alpha": 0.9}}))
    with pytest.raises(ValueError, match=r"unlabelled has no effect with kind 'cifar10'"):
        Recipe.model_validate(recipe(data={"kind": "cifar10", "unlabelled": True}))


# Unreadable -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of 24, 6 and 6 images of 2 classes, of which one training image is junk and one is cut off."""
    write_class_folders(tmp_path / "train", TRAIN)
    write_class_folders(tmp_path / "val", HELD_OUT[:6])
    write_class_folders(tmp_path / "test", HELD_OUT[6:])
    (tmp_path / "train/class0/00022.jpg").write_bytes(b"not an image")
    (tmp_path / "train/class1/00007.jpg").write_bytes(TRAIN[7].content[:200])
    return tmp_path


def test_image_that_is_no_image_ends_the_run_unless_some_are_allowed(damaged):
    data = load_data(section(damaged))
    with pytest.raises(DataError, match=r"train/class./000(22|07).jpg: not a readable image .* Replace or remove it.$"):
        epoch_of(data, section(damaged))


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_replaced_by_others_of_their_class_and_named_once(damaged, num_workers, capsys):
    options = section(damaged, max_bad_fraction=0.1, num_workers=num_workers, augmentation="none")
    data = load_data(options)
    stand_ins = {"class0/00022.jpg": "class0/00000.jpg", "class1/00007.jpg": "class1/00009.jpg"}
    row_of = {name: row for row, name in enumerate(data.train.names)}
    expected = [
        (digest_of(data.train[row_of[stand_ins.get(name, name)]][0][None])[0], int(data.train.labels[row]))
        for name, row in row_of.items()
    ]
    first = epoch_of(data, options)
    assert Counter(first) == Counter(expected)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "2 unreadable images, each replaced by another of its class: class" in said
    assert "class0/00022.jpg" in said
    assert "class1/00007.jpg" in said
    assert epoch_of(data, options) == first
    assert capsys.readouterr().err == ""


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not an image", "its 12 bytes are in no format that Pillow knows, or break off in the header"),
        (HELD_OUT[7].content[:-80], "image file is truncated (30 bytes not processed)"),
    ],
)
def test_no_other_image_takes_the_place_of_an_unreadable_test_image(damaged, content, reason, num_workers):
    """Counted twice, the other one would make figures of a split that is not there."""
    path = damaged / "test/class1/00007.jpg"
    path.write_bytes(content)
    data = load_data(section(damaged, max_bad_fraction=0.9))
    assert len(list(evaluation_batches(data.validation, batch_size=4, num_workers=num_workers))) == 2
    with pytest.raises(DataError) as refusal:
        list(evaluation_batches(data.test, batch_size=4, num_workers=num_workers))
    assert str(refusal.value) == (
        f"{path}: not a readable image ({reason}). Replace or remove it. edc replaces no validation or test "
        "image, because every figure is about a whole split."
    )


def test_too_many_unreadable_images_end_the_run(damaged):
    data = load_data(section(damaged, max_bad_fraction=0.05))  # 1 of 24 is fewer, 2 are more
    message = (
        r"000(07|22).jpg: not a readable image.*\n"
        r"  2 of 24 images could not be read: more than data.max_bad_fraction, 0.05"
    )
    with pytest.raises(DataError, match=message):
        epoch_of(data, section(damaged))


def test_a_trial_of_a_few_images_meets_unreadable_ones_as_the_run_may(damaged):
    """2 of 24 are allowed, and both are among the 18 of three steps: a ninth of them, which is more than a tenth."""
    options = section(damaged, max_bad_fraction=0.1)
    few = few_images(load_data(options), 3, batch_size=6, num_processes=1)
    assert len(epoch_of(few, options)) == len(few.train) == 18
    assert sorted(few.train.bad.names) == ["class0/00022.jpg", "class1/00007.jpg"]
    none_allowed = few_images(load_data(section(damaged)), 3, batch_size=6, num_processes=1)
    with pytest.raises(DataError, match=r"not a readable image"):
        epoch_of(none_allowed, options)


def test_class_without_a_readable_image_is_an_error(tmp_path):
    write_class_folders(tmp_path / "train", TRAIN)
    write_class_folders(tmp_path / "val", HELD_OUT)
    for path in (tmp_path / "train/class1").iterdir():
        path.write_bytes(b"junk")
    data = load_data(section(tmp_path, max_bad_fraction=0.9))
    with pytest.raises(DataError, match=r"and none of the 8 images tried in its place is readable"):
        epoch_of(data, section(tmp_path))


def test_rate_counts_distinct_images():
    bad = BadImages(0.2)
    for name in ("a", "b", "a"):
        bad.add(name, "why", num_images=10)
    with pytest.raises(DataError, match="3 of 10 images"):
        bad.add("c", "why", num_images=10)
