"""The artifact's README.md says what the run measured, in the form that the Hugging Face hub reads."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from edc.deploy.artifact.manifest import load_manifest


@pytest.fixture(scope="module")
def made(workshop):
    artifact = workshop.folder / "export/tiny"
    summary = json.loads((workshop.folder / "runs/tiny/summary.json").read_text())
    return artifact, summary, ModelCard.load(artifact / "README.md")


def test_front_matter_has_the_figures_of_the_exported_student(made):
    _, summary, card = made
    (row,) = (row for row in summary["rows"] if row["kind"] == "student" and row["name"] == summary["deploy"])
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {name: row["calibrated"][key] for name, key in (("accuracy", "acc"), ("nll", "nll"), ("ece", "ece"))}
    assert found == pytest.approx(expected, abs=1e-6)
    assert (card.data.model_name, card.data.library_name) == ("tiny", "onnx")
    assert card.data.license is None


def test_table_compares_the_student_with_one_teacher_and_the_ensemble(made):
    _, summary, card = made
    cells = [line.strip("| ").split(" | ") for line in card.text.splitlines() if re.match(r"\| .* \| \d+ \| ", line)]
    rows = {label: [*map(float, figures)] for label, *figures in cells}
    teachers = [row for row in summary["rows"] if row["kind"] == "teacher"]
    mean_acc = 100 * sum(row["raw"]["acc"] for row in teachers) / len(teachers)
    assert rows[f"one teacher (mean of {len(teachers)})"][:2] == pytest.approx([1, mean_acc], abs=0.006)
    (ensemble,) = (row for row in summary["rows"] if row["kind"] == "ensemble")
    (student,) = (row for row in summary["rows"] if row["kind"] == "student" and row["name"] == summary["deploy"])
    for label, row in ((f"ensemble of {len(teachers)}", ensemble), ("**this network**", student)):
        forwards, acc, *others = rows[label]
        assert (forwards, acc) == pytest.approx((row["forwards"], 100 * row["raw"]["acc"]), abs=0.006)
        expected = [row["raw"]["nll"], row["calibrated"]["nll"], row["calibrated"]["ece"]]
        assert others == pytest.approx(expected, abs=6e-4)


def test_balanced_accuracy_f1_and_the_most_frequent_class_are_said_below_the_table(made):
    artifact, summary, card = made
    (row,) = (row for row in summary["rows"] if row["kind"] == "student" and row["name"] == summary["deploy"])
    pattern = (
        r"\(balanced accuracy\) is ([\d.]+) %, its mean F1 ([\d.]+) %\. Always saying `(\w+)` is right on ([\d.]+) %"
    )
    said = re.search(pattern, card.text)
    balanced, f1, name, share = said.groups()
    expected = [
        100 * row["raw"]["balanced_acc"],
        100 * row["raw"]["macro_f1"],
        100 * summary["data"]["majority"]["share"],
    ]
    assert [float(balanced), float(f1), float(share)] == pytest.approx(expected, abs=0.006)
    assert name == summary["data"]["majority"]["class"]
    assert json.loads((artifact / "manifest.json").read_text())["majority"] == summary["data"]["majority"]
    assert load_manifest(artifact).majority.name == name


def test_files_are_the_manifests_and_the_card_is_none_of_them(made):
    artifact, _, card = made
    listed = re.findall(r"^\| `([^`]+)` \|", card.text, re.MULTILINE)
    assert listed == [file.path for file in load_manifest(artifact).files]
    assert "README.md" not in listed
