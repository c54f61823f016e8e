"""Runs keep the reading of their teachers: a changed one is refused, that of an older edc is kept and said."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from edc.data import DataSet, load_data
from edc.errors import RunError
from edc.networks import Classifier
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.runs.own_teachers import own_teachers_of, readings_of
from edc.teachers.ensemble import load_teachers, teacher_digests
from edc.teachers.reading import OwnTeacher

NAME, CLASSES = "test_resnet", 3
MEAN: dict[str, Any] = {"mean": [0.7] * 3, "std": [0.9] * 3}


def timm_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(NAME, num_classes=CLASSES).eval()


def recipe(checkpoints: list[Any], **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "own",
            "data": {"kind": "synthetic", "image_size": 32, "num_classes": CLASSES, "num_images": 32, "test": 20},
            "network": f"timm/{NAME}",
            "training": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16},
            "teachers": {"checkpoints": checkpoints},
            "students": {"kd": {"method": "kd"}},
        }
        | changes
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.save({"state_dict": timm_net(1).state_dict(), "state_dict_ema": timm_net(2).state_dict()}, tmp_path / "a.pt")
    return str(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data(recipe(["a.pt"]).data)


def assert_weights_of(teacher: OwnTeacher, network: nn.Module) -> None:
    state, expected = teacher.network.network.state_dict(), network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def begun(one: Recipe, data: DataSet, folder: Path, *, with_readings: bool) -> RunFolder:
    """Returns a run in which a student has begun, as this edc leaves it or as one without readings did."""
    run = RunFolder(folder / "runs/own")
    inputs = {"the images": data.fingerprint(), "teacher 0": teacher_digests(one, data)[0]}
    run.claim(one, inputs | (readings_of(own_teachers_of(one, data, run), run) if with_readings else {}))
    (run.student_path("kd")).mkdir(parents=True)
    (run.student_path("kd") / "metrics.jsonl").write_text("")
    return run


def test_run_of_an_older_edc_keeps_raw_weights_and_the_datas_normalisation_and_says_so(
    checkpoint, data, tmp_path, capsys
):
    one = recipe([checkpoint])
    run = begun(one, data, tmp_path, with_readings=False)
    (then,) = own_teachers_of(one, data, run)
    assert all(
        torch.equal(a, b) for a, b in zip(then.network.network.parameters(), timm_net(1).parameters(), strict=True)
    )
    assert then.reading.mean == pytest.approx(data.mean)
    said = " ".join(capsys.readouterr().err.split())
    assert "has its raw weights and the data's mean and std, because this run was made so by an older edc" in said
    assert "moving average (state_dict_ema)" in said
    assert readings_of([then], run) == {}  # and so it stays


def test_new_run_records_its_reading_and_goes_on_with_the_same_alone(checkpoint, data, tmp_path, monkeypatch):
    one = recipe([checkpoint])
    run = begun(one, data, tmp_path, with_readings=True)
    (now,) = own_teachers_of(one, data, run)
    assert all(
        torch.equal(a, b) for a, b in zip(now.network.network.parameters(), timm_net(2).parameters(), strict=True)
    )
    recorded = json.loads(run.inputs()["how teacher 0 is read"])
    assert (recorded["mean"], recorded["weights"]) == ([0.5, 0.5, 0.5], "state_dict_ema")
    monkeypatch.setattr("edc.teachers.from_state_dict.of_timm", lambda *_: ((0.1, 0.1, 0.1), (0.5, 0.5, 0.5)))
    with pytest.raises(
        RunError, match=r"own: teacher 0 is read otherwise now .*: mean was \[0.5, 0.5, 0.5\] and is \[0.1"
    ):
        own_teachers_of(one, data, run)


@pytest.mark.parametrize("with_readings", [False, True])
def test_begun_run_keeps_the_normalisation_of_the_file_that_an_older_edc_took_and_says_so(
    with_readings, data, tmp_path, capsys
):
    """It took the file's where the recipe has another."""
    torch.save(Classifier(timm_net(1), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1)).state_dict(), tmp_path / "own.pt")
    before, one = recipe([str(tmp_path / "own.pt")]), recipe([{"file": str(tmp_path / "own.pt"), **MEAN}])
    run = begun(one, data, tmp_path, with_readings=False)
    if with_readings:
        recorded = readings_of(
            own_teachers_of(before, data, RunFolder(tmp_path / "none")), RunFolder(tmp_path / "none")
        )
        run.inputs_path.write_text(json.dumps(run.inputs() | recorded))
    (then,) = own_teachers_of(one, data, run)
    assert then.reading.mean == pytest.approx((0.2, 0.3, 0.4))
    said = " ".join(capsys.readouterr().err.split())
    assert "has its file's mean and std, because this run was made so by an older edc. A new run would" in said
    (now,) = own_teachers_of(one, data, RunFolder(tmp_path / "none"))
    assert now.reading.mean == pytest.approx((0.7, 0.7, 0.7))


def test_new_fields_at_their_defaults_leave_the_digest_and_allow_weak_never_enters_it(checkpoint):
    plain = recipe([{"file": checkpoint}])
    assert recipe([{"file": checkpoint, "weights": "auto", "allow_weak": False}]).digest() == plain.digest()
    assert recipe([{"file": checkpoint, "allow_weak": True}]).digest() == plain.digest()
    assert recipe([{"file": checkpoint, "weights": "raw"}]).digest() != plain.digest()
    assert recipe([{"file": checkpoint, "classes": "natural"}]).digest() != plain.digest()
    document = plain.identity()["teachers"]["checkpoints"][0]
    assert not document.keys() & {"weights", "classes", "allow_weak"}  # as edc 0.1.0 wrote it


def test_teachers_of_a_run_are_those_of_the_recipe_in_export_and_bench(checkpoint, data, tmp_path):
    one = recipe([{"file": checkpoint, "weights": "raw"}])
    own = [each.network for each in own_teachers_of(one, data, RunFolder(tmp_path / "none"))]
    ensemble = load_teachers(one, data, teachers_path=tmp_path, accelerator=Accelerator(cpu=True), own=own)
    assert torch.equal(next(ensemble[0].network.parameters()), next(timm_net(1).parameters()))
