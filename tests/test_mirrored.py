"""Mirrored images: teachers that never saw one answer them wrongly, and students must not learn that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from command_line import edc
from PIL import Image
from torch import Tensor, nn

from edc.data import load_data
from edc.errors import CheckpointError
from edc.recipe import Recipe
from edc.recipe.loading import load_recipe
from edc.runs.folder import RunFolder
from edc.runs.why.advice import rehearse_roll_call
from edc.teachers.roll_call.mirrored import Mirrored, OneMirrored

IMAGES_A_CLASS = {"train": 4, "val": 30, "test": 4}
BRIGHT = 60
"""Grey levels that the brighter half of an image has more than the other."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose brighter half is left or right, top or bottom: two of four classes change when mirrored."""
    root = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for split, num_images in IMAGES_A_CLASS.items():
        for name in ("bottom", "left", "right", "top"):
            (root / split / name).mkdir(parents=True)
            for i in range(num_images):
                pixels = draws.integers(80, 120, (8, 8, 3)).astype(np.uint8)
                pixels[0, 0] = 255  # where a mirrored image has none
                half = {"left": np.s_[:, :4], "right": np.s_[:, 4:], "top": np.s_[:4], "bottom": np.s_[4:]}[name]
                pixels[half] = np.minimum(pixels[half], 190) + BRIGHT
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


class Halves(nn.Module):
    """Answers bottom, left, right or top, never wrong of images as they are.

    kind: `even`: left and right are the same to it, and left is its answer. `swaps`: it answers a mirrored image as it
    then is. `lost`: of an image without a bright first pixel it knows nothing, and answers bottom.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        down = x[:, 4:].mean((1, 2)) - x[:, :4].mean((1, 2))
        across = x[:, :, 4:].mean((1, 2)) - x[:, :, :4].mean((1, 2))
        left, right = (across.abs(), across.abs()) if self.kind == "even" else (-across, across)
        logits = 100 * torch.stack([down, left, right, -down], 1)
        if self.kind != "lost":
            return logits
        is_known = (x[:, 0, 0] > x[:, 0, 7]) & (x[:, 0, 0] > x[:, 7, 0])
        return torch.where(is_known[:, None], logits, torch.eye(4)[0] * 10)


def saved(path: Path, network: nn.Module) -> str:
    side = 96 if isinstance(network, nn.Sequential) else 8
    program = torch.export.export(
        network.eval(), (torch.rand(2, 3, side, side),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, path)
    return str(path)


def recipe(photos: Path, files: Sequence[str], augmentation: str, **student: Any) -> Recipe:
    data = {"kind": "image_folder", "root": str(photos), "image_size": 8, "num_workers": 0}
    own = {"mean": [0.5] * 3, "std": [0.5] * 3, "trust": True, "allow_weak": True}
    return Recipe.model_validate(
        {
            "name": "mirrored",
            "data": data | {"augmentation": augmentation},
            "network": "wrn10x1",
            "training": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16},
            "teachers": {"checkpoints": [own | {"file": file} for file in files]},
            "students": {"kd": {"method": "kd"} | student},
        }
    )


def called(one: Recipe, accelerator: Accelerator) -> Any:
    run = RunFolder(Path("runs/mirrored"))
    return rehearse_roll_call(one, load_data(one.data), run=run, accelerator=accelerator)[1]


@pytest.mark.parametrize(
    ("augmentation", "instead"), [("crop_flip", "crop"), ("resized_crop_flip", "resized_crop")]
)  # fmt: skip
def test_teacher_that_does_not_know_mirrored_images_is_named_with_what_to_set(
    augmentation, instead, photos, tmp_path, accelerator, capsys
):
    """Also beside two that do, whose mean with it is as right: with split answers each teacher stands alone."""
    files = [saved(tmp_path / f"{kind}.pt2", Halves(kind)) for kind in ("swaps", "swaps", "lost")]
    roll = called(recipe(photos, files, augmentation), accelerator)
    known = {"acc": 1.0, "mirrored_acc": 1.0}
    assert roll.document()["mirrored"] == {
        "images": 120,
        "teachers": [known, known, {"acc": 1.0, "mirrored_acc": 0.25}],
    }
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "warning: teacher 2 is right on 100.0 % of 120 validation images, and on 25.0 % of the same ones mirrored. "
        f"data.augmentation: {augmentation} mirrors half" in said
    )
    assert f"data.augmentation: {instead} mirrors none" in said


@pytest.mark.parametrize(("alpha", "is_named"), [(1.0, False), (0.5, True)])
def test_classes_that_become_one_another_are_right_where_nobody_learns_from_labels(
    alpha, is_named, photos, tmp_path, accelerator, capsys
):
    roll = called(recipe(photos, [saved(tmp_path / "a.pt2", Halves("swaps"))], "crop_flip", alpha=alpha), accelerator)
    assert roll.document()["mirrored"]["teachers"] == [{"acc": 1.0, "mirrored_acc": 0.5 if is_named else 1.0}]
    assert ("mirrors half" in capsys.readouterr().err) == is_named


def test_teacher_that_is_read_wrongly_is_not_said_to_lack_mirrored_images(photos, tmp_path, accelerator, capsys):
    one = recipe(photos, [saved(tmp_path / "a.pt2", Halves("lost"))], "crop_flip")
    names = ["top", "left", "right", "bottom"]
    wrongly = one.teachers.checkpoints[0].model_copy(update={"classes": tuple(names), "allow_weak": None})
    one = one.model_copy(update={"teachers": one.teachers.model_copy(update={"checkpoints": (wrongly,)})})
    with pytest.raises(CheckpointError, match=r"right on 50\.0 % of the validation images"):
        called(one, accelerator)
    assert "mirror" not in capsys.readouterr().err


@pytest.mark.parametrize("augmentation", ["none", "crop", "resized_crop"])
def test_nothing_is_mirrored_where_the_recipe_mirrors_nothing(augmentation, photos, tmp_path, accelerator, capsys):
    roll = called(recipe(photos, [saved(tmp_path / "a.pt2", Halves("lost"))], augmentation), accelerator)
    assert roll.mirrored is None
    assert "mirrored" not in roll.document()
    assert "mirror" not in capsys.readouterr().err


def test_teacher_that_answers_mirrored_images_as_well_is_not_named(photos, tmp_path, accelerator, capsys):
    one = recipe(photos, [saved(tmp_path / "a.pt2", Halves("even"))], "crop_flip", alpha=0.5)
    assert called(one, accelerator).document()["mirrored"]["teachers"] == [{"acc": 0.75, "mirrored_acc": 0.75}]
    assert "mirror" not in capsys.readouterr().err


def test_at_most_500_images_are_mirrored_and_fewer_of_large_ones(photos, tmp_path, accelerator, monkeypatch):
    one = recipe(photos, [saved(tmp_path / "a.pt2", Halves("lost"))], "crop_flip")
    monkeypatch.setattr("edc.teachers.roll_call.mirrored.MOST_BYTES", 44 * 3 * 8 * 8)
    assert called(one, accelerator).document()["mirrored"] == {
        "images": 44,  # evenly spread over the classes
        "teachers": [{"acc": 1.0, "mirrored_acc": 0.25}],
    }


@pytest.mark.parametrize(
    ("acc", "mirrored_acc", "num_apart", "is_worse"),
    [
        (0.92, 0.48, 230, True),
        (0.92, 0.90, 30, False),  # two points fewer: mirroring may pay all the same
        (0.92, 0.86, 32, True),  # 30 images of 32, of 500
        (0.92, 0.86, 130, False),  # 30 of 130 that changed, which may be chance
        (0.50, 0.90, 250, False),
    ],
)
def test_few_wrong_answers_are_no_warning(acc, mirrored_acc, num_apart, is_worse):
    found = Mirrored((OneMirrored(0, acc, mirrored_acc, num_apart),), 500, "crop_flip")
    assert (bool(found.worse), bool(found.words)) == (is_worse, is_worse)


@pytest.mark.parametrize(
    ("kind", "size", "augmentation", "reason"),
    [
        ("lost", 8, "crop", "on 25.0 % of the same ones mirrored: none are mirrored"),
        ("swaps", 8, "crop_flip", "mirrored; leave out flips where left and right differ in meaning"),
        ("sized", 96, "resized_crop", "mirrored: none are mirrored"),
    ],
)
def test_init_mirrors_only_what_the_teachers_know(kind, size, augmentation, reason, photos, tmp_path):
    saved(
        tmp_path / "a.pt2", nn.Sequential(nn.AdaptiveAvgPool2d(8), Halves("lost")) if kind == "sized" else Halves(kind)
    )
    (tmp_path / "photos").symlink_to(photos)
    asked = ("--out", "photos.yaml", "--student", "wrn10x1", "--image-size", str(size), "--trust")
    done = edc("init", "photos", "a.pt2", *asked, "--device", "cpu", "--threads", "1", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "photos.yaml").read_text()
    assert load_recipe(tmp_path / "photos.yaml").data.augmentation == augmentation
    (line,) = [line for line in text.splitlines() if "augmentation:" in line]
    assert line.endswith(reason)
    assert "# kd: one network learns from the one teacher; a student with members needs two or more" in text
    assert "mirrors half" not in done.stderr
