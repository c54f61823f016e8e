"""The roll call: a teacher that is fed wrongly stops the run before it begins, and the right reading is shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from edc.data import DataSet, load_data
from edc.data.images import MemoryImages
from edc.errors import CheckpointError
from edc.networks import Classifier
from edc.recipe import CheckpointSection, Recipe
from edc.runs.distill import distill
from edc.runs.folder import RunFolder
from edc.runs.why.advice import rehearse_roll_call
from edc.teachers.ensemble import TeacherEnsemble
from edc.teachers.reading import Answered, Reading
from edc.teachers.roll_call.call import RollCall, call_roll
from edc.teachers.roll_call.other_readings import _attempt, _doubt, cross_fitted
from edc.teachers.roll_call.words import better_than_all, what_was_tried

NAMES = tuple(f"class{k}" for k in range(12))
IMAGES_A_CLASS = {"train": 2, "val": 6, "test": 2}
STEP = 20
TIMMS = sorted(NAMES, key=lambda name: int(name.removeprefix("class")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one grey level each, near that of their class."""
    root = tmp_path_factory.mktemp("photos")
    for split, num_images in IMAGES_A_CLASS.items():
        for k, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(num_images):
                Image.new("RGB", (8, 8), (STEP * k + i,) * 3).save(root / split / name / f"{i}.png")
    return root


class Levels(nn.Module):
    """Answers with the level that is nearest to the mean of an image, normalised as it was trained; never wrong."""

    def __init__(self, order: list[str], mean: float, std: float) -> None:
        super().__init__()
        levels = torch.tensor([STEP * NAMES.index(name) + 2.5 for name in order]) / 255
        self.register_buffer("levels", (levels - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        return -1000 * (x.mean((1, 2, 3))[:, None] - self.levels) ** 2


def saved(path: Path, *, order: list[str] | None = None, mean: float = 0.5, std: float = 0.25) -> str:
    network = Levels(order or sorted(NAMES), mean, std).eval()
    program = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    return str(path)


class LevelsOfLargeImages(Levels):
    """Is right on images of 16 x 16 pixels alone: it takes their sum for a mean."""

    def forward(self, x: Tensor) -> Tensor:
        return -1000 * (x.sum((1, 2, 3))[:, None] / (3 * 16 * 16) - self.levels) ** 2


def recipe(folder: Path, *checkpoints: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "called",
            "data": {"kind": "image_folder", "root": str(folder), "image_size": 8, "num_workers": 0},
            "network": "wrn10x1",
            "training": {"epochs": 1, "warmup_epochs": 0, "batch_size": 24},
            "teachers": {
                "checkpoints": [{"mean": [0.5] * 3, "std": [0.25] * 3, "trust": True} | one for one in checkpoints]
            },
            "students": {"kd": {"method": "kd"}},
        }
    )


def stopped(one: Recipe, tmp_path: Path, accelerator: Accelerator) -> str:
    with pytest.raises(CheckpointError) as caught:
        distill(one, run=RunFolder(tmp_path / "runs/called"), accelerator=accelerator)
    assert not (tmp_path / "runs").exists()
    return str(caught.value)


def test_teacher_in_timms_order_of_classes_stops_the_run_and_the_message_has_the_order(folder, tmp_path, accelerator):
    file = saved(tmp_path / "timms.pt2", order=TIMMS)
    said = stopped(recipe(folder, {"file": file}), tmp_path, accelerator)
    assert "timms.pt2 is right on 16.7 % of the validation images; answers at random would be on 8.3 %" in said
    assert said.splitlines()[1].split(maxsplit=2) == ["100.0", "%", "classes: natural"]
    assert "allow_weak: true" in said


def test_good_ensemble_is_called_and_recorded_with_its_readings(folder, tmp_path, accelerator, capsys):
    files = [saved(tmp_path / "timms.pt2", order=TIMMS), saved(tmp_path / "b.pt2")]
    one = recipe(folder, {"file": files[0], "classes": "natural"}, {"file": files[1]})
    summary = distill(one, run=RunFolder(tmp_path / "runs/called"), accelerator=accelerator)
    called = summary["roll_call"]
    assert called["images"] == 12 * IMAGES_A_CLASS["val"]
    assert [(each["name"], each["acc"], each["classes"]) for each in called["teachers"]] == [
        ("timms.pt2", 1.0, "natural"),
        ("b.pt2", 1.0, "the data's"),
    ]
    rows = [row for row in summary["rows"] if row["subject"].startswith("teacher ")]
    for row, each in zip(rows, called["teachers"], strict=True):
        assert (row["validation"]["acc"], row["validation"]["nll"]) == (each["acc"], each["nll"])
        assert row["raw"]["acc"] == 1.0  # on test images too
    said = capsys.readouterr().err
    assert "teachers on 72 validation images" in said
    assert "natural" in said


def test_teacher_of_larger_images_stops_the_run_and_the_message_has_their_size(folder, tmp_path, accelerator):
    network, dynamic = LevelsOfLargeImages(sorted(NAMES), 0.5, 0.25).eval(), torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    torch.export.save(
        torch.export.export(network, (torch.rand(2, 3, 16, 16),), dynamic_shapes=shapes), tmp_path / "large.pt2"
    )
    said = stopped(recipe(folder, {"file": str(tmp_path / "large.pt2")}), tmp_path, accelerator)
    assert said.splitlines()[1].split(maxsplit=2) == ["100.0", "%", "input_size: 16"]
    one = recipe(folder, {"file": str(tmp_path / "large.pt2"), "input_size": 16})
    summary = distill(one, run=RunFolder(tmp_path / "runs/called"), accelerator=accelerator)
    assert [each["acc"] for each in summary["roll_call"]["teachers"]] == [1.0]


def test_far_weaker_teacher_stops_the_run_with_the_normalisation_that_fits(folder, tmp_path, accelerator):
    files = [saved(tmp_path / "a.pt2"), saved(tmp_path / "imagenet.pt2", mean=0.0, std=1 / 255)]
    said = stopped(recipe(folder, {"file": files[0]}, {"file": files[1]}), tmp_path, accelerator)
    assert said.startswith("teachers.checkpoints.1: imagenet.pt2 is right on ")
    assert "the best teacher on 100.0 %" in said
    assert "  100.0 %  mean: [0, 0, 0], std: [0.003922, 0.003922, 0.003922] (none (images from 0 to 255))" in said


def test_answers_of_a_sigmoid_are_said(folder, tmp_path, accelerator, capsys):
    network = nn.Sequential(Levels(sorted(NAMES), 0.5, 0.25), nn.Sigmoid()).eval()
    program = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "sigmoid.pt2")
    one = recipe(
        folder, {"file": str(tmp_path / "sigmoid.pt2"), "allow_weak": True}, {"file": saved(tmp_path / "b.pt2")}
    )
    summary = distill(one, run=RunFolder(tmp_path / "runs/called"), accelerator=accelerator)
    sigmoid, other = (each["notes"] for each in summary["roll_call"]["teachers"])
    assert [note[:55] for note in sigmoid] == ["every answer lies from 0 to 1, as if it ended in a sigm"]
    assert other == []
    assert "teacher 0: every answer lies from 0 to 1" in " ".join(capsys.readouterr().err.split())


def test_any_other_order_of_classes_is_found_from_the_answers(folder, tmp_path, accelerator):
    order = [NAMES[(5 * k + 3) % 12] for k in range(12)]
    said = stopped(recipe(folder, {"file": saved(tmp_path / "a.pt2", order=order)}), tmp_path, accelerator)
    assert f"  100.0 %  classes: [{', '.join(order)}] (the order that fits its answers best" in said


@pytest.mark.parametrize(("num_classes", "num_images"), [(4, 46), (10, 46), (10, 200)])
def test_order_that_fits_a_network_that_knows_nothing_is_not_taken_for_a_better_one(num_classes, num_images):
    """Some order always fits: fitted and judged on the same 200 images of ten classes, 40 % would pass."""
    draws, labels = np.random.default_rng(0), np.arange(num_images) % num_classes
    shifted = (labels + 1) % num_classes
    is_better = {"random": [], "shifted": []}
    for _ in range(200):
        random = draws.integers(num_classes, size=num_images)
        mostly = np.where(draws.random(num_images) < 0.8, shifted, random)
        for kind, answers in (("random", random), ("shifted", mostly)):
            named = cross_fitted(answers, labels, num_classes)
            attempt = _attempt("", CheckpointSection(file=Path("a.pt")), named, labels, answers == labels)
            is_better[kind].append(attempt.is_clearly_better)
    assert np.mean(is_better["random"]) <= 0.02
    assert all(is_better["shifted"])


def test_order_of_classes_is_fitted_under_each_normalisation(folder, tmp_path, accelerator):
    order = [NAMES[(5 * k + 3) % 12] for k in range(12)]
    file = saved(tmp_path / "a.pt2", order=order, mean=0.0, std=1 / 255)
    best = stopped(recipe(folder, {"file": file}), tmp_path, accelerator).splitlines()[1]
    assert best.startswith("  100.0 %  mean: [0, 0, 0], std: [0.003922, 0.003922, 0.003922]")
    assert f"classes: [{', '.join(order)}] (the order that fits its answers best" in best


@pytest.mark.parametrize(
    ("counts", "doubt"),
    [
        ([[30, 2, 0], [3, 28, 0], [0, 0, 40]], ""),
        # 20 + 18 are right, 15 + 14 would be: a difference of 9 in 67 images, whose standard error is 8.2.
        ([[20, 15, 0], [14, 18, 0], [0, 0, 40]], "; a and b may be the other way around: check it"),
        ([[5, 4, 5], [5, 6, 5], [5, 4, 5]], "; a and c may be the other way around, and 2 more pairs: check it"),
    ],
)
def test_two_classes_that_may_be_the_other_way_around_are_said(counts, doubt):
    assert _doubt(np.array(counts), ("a", "b", "c")) == doubt


def test_allowed_weak_teacher_lets_the_run_go_on(folder, tmp_path, accelerator):
    one = recipe(folder, {"file": saved(tmp_path / "a.pt2", order=TIMMS), "allow_weak": True})
    summary = distill(one, run=RunFolder(tmp_path / "runs/called"), accelerator=accelerator)
    assert summary["roll_call"]["teachers"][0]["acc"] == pytest.approx(2 / 12)


def test_dry_run_calls_the_roll_and_stops_as_the_run_would(folder, tmp_path, accelerator):
    run = RunFolder(tmp_path / "runs/called")

    def rehearsed(checkpoint: dict[str, Any]) -> RollCall | None:
        one = recipe(folder, checkpoint)
        return rehearse_roll_call(one, load_data(one.data), run=run, accelerator=accelerator)[1]

    files = [saved(tmp_path / "a.pt2", order=TIMMS), saved(tmp_path / "b.pt2")]
    with pytest.raises(CheckpointError, match=r"a\.pt2 is right on 16\.7 % of the validation images; (.|\n)*natural"):
        rehearsed({"file": files[0]})
    roll = rehearsed({"file": files[1]})
    assert roll is not None
    assert (roll.num_images, roll.answered[0].acc) == (72, 1.0)
    assert rehearsed({"file": str(tmp_path / "not there.pt2")}) is None  # costs are asked for before teachers are there
    assert not (tmp_path / "runs").exists()


def test_of_many_validation_images_500_are_looked_at(accelerator, tmp_path):
    """Of 6,000 images the first 5,000 are of class 0: those looked at are spread over all."""
    labels = torch.cat([torch.zeros(5000), torch.ones(1000)]).long()
    images = MemoryImages(torch.zeros(6000, 3, 2, 2, dtype=torch.uint8), labels)
    data = DataSet(images, images, images, ("a", "b"), (3, 2, 2), (0.5,) * 3, (0.5,) * 3)
    called = []

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            called.append(len(x))
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    one = Recipe.model_validate(
        {"name": "many", "data": {"kind": "synthetic"}, "network": "wrn10x1", "students": {"kd": {"method": "kd"}}}
    )
    teachers = TeacherEnsemble([Classifier(Counts(), data.mean, data.std)])
    roll = call_roll(one, data, teachers, (), accelerator=accelerator)
    assert (roll.num_images, sum(called), roll.logits) == (500, 500, None)
    assert roll.answered[0].acc == pytest.approx(5000 / 6000, abs=0.002)


def test_message_says_that_no_other_reading_is_better():
    one = Answered(0, "a.pt", 0.1, 0.1, 2.3, Reading((0.5,), (0.5,), "the recipe"))
    said = what_was_tried(one, [one], [], field="teachers.checkpoints.0")
    assert "No other reading is clearly better: look at the file itself" in said


def test_teachers_that_are_trained_here_are_called_and_never_stop_a_run(workshop):
    assert "teachers on" in workshop.distilled.stderr
    teachers = workshop.distilled.document["roll_call"]["teachers"]
    rows = [row for row in workshop.distilled.document["rows"] if row["subject"].startswith("teacher ")]
    assert [each["acc"] for each in teachers] == [row["validation"]["acc"] for row in rows]
    assert np.isfinite([each["nll"] for each in teachers]).all()


def test_a_teacher_that_is_better_than_the_ensemble_is_said_in_the_first_line(folder, tmp_path, accelerator, capsys):
    """The mean of one right and two wrong teachers, which are sure of themselves, is wrong."""
    files = [saved(tmp_path / f"{name}.pt2", order=order) for name, order in (("a", TIMMS), ("b", None), ("c", TIMMS))]
    one = recipe(folder, *({"file": file, "allow_weak": True} for file in files))
    summary = distill(one, run=RunFolder(tmp_path / "runs/called"), accelerator=accelerator)
    called = summary["roll_call"]
    assert called["ensemble_acc"] == summary["rows"][3]["validation"]["acc"] < called["teachers"][1]["acc"] == 1.0
    said = capsys.readouterr().err
    first, second = (said.index(text) for text in ("teacher 1 (b.pt2) alone is better", "teachers on 72"))
    assert first < second
    assert f"the ensemble on {100 * called['ensemble_acc']:.2f} %" in said


def test_teachers_that_are_not_better_than_their_ensemble_leave_the_first_line_out():
    answered = [
        Answered(m, "a.pt", acc, 0.1, 2.3, Reading((0.5,), (0.5,), "the recipe")) for m, acc in enumerate((0.7, 0.8))
    ]
    assert better_than_all(answered, 0.8, num_images=100, num_apart=4) == ""
    assert "(9 images fewer). Students" in better_than_all(answered, 0.71, num_images=100, num_apart=20)
    by_chance = better_than_all(answered, 0.79, num_images=100, num_apart=5)
    assert "1 image fewer of the 5 on which they differ, which may be chance" in by_chance
