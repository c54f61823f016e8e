"""What is refused before torch loads: files that are not there, options without effect, another recipe's folder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import edc
from safetensors.torch import save_file

from edc.data import load_data
from edc.errors import FailedError, RecipeError
from edc.recipe import Recipe, TrainingSection
from edc.recipe.files_named import require_named_files
from edc.recipe.loading import load_recipe
from edc.recipe.without_effect import without_effect
from edc.runs.folder import first_difference
from edc.runs.start import require_fetchable


def document(**changes: Any) -> dict[str, Any]:
    return {
        "name": "asked",
        "data": {"kind": "synthetic", "image_size": 8, "num_images": 64, "test": 40},
        "network": "wrn10x1",
        "training": {"epochs": 2, "warmup_epochs": 1, "batch_size": 16},
        "students": {"kd": {"method": "kd"}},
    } | changes


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(document(**changes))


OWN = {"checkpoints": ["a.pt", "b.pt"]}
ADAMW = {"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "optimizer": "adamw"}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"training": {**ADAMW, "momentum": 0.8}}, ["training.momentum: found 0.8"]),
        (
            {"students": {"kd": {"method": "kd", "training": {"optimizer": "adamw", "momentum": 0.9}}}},
            ["students.kd.training.momentum: found 0.9"],
        ),
        (
            {"teachers": {"training": {"optimizer": "adamw", "momentum": 0.5}}},
            ["teachers.training.momentum: found 0.5"],
        ),
        ({"teachers": {**OWN, "seed": 3, "epochs": 7}}, ["teachers.seed: found 3", "teachers.epochs: found 7"]),
        (
            {"students": {"kd": {"method": "kd", "perturbation_grey_levels": 2}}},
            ["students.kd.perturbation_grey_levels: found 2.0"],
        ),
        ({"students": {"kd": {"method": "kd", "alpha": 0, "temperature": 2}}}, ["students.kd.temperature: found 2.0"]),
        ({"training": {**ADAMW, "factor_rate": 0.1}}, ["training.factor_rate: found 0.1"]),
        ({"teachers": {"training": {"factor_rate": 0.1}}}, ["teachers.training.factor_rate: found 0.1"]),
        (
            {"students": {"kd": {"method": "kd", "alpha": 0, "answers": "split"}}},
            ["students.kd.answers: found 'split'"],
        ),
        (
            {"data": {"kind": "synthetic", "image_size": 8, "test": 9, "augmentation": "none", "crop_padding": 2}},
            ["data.crop_padding: found 2"],
        ),
    ],
)
def test_an_option_without_effect_is_an_error_that_names_it(tmp_path, changes, found):
    assert [each[: len(start)] for each, start in zip(without_effect(recipe(**changes)), found, strict=True)] == found
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(document(**changes)))
    with pytest.raises(RecipeError, match=r"has no effect with .*; leave it out"):
        load_recipe(tmp_path / "asked.yaml")
    (tmp_path / "inputs.json").write_text("{}")  # the recipe of a run that an older edc began
    assert load_recipe(tmp_path / "asked.yaml").name == "asked"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": ADAMW},
        {"training": {**ADAMW, "momentum": 0.8}, "teachers": {"training": {"optimizer": "sgd"}}},
        {"training": {**ADAMW, "optimizer": "sgd", "momentum": 0.8}, "teachers": {"training": {"optimizer": "adamw"}}},
        {"students": {"be": {}, "kd": {"method": "kd"}}, "training": {**ADAMW, "factor_rate": 0.1}},
        {"students": {"be": {"perturbation": "gaussian", "perturbation_grey_levels": 2}}},
        {"students": {"kd": {"method": "kd", "alpha": 0.5, "temperature": 2}}},
        {"students": {"kd": {"method": "kd", "alpha": 0, "answers": "split", "perturbation": "tdiv", "pair": "row"}}},
    ],
)
def test_options_that_have_an_effect_somewhere_are_none(changes):
    assert without_effect(recipe(**changes)) == []
    resolved = yaml.safe_load(recipe(**changes).as_yaml())  # has every field, with its default
    assert without_effect(Recipe.model_validate(resolved)) == []


def test_the_shape_of_the_schedule_is_said_where_the_learning_rate_is():
    assert TrainingSection.model_fields["learning_rate"].default == 0.1
    source = Path("edc/recipe/training_section.py")
    text = (Path(__file__).parent.parent / source).read_text()
    said = text.split("learning_rate: PositiveFloat = 0.1\n")[1].split("layer_decay")[0]
    assert "half a cosine" in said
    assert "`warmup_epochs`" in said


def test_files_that_are_not_there_are_all_named_without_torch(tmp_path):
    save_file({}, tmp_path / "a.pt")
    checkpoints = [
        {"file": str(tmp_path / "a.pt"), "classes": str(tmp_path / "names.txt")},
        {"file": str(tmp_path / "b.pt")},
    ]
    students = {"kd": {"method": "kd", "start": str(tmp_path / "c.pt")}}
    (tmp_path / "asked.yaml").write_text(
        yaml.safe_dump(document(teachers={"checkpoints": checkpoints}, students=students))
    )
    called = edc("distill", "asked.yaml", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    for field, name, what in (
        ("teachers.checkpoints.0.classes", "names.txt", "file of class names"),
        ("teachers.checkpoints.1.file", "b.pt", "checkpoint"),
        ("students.kd.start", "c.pt", "file of weights to start from"),
    ):
        assert f"{field}: {tmp_path / name}: no such {what}" in called.stderr
    assert "a.pt: no such" not in called.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "asked.yaml"]
    require_named_files(load_recipe(tmp_path / "asked.yaml"), trains=False, with_teachers=False)


def test_a_missing_file_is_said_where_torch_cannot_be_imported(tmp_path):
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(document(teachers=OWN)))
    without_torch = "import sys; sys.modules['torch'] = None; from edc.__main__ import main; main()"
    for asked in (["distill", "asked.yaml"], ["distill", "asked.yaml", "--dry-run"]):
        called = subprocess.run(
            [sys.executable, "-c", without_torch, *asked], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert called.returncode == 2
        assert called.stderr.splitlines() == [
            f"error: teachers.checkpoints.0.file: {tmp_path}/a.pt: no such checkpoint",
            f"teachers.checkpoints.1.file: {tmp_path}/b.pt: no such checkpoint",
        ]


FIVE = [f"{name}.pt" for name in "abcde"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"teachers": {"checkpoints": FIVE}}, {"teachers": {"checkpoints": [*FIVE[:2], "x.pt", *FIVE[3:]]}},
         "teachers.checkpoints.2.file ('c.pt' there, 'x.pt' asked for)"),
        ({"teachers": {"checkpoints": FIVE}}, {"teachers": {"checkpoints": [FIVE[0], *FIVE[2:]]}},
         "teachers.checkpoints.1.file ('b.pt' there, None asked for)"),
        ({"teachers": {"checkpoints": FIVE[1:]}}, {"teachers": {"checkpoints": FIVE}},
         "teachers.checkpoints.0.file (None there, 'a.pt' asked for)"),
        ({"students": {"kd": {"method": "kd", "views": ["mixup"]}}},
         {"students": {"kd": {"method": "kd", "views": ["randaugment", "mixup"]}}},
         "students.kd.views.0 (None there, 'randaugment' asked for)"),
        ({}, {"teachers": {"class_weights": "balanced"}}, "teachers.class_weights (None there, 'balanced' asked for)"),
        ({}, {"seed": 3, "training": {"epochs": 7}},
         "seed (0 there, 3 asked for), and in training.epochs, training.batch_size, training.warmup_epochs"),
        ({}, {"seed": 3, "training": {"epochs": 7, "batch_size": 9, "momentum": 0.5, "weight_decay": 0.1,
                                      "learning_rate": 1}},
         "seed (0 there, 3 asked for), and in training.epochs, training.batch_size, training.learning_rate, "
         "training.momentum and 2 more"),
    ],
)  # fmt: skip
def test_of_a_changed_list_the_one_entry_that_changed_is_named(before, after, said):
    assert first_difference(recipe(**before), recipe(**after)) == said
    assert first_difference(recipe(**before), recipe(**before)) == "nothing but the order of its fields"


def test_a_dry_run_misses_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    """The place of the weights is a port at which nobody listens."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("edc.runs.start.place_of_library_weights", lambda _: "http://127.0.0.1:9/resnet18.pth")
    one = recipe(network={"name": "torchvision/resnet18", "pretrained": True}, teachers={"network": "wrn10x1"})
    data = load_data(one.data)
    with pytest.raises(FailedError, match=r"network\.start: the weights of torchvision/resnet18 are not here"):
        require_fetchable(one, data, teachers_path=tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resnet18-f37072fd.pth").touch()
    require_fetchable(one, data, teachers_path=tmp_path)
