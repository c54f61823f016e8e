"""Any student of a run as an artifact, and which teacher stands for one teacher in a bench."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import edc
from conftest import Workshop

from edc.benchmark.specs import row_specs
from edc.benchmark.teachers import Teachers, teachers_of
from edc.cli.tables.run_notes import (
    beaten_by_a_teacher,
    below_their_members,
    below_their_start,
    hardly_calibrated,
)
from edc.deploy.artifact.manifest import Manifest, load_manifest
from edc.runs.folder import RunFolder
from edc.runs.rows import best_teacher, rows_by_subject
from edc.subject import Subject


@pytest.fixture(scope="module")
def of_kd(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny-kd"
    options = ("--student", "kd", "--precision", "int8-cpu", "--max-batch", "4", "--no-baseline", "--output", folder)
    called = edc("export", "runs/tiny", *options, "--json", cwd=workshop.folder)
    assert called.exit_code == 0, called.stderr
    return folder


def test_another_student_than_the_deployed_one_is_exported_alone_and_verified(workshop, of_kd):
    manifest, rows = load_manifest(of_kd), rows_by_subject(workshop.distilled.document)
    assert RunFolder(workshop.run).recipe().deploy == "latent_be"
    assert RunFolder(of_kd).recipe().deploy == "kd"
    assert {file.precision for file in manifest.files if file.format == "onnx"} == {"fp32", "int8-cpu"}
    student = next(file for file in manifest.files if (file.role, file.precision) == ("student", "fp32"))
    row = rows[Subject("student", name="kd")]
    assert student.metrics["acc"] == row["raw"]["acc"]
    assert student.metrics["macro_f1"] == row["raw"]["macro_f1"]
    assert student.metrics["validation_acc"] == row["validation"]["acc"]
    assert manifest.calibration_temperature == row["calibration_temperature"]
    verified = edc("verify", of_kd, "--run", "runs/tiny", "--json", cwd=workshop.folder)
    assert verified.exit_code == 0, verified.stderr
    said = "parity: 1 files compute what the networks of runs/tiny compute; 1 in int8 or of engines not compared"
    assert said in verified.document["checks"]


def test_a_student_that_the_run_has_not_is_refused(workshop, tmp_path):
    called = edc("export", "runs/tiny", "--student", "paper", "--output", tmp_path / "a", "--json", cwd=workshop.folder)
    assert called.exit_code == 2
    assert called.document["error"]["message"] == "runs/tiny: has no student 'paper'; expected one of kd, latent_be"
    assert list(tmp_path.iterdir()) == []


def test_summary_has_the_confusions_of_every_network(workshop):
    summary = workshop.distilled.document
    num_classes = len(summary["data"]["classes"])
    for row in summary["rows"]:
        found = row["by_class"]
        matrix = np.array(found["confusion"])
        assert matrix.shape == (num_classes, num_classes)
        assert matrix.sum() == summary["data"]["test"]
        assert matrix.trace() / matrix.sum() == pytest.approx(row["raw"]["acc"])
        assert found["images"] == matrix.sum(1).tolist()
        assert found["predicted"] == matrix.sum(0).tolist()
        present = matrix.sum(1) > 0
        recall = matrix.diagonal()[present] / matrix.sum(1)[present]
        assert row["raw"]["balanced_acc"] == pytest.approx(recall.mean())
    images = np.array(summary["rows"][0]["by_class"]["images"])
    assert summary["data"]["majority"]["share"] == images.max() / images.sum()


def with_validation(manifest: Manifest, *accuracies: float | None) -> Manifest:
    files, given = [], iter(accuracies)
    for file in manifest.files:
        if file.role == "teacher":
            acc = next(given)
            metrics = {name: value for name, value in file.metrics.items() if name != "validation_acc"}
            file = file.model_copy(update={"metrics": metrics | ({} if acc is None else {"validation_acc": acc})})  # noqa: PLW2901
        files.append(file)
    return manifest.model_copy(update={"files": tuple(files)})


def test_one_teacher_is_the_best_on_validation_and_the_mean_of_all_is_said(workshop):
    manifest = load_manifest(workshop.artifact)
    found = teachers_of(with_validation(manifest, 0.5, 0.75), Path("nowhere"))
    rows = rows_by_subject(workshop.distilled.document)
    accuracies = [100 * rows[Subject("teacher", member=m)]["raw"]["acc"] for m in (0, 1)]
    assert (found.best, found.is_chosen) == (1, True)
    mean, spread = np.mean(accuracies), np.std(accuracies, ddof=1)
    said = f"teacher 1, the best of 2 on validation; their mean in the run is {mean:.2f} ±{spread:.2f} %"
    assert found.words_where(drawn=False) == said
    assert "in the run, on all its test images, is" in found.words_where(drawn=True)
    recipe = RunFolder(workshop.artifact).recipe()
    specs = row_specs(workshop.artifact, manifest, recipe, workshop.run, ["onnxruntime", "torch"], None, teacher=1)
    assert [spec.subject.label for spec in specs if spec.subject.role == "teacher"] == ["teacher 1"] * 2


def test_an_older_artifact_asks_its_run_who_is_best_and_without_it_takes_the_first(workshop):
    old = with_validation(load_manifest(workshop.artifact), None, None)
    best = best_teacher(rows_by_subject(workshop.distilled.document))
    assert teachers_of(old, workshop.run).best == best.member
    assert teachers_of(old, Path("nowhere")) == Teachers()
    assert Teachers().words_where(drawn=True) == ""


def test_a_teacher_above_its_ensemble_is_said_below_the_table(workshop):
    summary = json.loads((workshop.run / "summary.json").read_text())
    for row in summary["rows"]:
        row["validation"]["acc"] = {"teacher 1": 0.75, "ensemble": 0.7}.get(row["subject"], 0.5)
    expected = "teacher 1: right on 75.00 % of the validation images, its ensemble on 70.00 %"
    assert beaten_by_a_teacher([summary]) == [expected]
    summary["rows"][1]["validation"]["acc"] = 0.7
    assert beaten_by_a_teacher([summary]) == []


def test_a_student_below_the_weights_it_started_from_is_said_below_the_table(workshop):
    summary = json.loads((workshop.run / "summary.json").read_text())
    assert below_their_start([summary]) == []
    for row in summary["rows"]:
        row["validation"]["acc"] = {"teacher 1": 0.75, "kd": 0.5}.get(row["subject"], 0.75)
        if row["kind"] == "student":
            row["started_from_teacher"] = 1
    (line,) = below_their_start([summary])
    assert line.startswith("kd: right on 50.00 % of the validation images, teacher 1, from whose weights it started, ")
    assert "on 75.00 %: more epochs, or a lower training.learning_rate" in line
    for row in summary["rows"]:
        row["started_from_teacher"] = 9  # damaged
    assert below_their_start([summary]) == []


def test_networks_with_hardly_a_wrong_validation_answer_are_said_to_be_hardly_calibrated(workshop):
    summary = json.loads((workshop.run / "summary.json").read_text())
    summary["data"]["validation"] = 50
    for row in summary["rows"]:
        row["validation"]["acc"] = {"teacher 1": 1.0, "kd": 0.92, "ensemble": 0.98}.get(row["subject"], 0.9)
        row["calibration_temperature"] = row["member_temperature"] = 1.0
    assert hardly_calibrated([summary]) == [
        "teacher 1: right on all 50 validation images, which say nothing of how sure it may be: not calibrated",
        "ensemble, kd: wrong on fewer than 5 of 50 validation images: calibrated by these alone",
    ]
    for row in summary["rows"]:
        row["calibration_temperature"] = 0.7  # an ensemble that is right on all may have one, before the average
    assert hardly_calibrated([summary]) == [
        "teacher 1, ensemble, kd: wrong on fewer than 5 of 50 validation images: calibrated by these alone",
    ]
    for row in summary["rows"]:
        row["validation"]["acc"] = 0.9
    assert hardly_calibrated([summary]) == []


def test_a_fold_far_below_its_members_is_said_below_the_table(workshop):
    summary = json.loads((workshop.run / "summary.json").read_text())
    name = next(row["subject"] for row in summary["rows"] if row["kind"] == "members").removesuffix(" (members)")
    for row in summary["rows"]:
        row["validation"]["acc"] = {f"{name} (members)": 0.7, name: 0.64}.get(row["subject"], 0.1)
    assert below_their_members([summary]) == []
    for row in summary["rows"]:
        row["validation"]["acc"] = {f"{name} (members)": 0.7, name: 0.104}.get(row["subject"], 0.1)
    (line,) = below_their_members([summary])
    assert line.startswith(f"{name}: right on 10.40 % of the validation images, its members before the fold on 70.00 %")
    assert "a lower training.factor_rate (default 1; then 0.25) may keep them together" in line
    summary["data"]["validation"] = 2  # then it may be chance
    assert below_their_members([summary]) == []
