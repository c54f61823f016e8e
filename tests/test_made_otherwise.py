"""A finished run of an edc that read images, or the file its teachers started from, otherwise: export and bench say so.

Nothing of it is made anew in silence: its teachers are those of then, and none is trained where one is missing.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from stranger_files import encoded, noise, said, write
from training_cases import plain

from edc.benchmark.options import BenchOptions
from edc.benchmark.request import prepare
from edc.data import load_data
from edc.deploy.export import ExportOptions, export
from edc.deploy.networks import networks_of
from edc.errors import RunError
from edc.recipe import Recipe
from edc.runs.distill import distill
from edc.runs.folder import RunFolder
from edc.runs.networks import load_subject
from edc.runs.student import load_student
from edc.subject import Subject


def turned(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(seed, 8, 8, 3), exif=exif)


IMAGES = "an older edc made this run and read some of its images otherwise (test images: turned)"
TEACHERS = "teachers started from the raw weights of"


def recipe(folder: Path, **network: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "old",
            "data": {"kind": "image_folder", "root": str(folder / "images"), "image_size": 8, "num_workers": 0},
            "network": "cifar_resnet8",
            "training": {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "learning_rate": 0.01},
            "teachers": {
                "ensemble_size": 2,
                "network": {"name": "cifar_resnet8", "start": str(folder / "both.pt"), **network},
            },
            "students": {"kd": {"method": "kd"}},
        }
    )


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> tuple[RunFolder, Recipe]:
    """As edc 0.1.0 left it: raw weights without a word in the recipe, inputs.json without how images were read."""
    folder = tmp_path_factory.mktemp("old")
    for split in ("train", "val"):
        write(folder / "images", "image_folder", split, [encoded(noise(i, 8, 8, 3)) for i in range(16)])
    write(folder / "images", "image_folder", "test", [turned(i) for i in range(8)])
    raw, average = (plain(seed).network.state_dict() for seed in (1, 2))
    torch.save({"state_dict": raw, "state_dict_ema": average}, folder / "both.pt")
    run, one = RunFolder(folder / "runs/old"), recipe(folder)
    summary = distill(recipe(folder, weights="raw"), run=run, accelerator=Accelerator(cpu=True))
    run.recipe_path.write_text(one.as_yaml())
    run.summary_path.write_text(json.dumps(summary | {"recipe_sha256": one.digest()}))
    inputs = run.inputs() or {}
    kept = {name: inputs[name] for name in ("the images", "teacher 0", "teacher 1")}
    assert len(inputs) > len(kept)
    run.inputs_path.write_text(json.dumps(kept))
    return run, one


def test_export_and_bench_say_what_is_read_otherwise_and_take_the_teachers_of_then(old, tmp_path, capsys):
    run, one = old
    trained = sorted(run.teachers_path.iterdir())
    export(run, tmp_path / "artifact", ExportOptions(max_batch=2, baseline=False))
    assert IMAGES in said(capsys)
    data = load_data(one.data)
    student = load_student(one, "kd", data, run=run)
    baseline = networks_of(student, run, one, run.summary(), data, fold_temperature=False)[1:]  # as export does
    assert TEACHERS in said(capsys)
    prepare(tmp_path / "artifact", BenchOptions(run.path, backends=("torch",)))
    assert IMAGES in said(capsys)
    (teacher,) = load_subject(run.path, Subject("teacher", member=0)).networks  # what a bench's worker loads
    assert TEACHERS in said(capsys)
    assert sorted(run.teachers_path.iterdir()) == trained, "trained teachers anew"
    weights = load_file(run.teachers_path / (run.inputs() or {})["teacher 0"] / "weights.safetensors")
    for found in (teacher, baseline[0].reference):
        assert all(torch.equal(value, weights[key]) for key, value in found.state_dict().items())


def test_begun_run_goes_on_with_the_teachers_of_then_and_says_what_is_read_otherwise(old, tmp_path, capsys):
    run, one = old
    shutil.copytree(run.path.parent, tmp_path / "runs")
    begun = RunFolder(tmp_path / "runs/old")
    begun.summary_path.unlink()
    summary = distill(one, run=begun, accelerator=Accelerator(cpu=True))
    words = said(capsys)
    assert IMAGES in words
    assert TEACHERS in words
    assert [row["raw"] for row in summary["rows"]] == [row["raw"] for row in run.summary()["rows"]]
    assert sorted(path.name for path in begun.teachers_path.iterdir()) == sorted(
        path.name for path in run.teachers_path.iterdir()
    )


def test_export_trains_no_teacher_that_is_missing(old, tmp_path):
    run, _ = old
    shutil.copytree(run.path.parent, tmp_path / "runs")
    shutil.rmtree(RunFolder(tmp_path / "runs/old").teachers_path)
    with pytest.raises(RunError, match=r"teacher 0 is not trained; train it with: edc teach"):
        export(tmp_path / "runs/old", tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
