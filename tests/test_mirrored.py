"""Mirrored images: teachers that never saw one answer them wrongly, and students must not learn that."""

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
from edc.recipe import Recipe
from edc.recipe.loading import load_recipe
from edc.runs.folder import RunFolder
from edc.runs.why.advice import rehearse_roll_call
from edc.teachers.roll_call.mirrored import Mirrored

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
                half = {"left": np.s_[:, :4], "right": np.s_[:, 4:], "top": np.s_[:4], "bottom": np.s_[4:]}[name]
                pixels[half] += BRIGHT
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


class Halves(nn.Module):
    """Answers bottom, left, right or top, never wrong; `is_even`: left and right are the same to it, half and half."""

    def __init__(self, *, is_even: bool = False) -> None:
        super().__init__()
        self.is_even = is_even

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        down = x[:, 4:].mean((1, 2)) - x[:, :4].mean((1, 2))
        across = x[:, :, 4:].mean((1, 2)) - x[:, :, :4].mean((1, 2))
        left, right = (across.abs(), across.abs()) if self.is_even else (-across, across)
        return 100 * torch.stack([down, left, right, -down], 1)


def saved(path: Path, network: nn.Module) -> str:
    program = torch.export.export(
        network.eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, path)
    return str(path)


def recipe(photos: Path, file: str, augmentation: str) -> Recipe:
    data = {"kind": "image_folder", "root": str(photos), "image_size": 8, "num_workers": 0}
    own = {"file": file, "mean": [0.5] * 3, "std": [0.5] * 3, "trust": True, "allow_weak": True}
    return Recipe.model_validate(
        {
            "name": "mirrored",
            "data": data | {"augmentation": augmentation},
            "network": "wrn10x1",
            "training": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16},
            "teachers": {"checkpoints": [own, own]},
            "students": {"kd": {"method": "kd"}},
        }
    )


def called(one: Recipe, accelerator: Accelerator) -> Any:
    run = RunFolder(Path("runs/mirrored"))
    return rehearse_roll_call(one, load_data(one.data), run=run, accelerator=accelerator)[1]


@pytest.mark.parametrize(
    ("augmentation", "instead"), [("crop_flip", "crop"), ("resized_crop_flip", "resized_crop")]
)  # fmt: skip
def test_ensemble_that_does_not_know_mirrored_images_is_named_with_what_to_set(
    augmentation, instead, photos, tmp_path, accelerator, capsys
):
    roll = called(recipe(photos, saved(tmp_path / "a.pt2", Halves()), augmentation), accelerator)
    assert roll.document()["mirrored"] == {"images": 120, "acc": 1.0, "mirrored_acc": 0.5}
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "warning: the ensemble is right on 100.0 % of 120 validation images, and on 50.0 % of the same ones mirrored"
        in said
    )
    assert f"data.augmentation: {augmentation} mirrors half" in said
    assert f"data.augmentation: {instead} leaves them out" in said


@pytest.mark.parametrize("augmentation", ["none", "crop", "resized_crop"])
def test_nothing_is_mirrored_where_the_recipe_mirrors_nothing(augmentation, photos, tmp_path, accelerator, capsys):
    roll = called(recipe(photos, saved(tmp_path / "a.pt2", Halves()), augmentation), accelerator)
    assert roll.mirrored is None
    assert "mirrored" not in roll.document()
    assert "mirror" not in capsys.readouterr().err


def test_ensemble_that_answers_mirrored_images_as_well_is_not_named(photos, tmp_path, accelerator, capsys):
    roll = called(recipe(photos, saved(tmp_path / "a.pt2", Halves(is_even=True)), "crop_flip"), accelerator)
    # Left and right are equal to it, and the first of equal classes is its answer, mirrored or not.
    assert roll.document()["mirrored"] == {"images": 120, "acc": 0.75, "mirrored_acc": 0.75}
    assert "mirror" not in capsys.readouterr().err


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
    found = Mirrored(acc, mirrored_acc, num_apart, 500, "crop_flip")
    assert (found.is_clearly_worse, bool(found.words)) == (is_worse, is_worse)


@pytest.mark.parametrize(
    ("is_even", "augmentation", "reason"),
    [(False, "crop", "on 50.0 % of the same ones mirrored: none are mirrored"), (True, "crop_flip", "mirrored")],
)
def test_init_mirrors_only_what_the_teachers_know(is_even, augmentation, reason, photos, tmp_path):
    saved(tmp_path / "a.pt2", Halves(is_even=is_even))
    (tmp_path / "photos").symlink_to(photos)
    asked = (
        "--out",
        "photos.yaml",
        "--student",
        "wrn10x1",
        "--image-size",
        "8",
        "--trust",
        "--device",
        "cpu",
        "--threads",
        "1",
    )
    done = edc("init", "photos", "a.pt2", *asked, cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    assert load_recipe(tmp_path / "photos.yaml").data.augmentation == augmentation
    (line,) = [line for line in (tmp_path / "photos.yaml").read_text().splitlines() if "augmentation:" in line]
    assert line.endswith(reason)
    assert "leaves them out" not in done.stderr
