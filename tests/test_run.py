"""Run folders: claimed by one recipe, never overwritten, and clear about what they lack."""

import json
import os
from pathlib import Path

import pytest
from made_runs import make_run

from edc.errors import RunError
from edc.recipe import Recipe
from edc.runs.folder import HOW_EPOCHS_ARE_CHOSEN, RunFolder, newest_run

BASE = {
    "name": "r",
    "data": {"kind": "synthetic"},
    "network": "wrn10x1",
    "students": {"kd": {"method": "kd"}},
}


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(BASE | changes)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns content and modification time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_claimed_folder_holds_the_resolved_recipe(tmp_path):
    run = RunFolder(tmp_path / "runs/r")
    asked = recipe(training={"learning_rate": 5e-5, "epochs": 30}, teachers={"checkpoints": ["a.pt", "b.pt"]})
    run.claim(asked)
    assert run.recipe() == asked
    assert run.recipe().digest() == asked.digest()


def test_same_recipe_claims_its_folder_again_and_changes_nothing(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.claim(recipe())
    before = snapshot(tmp_path)
    run.claim(recipe())
    assert snapshot(tmp_path) == before


def test_run_goes_on_with_its_data_elsewhere_and_another_allowance_for_bad_images_and_keeps_both(tmp_path):
    run = RunFolder(tmp_path / "r")
    data = {"kind": "parquet", "image_size": 8, "root": "here"}
    run.claim(recipe(data=data))
    run.claim(recipe(data=data | {"max_bad_fraction": 0.2, "root": "there"}, training={"checkpoint_every": 3}))
    moved = data | {"max_bad_fraction": 0.2, "root": "there"}
    assert run.recipe() == recipe(data=moved, training={"checkpoint_every": 3})


INPUTS = {"the images": "aa", "teacher 0": "bb", "teacher 1": "cc"}


def test_run_whose_students_have_begun_does_not_go_on_with_other_images_or_teachers(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.claim(recipe(), INPUTS)
    (run.student_path("kd")).mkdir(parents=True)
    (run.student_path("kd") / "metrics.jsonl").write_text("{}\n")
    before = snapshot(tmp_path)
    run.claim(recipe(), INPUTS)
    moved = recipe(data={"kind": "synthetic", "root": "elsewhere"})
    with pytest.raises(RunError, match=r"r: its students began to learn from other content of teacher 1 than"):
        run.claim(moved, INPUTS | {"teacher 1": "dd"})
    with pytest.raises(RunError, match=r"other content of the images, teacher 0 than"):
        run.claim(moved, INPUTS | {"the images": "ab", "teacher 0": "bc"})
    assert snapshot(tmp_path) == before
    run.inputs_path.write_text("{")
    with pytest.raises(RunError, match=r"inputs.json: damaged .*; remove it"):
        run.claim(recipe(), INPUTS)


def test_run_that_no_student_has_begun_takes_the_images_as_they_are_now(tmp_path):
    """An image that ended the training of a teacher is repaired: another content, and nothing to mix with."""
    run = RunFolder(tmp_path / "r")
    run.claim(recipe(), INPUTS)
    run.claim(recipe(), INPUTS | {"the images": "ab"})
    assert json.loads(run.inputs_path.read_text())["the images"] == "ab"


def test_run_of_an_older_edc_goes_on_with_the_measure_that_it_began_with(tmp_path):
    """Students of one run are compared, so all of their epochs are chosen alike."""
    run = RunFolder(tmp_path / "r")
    assert run.best_by(recipe()) == "calibrated_nll"
    assert run.best_by(recipe(deploy_by="accuracy")) == "accuracy"
    run.claim(recipe(), INPUTS)
    assert run.best_by(recipe()) == "calibrated_nll", "nothing has been trained yet"
    run.student_path("kd").mkdir(parents=True)
    (run.student_path("kd") / "checkpoint.pt").write_bytes(b"")
    assert run.best_by(recipe()) == "accuracy"
    run.inputs_path.write_text(json.dumps(INPUTS | {HOW_EPOCHS_ARE_CHOSEN: "as deploy_by says"}))
    assert run.best_by(recipe()) == "calibrated_nll"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 3}, "seed (0 there, 3 asked for)"),
        ({"training": {"learning_rate": 0.2}}, "training.learning_rate (0.1 there, 0.2 asked for)"),
        (
            {"students": {"kd": {"method": "kd", "temperature": 1}}},
            "students.kd.temperature (4.0 there, 1.0 asked for)",
        ),
        ({"students": {"kd": {"method": "kd"}, "x": {}}, "deploy": "kd"}, "students.x.method (None there, 'latent_be'"),
        ({"data": {"kind": "synthetic", "root": "x", "test": 9}}, "data.test (None there, 9 asked for)"),
    ],
)
def test_folder_of_another_recipe_is_refused_and_left_alone(tmp_path, changes, difference):
    run = RunFolder(tmp_path / "r")
    run.claim(recipe())
    (run.path / "students").mkdir()
    (run.path / "students/w").write_text("weights")
    before = snapshot(tmp_path)
    with pytest.raises(RunError) as caught:
        run.claim(recipe(**changes))
    assert f"{run.path}: already holds another recipe; it differs in {difference}" in str(caught.value)
    assert caught.value.exit_code == 2
    assert snapshot(tmp_path) == before


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"is not empty and holds no recipe.yaml"):
        RunFolder(tmp_path).claim(recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "r").write_text("x")
    with pytest.raises(RunError, match="is a file, expected a folder"):
        RunFolder(tmp_path / "r").claim(recipe())


def test_empty_folder_can_be_claimed(tmp_path):
    RunFolder(tmp_path).claim(recipe())
    assert RunFolder(tmp_path).recipe() == recipe()


def test_unfinished_run_says_how_to_go_on(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.claim(recipe())
    with pytest.raises(RunError) as caught:
        run.summary()
    assert str(caught.value) == (
        f"{run.path}: the run is not finished (no summary.json); "
        f"continue with: edc distill {run.recipe_path} --run {run.path}"
    )


def test_folder_that_is_no_run_says_so(tmp_path):
    for ask in (RunFolder(tmp_path / "nothing").summary, RunFolder(tmp_path).recipe):
        with pytest.raises(RunError, match=r"not a run \(no recipe.yaml\); make one with: edc distill RECIPE"):
            ask()


def test_newest_run_is_the_one_finished_last(tmp_path):
    written = {}
    for age, name in enumerate(("newest", "old", "older")):
        run = make_run(tmp_path / name, name=name, num_images=20)
        written[name] = run.summary()
        os.utime(run.summary_path, ns=(0, (10 - age) * 10**9))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path).summary() == written["newest"]
    assert written["newest"]["name"] == "newest"


def test_no_finished_run_says_how_to_make_one(tmp_path):
    with pytest.raises(
        RunError, match=r"no finished run here; make one with: edc recipes digits && edc distill digits.yaml"
    ):
        newest_run(tmp_path / "runs")


def test_summary_is_written_whole_or_not_at_all(tmp_path):
    run = RunFolder(tmp_path)
    run.write_summary({"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        run.write_summary({"a": float("nan")})
    assert json.loads(run.summary_path.read_text()) == {"a": 1}


def test_teachers_are_kept_beside_the_runs():
    assert RunFolder(Path("runs/a")).teachers_path == RunFolder(Path("runs/b")).teachers_path == Path("runs/teachers")


def test_folder_where_a_process_was_killed_before_it_wrote_the_recipe_can_be_claimed(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".recipe.0a1b2c3d4e5f.tmp.yaml").write_text("name: ha")
    RunFolder(tmp_path).claim(recipe())
    assert RunFolder(tmp_path).recipe() == recipe()


@pytest.mark.parametrize("name", ["teachers", "Teachers"])
def test_run_does_not_live_where_its_teachers_would(tmp_path, name):
    with pytest.raises(RunError, match=rf"{name}: is where the runs beside it keep their teachers; choose another"):
        RunFolder(tmp_path / name).claim(recipe())
    assert list(tmp_path.iterdir()) == []
