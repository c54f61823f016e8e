"""`data.extra`: where the images come from, what is refused before anything trains, and what a run remembers."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from command_line import edc
from conftest import TINY_RECIPE
from data_files import jpeg, samples_of, write_class_folders, write_parquet, write_shards
from PIL import Image

from edc.data import DataSet, load_data, load_training_data, overlap, train_batches
from edc.data.overlap import overlap_of
from edc.errors import DataError, RecipeError, RunError
from edc.method.losses import NO_LABEL
from edc.recipe import DataSection, Recipe
from edc.recipe.loading import load_recipe, recipe_from_document
from edc.runs.distill import distill
from edc.teachers.ensemble import teacher_key


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def document(**data) -> dict:
    return {
        "name": "r",
        "data": {"kind": "synthetic", "image_size": 8, "num_images": 64, "train_limit": 40, **data},
        "network": "wrn10x1",
        "training": {"batch_size": 16},
        "students": {"kd": {"method": "kd"}},
    }


def recipe(**data) -> Recipe:
    return recipe_from_document(document(**data), source="test")


def section(**data) -> DataSection:
    return recipe(**data).data


# Where they come from -------------------------------------------------------------------------------------------------


def test_remainder_in_memory_is_what_the_limit_leaves_out():
    whole = load_data(section(train_limit=None)).train
    data = load_training_data(section(extra="remainder"))
    assert torch.equal(data.train.images, whole.images[:40])
    assert torch.equal(data.extra.parts[0].images, whole.images[40:])
    assert data.extra.parts[0].labels.tolist() == [NO_LABEL] * 24
    assert load_data(section(extra="remainder")).extra is None, "what only evaluates does not ask for them"


@pytest.mark.parametrize("kind", ["image_folder", "webdataset", "parquet", "parquet in memory"])
def test_remainder_of_files_is_what_the_limit_leaves_out(kind, tmp_path):
    samples = samples_of(30)
    if kind == "image_folder":
        write_class_folders(tmp_path / "train", samples)
    elif kind == "webdataset":
        write_shards(tmp_path, "train", samples, 7)
    else:
        pytest.importorskip("pyarrow")
        if kind == "parquet in memory":
            samples = [type(s)(s.key, jpeg(i), s.label) for i, s in enumerate(samples)]
        write_parquet(tmp_path / "train-0.parquet", samples, row_group_size=10)
    size = None if kind == "parquet in memory" else 8
    chosen = section(
        kind=kind.split()[0], root=tmp_path, num_images=256, image_size=size, train_limit=10, validation=4, test=4
    )
    chosen = DataSection(**chosen.model_dump() | {"extra": "remainder"})
    data, whole = load_training_data(chosen), load_data(chosen.model_copy(update={"train_limit": None}))
    kept, rest, every = (
        [hashlib.sha256(images[i][0].numpy().tobytes()).digest() for i in range(len(images))]
        for images in (data.train, data.extra.parts[0], whole.train)
    )
    assert (len(kept), len(rest)) == (10, 12)
    assert sorted(kept + rest) == sorted(every)
    assert len(set(every)) == 22
    assert data.fingerprint() == load_data(chosen).fingerprint()


def test_files_of_every_kind_stand_beside_images_in_memory_and_each_other(tmp_path):
    pytest.importorskip("pyarrow")
    samples = samples_of(9)
    for number, sample in enumerate(samples[:3]):
        (tmp_path / f"folder/a/{number}").mkdir(parents=True)
        (tmp_path / f"folder/a/{number}/x.jpg").write_bytes(sample.content)
    write_shards(tmp_path / "shards", "train", samples[3:6], 2, labelled=False)
    write_parquet(tmp_path / "rows/train-0.parquet", samples[6:], row_group_size=2)
    roots = {"image_folder": "folder", "webdataset": "shards", "parquet": "rows"}
    extra = [{"kind": kind, "root": tmp_path / root, "unlabelled": True} for kind, root in roots.items()]
    chosen = section(extra=extra, num_workers=0, augmentation="none")
    data = load_training_data(chosen)
    assert [len(part) for part in data.extra.parts] == [3, 3, 3]
    batches = list(
        train_batches(data.train, chosen, batch_size=20, seed=0, epoch=0, extra=data.extra)
    )  # 10 and 10 a batch; 40 labelled images
    rows = [(p.numpy().tobytes(), int(k)) for pixels, labels in batches for p, k in zip(pixels, labels, strict=True)]
    extra_rows = [pixels for pixels, label in rows if label == NO_LABEL]
    assert (len(rows), len(extra_rows)) == (80, 40)
    expected = {part[i][0].numpy().tobytes() for part in data.extra.parts for i in range(3)}
    for turn in range(4):
        assert set(extra_rows[9 * turn : 9 * turn + 9]) == expected
    labelled = {(p.numpy().tobytes(), int(k)) for p, k in zip(data.train.images, data.train.labels, strict=True)}
    assert {row for row in rows if row[1] != NO_LABEL} == labelled


def test_limit_draws_so_many_by_the_seed():
    parts = [load_training_data(section(extra={"kind": "remainder", "limit": 5})).extra.parts[0] for _ in range(2)]
    rest = load_training_data(section(extra="remainder")).extra.parts[0].images
    assert len(parts[0]) == 5
    assert torch.equal(parts[0].images, parts[1].images)
    assert all(any(torch.equal(image, other) for other in rest) for image in parts[0].images)


def test_root_is_given_on_the_command_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY_RECIPE.replace("test: 40", "test: 40, extra: {kind: image_folder, root: a}"))
    found = load_recipe(path, overrides=["data.extra.root=b"], data_root=Path("c"))
    assert (found.data.root, found.data.extra[0].root) == (Path("c"), Path("b"))
    path.write_text(TINY_RECIPE.replace("test: 40", "test: 40, extra: [{kind: image_folder, root: a}]"))
    assert load_recipe(path, overrides=["data.extra.0.root=d"]).data.extra[0].root == Path("d")
    with pytest.raises(RecipeError, match=r"--set data.extra.1.root=d: data.extra.1: the list has 1 entries, of which"):
        load_recipe(path, overrides=["data.extra.1.root=d"])
    with pytest.raises(RecipeError, match=r"--set data.extra.root=d: data.extra is a list; say which entry"):
        load_recipe(path, overrides=["data.extra.root=d"])


# What is refused ------------------------------------------------------------------------------------------------------

FOLDER = {"kind": "image_folder", "root": "photos"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"extra": "remainder", "train_limit": None}, "'remainder' is what data.train_limit leaves out; found no"),
        ({"extra": ["remainder", "remainder"]}, "'remainder' is there twice"),
        ({"extra": {"kind": "remainder", "root": "x"}}, "root has no effect with kind 'remainder'"),
        ({"extra": {"kind": "remainder", "max_bad_fraction": 0.1}}, "max_bad_fraction has no effect with data.kind"),
        ({"extra": {"kind": "digits"}}, "data.extra.0.kind: found 'digits'; input should be 'remainder'"),
        ({"extra": FOLDER | {"unlabelled": False}}, "data.extra.0.unlabelled: found False"),
        ({"extra": FOLDER | {"rot": "x"}}, "data.extra.0.rot: unknown key; did you mean 'root'?"),
        ({"extra": FOLDER, "image_size": None}, "data.image_size: needed for data.extra of kind 'image_folder'"),
        ({"extra_share": 0.3}, "data.extra_share: found 0.3, which has no effect without data.extra"),
        ({"extra": "remainder", "extra_share": 0.01}, "data.extra_share: 0.01 of a batch of 16 images is 0"),
        ({"extra": "remainder", "extra_share": 1.0}, "data.extra_share: found 1.0; input should be less than 1"),
    ],
)
def test_mistake_in_the_section_is_one_message(fields, said):
    with pytest.raises(RecipeError) as error:
        recipe(**fields)
    assert said in str(error.value)
    assert "1 mistake\n" in str(error.value)


def test_extra_images_have_no_effect_beside_none_with_labels_or_without_a_student():
    asked = document(kind="image_folder", num_images=256, unlabelled=True, extra=FOLDER)
    asked["teachers"] = {"checkpoints": ["a.pt"]}
    with pytest.raises(RecipeError, match=r"data.extra: with data.unlabelled no training image has a label anyway"):
        recipe_from_document(asked, source="test")
    asked = document(extra="remainder") | {"students": {"kd": {"method": "kd", "extra": False}}}
    with pytest.raises(RecipeError, match=r"data.extra: every student says extra: false"):
        recipe_from_document(asked, source="test")
    asked = document() | {"students": {"kd": {"method": "kd", "extra": False}}}
    with pytest.raises(RecipeError, match=r"students.kd.extra: found false, which has no effect without data.extra"):
        recipe_from_document(asked, source="test")
    asked = document(kind="image_folder", num_images=256, augmentation="resized_crop_flip", extra=["synthetic"])
    with pytest.raises(RecipeError, match=r"'synthetic' is held in memory, which 'resized_crop_flip' is not for"):
        recipe_from_document(asked, source="test")


@pytest.mark.parametrize("cause", ["size", "channels", "folder", "empty", "nothing left"])
def test_run_is_refused_before_anything_trains_or_is_written(cause, tmp_path):
    pytest.importorskip("pyarrow")
    text, root = TINY_RECIPE, tmp_path / "extra"
    if cause == "size":  # without an image_size, parquet files are taken as they are
        same = [type(s)(s.key, jpeg(i, 12, 10), s.label) for i, s in enumerate(samples_of(4))]
        write_parquet(root / "train-0.parquet", same, row_group_size=2)
        text = text.replace("image_size: 8, ", "")
        extra, said = "{kind: parquet, root: extra}", r"data.extra: images of 12 x 10 pixels in 3 channels, expected 16"
    elif cause == "channels":
        text = text.replace("kind: synthetic, image_size: 8, num_images: 64", "kind: digits")
        extra, said = "{kind: synthetic}", r"data.extra: images of 16 x 16 pixels in 3 channels, expected 8 x 8 pixels"
    elif cause == "folder":
        extra, said = "{kind: image_folder, root: nowhere}", r"data.extra.root: no folder"
    elif cause == "empty":
        root.mkdir()
        extra, said = (
            "[{kind: webdataset, root: extra}, synthetic]",
            r"data.extra.0.root: no train-*.tar in extra; point",
        )
    else:
        extra, said = "remainder, train_limit: 64", r"data.extra: 'remainder' is empty, because data.train_limit keeps"
    (tmp_path / "recipe.yaml").write_text(text.replace("test: 40", f"test: 40, extra: {extra}"))
    called = edc("distill", "recipe.yaml", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    assert said in " ".join(called.stderr.split())
    assert "--data-root" not in called.stderr
    assert not (tmp_path / "runs").exists()


def test_damaged_extra_files_count_against_their_own_allowance(tmp_path):
    for number, sample in enumerate(samples_of(20)):
        (tmp_path / f"{number:02}.jpg").write_bytes(sample.content if number % 10 else b"not an image")

    def epoch(allowed: float) -> DataSet:
        extra = {"kind": "image_folder", "root": tmp_path, "max_bad_fraction": allowed}
        chosen = section(extra=extra, num_workers=0)
        data = load_training_data(chosen)
        for batch, (_, labels) in enumerate(
            train_batches(data.train, chosen, batch_size=16, seed=0, epoch=0, extra=data.extra)
        ):
            assert (labels == NO_LABEL).sum() == 8, batch
        return data

    assert sorted(epoch(0.1).extra.parts[0].bad.names) == ["00.jpg", "10.jpg"]
    with pytest.raises(
        DataError, match=r"2 of 20 images could not be read: more than data.extra.max_bad_fraction, 0.06"
    ):
        epoch(0.06)
    with pytest.raises(DataError, match=r"\d0.jpg: not a readable image"):
        epoch(0.0)


# Extra images that are held out ---------------------------------------------------------------------------------------


def test_extra_images_that_are_test_images_are_warned_of_with_their_number(tmp_path):
    data = load_data(section())
    for number, image in enumerate([*data.test.images[:3], *data.validation.images[:2], *data.train.images[:4]]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    text = TINY_RECIPE.replace(
        "num_images: 64, test: 40", f"num_images: 64, extra: {{kind: image_folder, root: '{tmp_path}'}}"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    called = edc("distill", "recipe.yaml", "--dry-run", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    said = " ".join(called.stderr.split())
    assert "warning: data.extra: 3 of 9 images looked at are test images, too." in said
    assert "warning: data.extra: 2 of 9 images looked at are validation images, too." in said


def test_files_are_compared_by_content_and_only_those_of_equal_size_are_read(tmp_path, monkeypatch):
    held_out, others = samples_of(12, first_seed=50), samples_of(30)
    write_class_folders(tmp_path / "data/test", held_out)
    write_class_folders(tmp_path / "data/train", samples_of(20, first_seed=100))
    for number, sample in enumerate([*others, *held_out[:5]]):
        (tmp_path / f"{number}.jpg").write_bytes(sample.content)
    extra = {"kind": "image_folder", "root": tmp_path}
    asked = document(kind="image_folder", root=tmp_path / "data", num_images=256, train_limit=None, validation=4)
    asked["data"]["extra"] = {**extra, "root": tmp_path}
    (tmp_path / "train").mkdir()  # `root/train` is where they are, if it is there
    for path in tmp_path.glob("*.jpg"):
        path.rename(tmp_path / "train" / path.name)
    data = load_training_data(recipe_from_document(asked, source="test").data)
    part = data.extra.parts[0]
    assert len(part) == 35
    read = []
    reader = type(part.read).__call__
    monkeypatch.setattr(type(part.read), "__call__", lambda self, i: read.append(i) or reader(self, i))
    found = overlap_of(part, data.test)
    assert (found.num_found, found.num_looked_at) == (5, 35)
    alike = {int(n) for n in part.file_bytes} & {int(n) for n in data.test.file_bytes}
    assert len(read) == sum(int(n) in alike for images in (part, data.test) for n in images.file_bytes)
    assert overlap_of(part, data.validation).num_found == 0
    monkeypatch.setattr(overlap, "MOST_FILES", 2)
    assert overlap_of(part, data.test).num_looked_at == 2


# What a run remembers -------------------------------------------------------------------------------------------------


def test_recipe_without_extra_images_has_the_digest_of_before():
    plain = recipe()
    held = plain.identity()
    assert not {"extra", "extra_share"} & (held["data"].keys() | held["students"]["kd"].keys())
    assert recipe(extra="remainder").digest() != plain.digest()
    resolved = recipe(extra="remainder")
    assert recipe_from_document(json.loads(resolved.model_dump_json(exclude_none=True)), source="x") == resolved


def test_identity_knows_what_the_extra_images_are_and_not_where():
    digests = {
        recipe(extra=FOLDER | more).digest()
        for more in ({}, {"root": "elsewhere"}, {"max_bad_fraction": 0.1}, {"unlabelled": True})
    }
    assert len(digests) == 1
    assert recipe(extra=FOLDER | {"limit": 3}).digest() not in digests
    assert recipe(extra=FOLDER, extra_share=0.4).digest() not in digests
    moved = recipe(extra=FOLDER).operated_as(recipe(extra=FOLDER | {"root": "elsewhere"}))
    assert moved.data.extra[0].root == Path("elsewhere")


def test_teachers_are_known_by_the_labelled_images_alone():
    plain, extra = recipe(), recipe(extra="remainder", extra_share=0.25)
    keys = [teacher_key(r, load_training_data(r.data), 0) for r in (plain, extra)]
    assert keys[0] == keys[1]


def test_run_does_not_go_on_with_other_extra_images(tmp_path, accelerator):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, sample in enumerate(samples_of(8)):
        (photos / f"{number}.jpg").write_bytes(sample.content)
    asked = document(extra={"kind": "image_folder", "root": photos}, num_workers=0)
    asked["training"] = {"epochs": 1, "warmup_epochs": 0, "batch_size": 16}
    asked["teachers"] = {"ensemble_size": 1}
    ready = recipe_from_document(asked, source="test")
    distill(ready, run=tmp_path / "run", accelerator=accelerator)
    (tmp_path / "run/summary.json").unlink()
    photos.rename(tmp_path / "moved")
    asked["data"]["extra"]["root"] = tmp_path / "moved"
    distill(recipe_from_document(asked, source="test"), run=tmp_path / "run", accelerator=accelerator)
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "moved/0.jpg").write_bytes(jpeg(99, quality=40))
    with pytest.raises(RunError, match=r"began to learn from other content of the extra images than there is now"):
        distill(recipe_from_document(asked, source="test"), run=tmp_path / "run", accelerator=accelerator)
