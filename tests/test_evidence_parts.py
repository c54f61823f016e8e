"""A run whose students are in several folders says what the same run in one folder says."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import edc
from made_runs import STUDENTS, make_run, rewrite

from edc.errors import RunError
from edc.evidence.over_seeds import Evidence, evidence_of
from edc.evidence.parts import join_parts
from edc.runs.folder import RunFolder
from edc.runs.per_image import write_per_image


def part(whole: RunFolder, path: Path, *students: str, **changes: object) -> RunFolder:
    """Returns a copy of a run with some of its students."""
    shutil.copytree(whole.path, path)
    run = RunFolder(path)
    for student in set(STUDENTS) - set(students):
        shutil.rmtree(run.student_path(student))
    rows = [row for row in whole.summary()["rows"] if row.get("name") in (None, *students)]
    rewrite(run, rows=rows, deploy=students[0], **changes)
    return run


def figures(evidence: Evidence) -> dict[str, object]:
    """Returns everything but the names of the folders."""
    rows = {row.label: dataclasses.asdict(row) for row in evidence.rows}
    return dataclasses.asdict(evidence) | {"runs": None, "rows": rows}


@pytest.fixture
def wholes(tmp_path: Path) -> list[RunFolder]:
    return [make_run(tmp_path / f"whole{seed}", seed=seed) for seed in range(2)]


def test_parts_say_what_the_whole_says(wholes, tmp_path):
    parts = [part(run, tmp_path / f"{run.path.name}-{student}", student) for run in wholes for student in STUDENTS]
    found = evidence_of(parts, against="kd")
    assert figures(found) == figures(evidence_of(wholes, against="kd"))
    assert found.runs == tuple(" + ".join(f"whole{seed}-{student}" for student in STUDENTS) for seed in range(2))
    assert [run.summary["rows"] for run in join_parts(parts)] == [run.summary()["rows"] for run in wholes]


def test_parts_of_recipes_of_other_names_are_one_run(wholes, tmp_path):
    parts = [
        part(run, tmp_path / f"{run.path.name}-{student}", student, name=f"recipe-{student}")
        for run in wholes
        for student in STUDENTS
    ]
    assert figures(evidence_of(parts, against="kd")) == figures(evidence_of(wholes, against="kd"))
    assert {run.summary["name"] for run in join_parts(parts)} == {
        " + ".join(f"recipe-{student}" for student in STUDENTS)
    }


def test_a_student_that_was_copied_into_both_parts_counts_once(wholes, tmp_path):
    first, *others = STUDENTS
    parts = [part(wholes[0], tmp_path / "a", first, others[0]), part(wholes[0], tmp_path / "b", first, *others[1:])]
    assert figures(evidence_of(parts)) == figures(evidence_of(wholes[:1]))


def test_two_students_of_one_name_are_refused(wholes, tmp_path):
    first, second, third = STUDENTS
    parts = [part(wholes[0], tmp_path / "a", first, second), part(wholes[0], tmp_path / "b", first, third)]
    rows = parts[1].summary()["rows"]
    changed = next(row for row in rows if row.get("name") == first)
    changed["raw"] = changed["raw"] | {"nll": changed["raw"]["nll"] * 1.01}
    rewrite(parts[1], rows=rows)
    with pytest.raises(
        RunError, match=f"/b: has seed 0 and the teachers of .*/a, and another student of the name '{first}'"
    ):
        evidence_of(parts)


def test_a_part_on_other_test_images_is_refused(wholes, tmp_path):
    from edc.runs.per_image import read_per_image

    parts = [part(wholes[0], tmp_path / student, student) for student in STUDENTS]
    results, labels = read_per_image(parts[1], parts[1].summary()) or ({}, np.zeros(0))
    for file in parts[1].path.rglob("predictions.npz"):
        file.unlink()
    write_per_image(parts[1], results, labels[::-1].copy())
    with pytest.raises(RunError, match="has other test images than"):
        evidence_of(parts)


def test_of_parts_without_figures_per_image_only_the_means_are_shown(wholes, tmp_path):
    parts = [part(wholes[0], tmp_path / student, student) for student in STUDENTS]
    for file in parts[1].path.rglob("predictions.npz"):
        file.unlink()
    evidence = evidence_of(parts)
    assert evidence.over == "nothing"
    assert any(str(parts[1].path) in note and "no predictions.npz" in note for note in evidence.notes)


def test_parts_that_only_one_seed_has_are_left_out_and_named(wholes, tmp_path):
    first, *others = STUDENTS
    parts = [part(wholes[0], tmp_path / "a", first), part(wholes[0], tmp_path / "b", *others)]
    evidence = evidence_of([*parts, part(wholes[1], tmp_path / "c", first)])
    assert [row.label for row in evidence.rows] == ["teacher", "ensemble", first]
    assert set(evidence.left_out) == {"paper (members)", *others}


def test_the_command_shows_parts_as_one_table(wholes, tmp_path):
    for student in STUDENTS:
        part(wholes[0], tmp_path / "runs" / student, student, name=f"recipe-{student}")
    called = edc("show", *(str(tmp_path / "runs" / student) for student in STUDENTS), "--against", "kd", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    title = called.stdout.splitlines()[0]
    assert title.startswith(" + ".join(f"recipe-{student}" for student in STUDENTS))
    assert "seed 0" in title
    assert all(f"\n  {student} " in called.stdout for student in STUDENTS)


def test_what_differs_besides_seeds_and_students_is_said_of_parts_and_wholes_alike(wholes, tmp_path):
    """The first run is in one folder, the second in several, two of which were trained at another rate: one note."""
    first, second, _ = STUDENTS
    parts = [part(wholes[1], tmp_path / student, student) for student in STUDENTS]
    for run, students, rate in [
        (wholes[0], STUDENTS, 0.1),
        (parts[0], [first], 0.1),
        (parts[1], [second], 0.03),
        (parts[2], [STUDENTS[2]], 0.03),
    ]:
        document = {
            "name": "made",
            "seed": run.summary()["seed"],
            "data": {"kind": "digits"},
            "network": "wrn10x1",
            "training": {"epochs": 9, "learning_rate": rate},
            "teachers": {"ensemble_size": 2},
            "students": {student: {"method": "kd"} for student in students},
        }
        run.recipe_path.write_text(yaml.safe_dump(document))
    notes = [note for note in evidence_of([wholes[0], *parts]).notes if "differs" in note]
    assert notes == [
        f"{parts[1].path}, {parts[2].path}: differs from {wholes[0].path} in training.learning_rate (0.1 there, 0.03 "
        "here); the spread is not of seeds alone"
    ]


def recipe_of(run: RunFolder, *students: str, name: str = "made", temperature: float = 4.0, **fields: object) -> None:
    """Writes the recipe of a made run."""
    document = {
        "name": name,
        "seed": run.summary()["seed"],
        "data": {"kind": "digits"},
        "network": "wrn10x1",
        "teachers": {"ensemble_size": 2},
        "students": {student: {"method": "kd", "temperature": temperature} for student in students},
    }
    run.recipe_path.write_text(yaml.safe_dump(document | fields))


def test_a_student_of_another_setting_is_said_though_its_recipe_has_another_name(wholes, tmp_path):
    """Parts of recipes of other names were compared with none."""
    first, *others = STUDENTS
    parts = [part(wholes[1], tmp_path / "a", first, name="other"), part(wholes[1], tmp_path / "b", *others)]
    recipe_of(wholes[0], *STUDENTS)
    recipe_of(parts[0], first, name="other", temperature=1.0)
    recipe_of(parts[1], *others)
    notes = [note for note in evidence_of([wholes[0], *parts]).notes if "differs" in note]
    assert notes == [
        f"{parts[0].path}: differs from {wholes[0].path} in students.{first}.temperature (4.0 there, 1.0 here); the "
        "spread is not of seeds alone"
    ]


@pytest.mark.parametrize("measure", ["calibrated_nll", "accuracy", None])
def test_what_is_deployed_of_parts_is_said_to_be_chosen_only_where_it_was(wholes, tmp_path, measure):
    """`kd` has the better accuracy, `paper` the better likelihood; each part deploys its own student."""
    chosen = {"kd": {"acc": 0.8, "calibrated_nll": 0.7}, "paper": {"acc": 0.7, "calibrated_nll": 0.6}}
    parts = [part(wholes[0], tmp_path / name, name) for name in chosen]
    single = part(wholes[1], tmp_path / "single", "kd" if measure != "accuracy" else "paper")
    for run in (*parts, single):
        rows, deployed = run.summary()["rows"], run.summary()["deploy"]
        for row in rows:
            row["validation"] = chosen.get(row.get("name"), {"acc": 0.5, "calibrated_nll": 1.0}) | {"nll": 1.0}
        rewrite(run, rows=rows)
        recipe_of(run, deployed, **({"deploy": "best", "deploy_by": measure} if measure else {"deploy": deployed}))
    joined, _ = join_parts([*parts, single])
    assert joined.summary["deploy"] == ("kd" if measure == "accuracy" else "paper")
    assert joined.summary["deploy_by"] == measure
    called = edc("show", *(str(run.path) for run in (*parts, single)), cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    assert ("the best on validation images, and so deployed" in called.stdout) == (measure is not None)
