"""`edc distill --seeds` and `deploy: best`, from the recipe to the artifact."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Called, edc

from edc import metrics
from edc.benchmark.specs import row_specs
from edc.data import load_data
from edc.deploy.artifact.manifest import load_manifest
from edc.networks import Classifier
from edc.recipe.loading import load_recipe
from edc.runs.folder import RunFolder
from edc.runs.networks import load_subject
from edc.runs.per_image import read_per_image
from edc.runs.rows import rows_by_subject
from edc.subject import Subject
from edc.train.evaluate import labels_of

RECIPE = """
name: few
data: {kind: synthetic, image_size: 8, num_images: 64, validation: 30, test: 40, num_workers: 0}
network: cifar_resnet8
training: {epochs: 2, warmup_epochs: 1, batch_size: 16, learning_rate: 0.03}
teachers: {ensemble_size: 2, epochs: 3}
students:
  be: {method: latent_be, perturbation: tdiv_sdiv}
  long: {method: kd, temperature: 1, epochs: {as_long_as: be}}
  kd: {method: kd}
deploy: best
"""


@dataclass(frozen=True)
class Done:
    folder: Path
    called: Called

    def run(self, seed: int) -> RunFolder:
        return RunFolder(self.folder / f"runs/few-seed{seed}")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "few.yaml").write_text(RECIPE)
    called = edc("distill", "few.yaml", "--seeds", "1,0", "--device", "cpu", "--json", cwd=folder)
    assert called.exit_code == 0, called.stderr
    return Done(folder, called)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_seed_has_a_run_and_the_teachers_are_shared(done):
    assert [summary["seed"] for summary in done.called.document] == [1, 0]
    assert done.called.document == [done.run(seed).summary() for seed in (1, 0)]
    assert done.called.stderr.count("teacher 0: ") == 1
    assert len(list((done.folder / "runs/teachers").iterdir())) == 2
    one, other = (rows_by_subject(done.run(seed).summary()) for seed in (0, 1))
    assert one[Subject("ensemble")]["raw"] == other[Subject("ensemble")]["raw"]
    assert one[Subject("student", name="kd")]["raw"] != other[Subject("student", name="kd")]["raw"]
    assert "what a student keeps of the ensemble's gain" in done.called.stderr


def test_a_seed_is_the_run_that_the_recipe_with_that_seed_describes(done):
    alone = load_recipe(done.folder / "few.yaml", overrides=["seed=1"])
    assert done.run(1).recipe().digest() == alone.digest()


def test_only_missing_seeds_are_trained(done):
    before = contents(done.folder / "runs")
    again = edc("distill", "few.yaml", "--seeds", "0,1", "--device", "cpu", "--json", cwd=done.folder)
    assert again.exit_code == 0, again.stderr
    assert "step " not in again.stderr
    assert contents(done.folder / "runs") == before
    assert [summary["seed"] for summary in again.document] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,1,0"], "--seeds: found 0 twice; name each seed once"),
        (["--seeds", "0,x"], "--seeds: found '0,x', expected whole numbers from 0 like 0,1,2"),
        (["--seeds", ""], "--seeds: found ''"),
        (["--seeds=-1"], "--seeds: found '-1'"),
        (["--seeds", "0", "--run", "here"], "--seeds and --run"),
        (["--seeds", "0", "--profile"], "--seeds and --profile"),
        (["--seeds", "0", "--set", "seed=3"], "--set seed=3: has no effect with --seeds"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(tmp_path, arguments, message):
    (tmp_path / "few.yaml").write_text(RECIPE)
    called = edc("distill", "few.yaml", *arguments, cwd=tmp_path)
    assert called.exit_code == 2
    assert message in called.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["few.yaml"]


def test_a_folder_of_another_recipe_is_refused_before_any_seed_is_trained(done):
    before = contents(done.folder / "runs")
    arguments = ["--seeds", "7,1", "--set", "students.kd.temperature=2", "--device", "cpu"]
    called = edc("distill", "few.yaml", *arguments, cwd=done.folder)
    assert called.exit_code == 2
    assert "few-seed1: already holds another recipe; it differs in students.kd.temperature" in called.stderr
    assert contents(done.folder / "runs") == before


def test_dry_run_says_how_many_runs_there_are_and_the_number_of_epochs(done):
    called = edc("distill", "few.yaml", "--seeds", "5,6", "--dry-run", "--device", "cpu", "--json", cwd=done.folder)
    assert "--seeds: 2 runs" in called.stderr
    assert called.document["recipe"]["students"]["long"]["epochs"] == 6  # 2 * (2 + 6 + 6) / (2 + 3) = 5.6
    steps = {cost["name"]: cost["num_steps"] for cost in called.document["costs"]}
    assert steps["long"] == 6 * 4
    assert not (done.folder / "runs/few-seed5").exists()


# What the summary says


def test_numbers_of_epochs_and_costs_are_in_recipe_and_summary(done):
    kept = yaml.safe_load(done.run(0).recipe_path.read_text())
    assert kept["students"]["long"]["epochs"] == 6
    rows = rows_by_subject(done.run(0).summary())
    found = {subject.name: row["training"] for subject, row in rows.items() if subject.role == "student"}
    assert found == {
        "be": {"epochs": 2, "steps": 8, "units_per_step": 14, "units": 112},
        "long": {"epochs": 6, "steps": 24, "units_per_step": 5, "units": 120},
        "kd": {"epochs": 2, "steps": 8, "units_per_step": 5, "units": 40},
    }
    last = json.loads((done.run(0).student_path("long") / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 24


def log_probs_of(done: Done, subject: Subject, split: str) -> np.ndarray:
    """Returns (M, N, K) of a network of seed 0 as another process loads it."""
    import torch

    data = load_data(done.run(0).recipe().data)
    networks = load_subject(done.run(0).path, subject)
    images = getattr(data, split).images.float() / 255
    with torch.no_grad():
        if networks.members_per_network > 1:
            repeated = images.repeat(networks.members_per_network, 1, 1, 1)
            logits = networks.networks[0](repeated).unflatten(0, (networks.members_per_network, len(images)))
        else:
            logits = torch.stack([network(images) for network in networks.networks])
    return metrics.log_probs_from_logits(logits.numpy())


SUBJECTS = [
    Subject("teacher", member=1),
    Subject("ensemble"),
    Subject("members", name="be"),
    Subject("student", name="be"),
]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.label)
def test_figures_by_image_and_on_validation_are_those_of_the_networks(done, subject):
    run = done.run(0)
    summary = run.summary()
    row, data = rows_by_subject(summary)[subject], load_data(run.recipe().data)
    by_image = read_per_image(run, summary)
    assert by_image is not None
    results, labels = by_image
    np.testing.assert_array_equal(labels, labels_of(data.test))

    def calibrated(split: str) -> tuple[np.ndarray, np.ndarray]:
        members = np.exp(log_probs_of(done, subject, split))
        mean = powered(members, row["member_temperature"]).mean(0)
        return members.mean(0), powered(mean, row["calibration_temperature"])

    def powered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
        unscaled = probabilities ** (1 / temperature)
        return unscaled / unscaled.sum(-1, keepdims=True)

    for split, true in (("test", labels), ("validation", labels_of(data.validation))):
        raw, after = calibrated(split)
        nll = -np.log(after[np.arange(len(true)), true])
        if split == "test":
            np.testing.assert_array_equal(results[subject].correct, raw.argmax(1) == true)
            np.testing.assert_allclose(results[subject].calibrated_nll, nll, rtol=1e-3, atol=1e-4)
            assert results[subject].calibrated_nll.mean() == pytest.approx(row["calibrated"]["nll"], rel=1e-5)
        else:
            assert row["validation"]["acc"] == np.mean(raw.argmax(1) == true)
            assert row["validation"]["nll"] == pytest.approx(-np.log(raw[np.arange(len(true)), true]).mean(), rel=1e-4)
            assert row["validation"]["calibrated_nll"] == pytest.approx(nll.mean(), rel=1e-3)


def best(summary: dict[str, Any]) -> str:
    students = {subject.name: row for subject, row in rows_by_subject(summary).items() if subject.role == "student"}
    return str(min(students, key=lambda name: students[name]["validation"]["calibrated_nll"]))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_student_with_the_best_validation_is_chosen_and_recorded(done, seed):
    summary = done.run(seed).summary()
    assert summary["deploy"] == best(summary)
    assert yaml.safe_load(done.run(seed).recipe_path.read_text())["deploy"] == "best"


def test_the_chosen_student_is_exported_and_benched_and_the_artifact_says_its_name(done, monkeypatch):
    """Without the baseline, which takes longest and is the same for all students."""
    monkeypatch.setattr(Classifier, "exportable", False, raising=False)
    run = done.run(0)
    chosen = run.summary()["deploy"]
    exported = edc("export", run.path, "--max-batch", "2", cwd=done.folder)
    assert exported.exit_code == 0, exported.stderr
    artifact = done.folder / "export/few-seed0"
    assert load_manifest(artifact).recipe_sha256 == run.recipe().digest()
    assert RunFolder(artifact).recipe().deploy == chosen
    row = rows_by_subject(run.summary())[Subject("student", name=chosen)]
    assert load_manifest(artifact).calibration_temperature == row["calibration_temperature"]
    verified = edc("verify", artifact, "--run", run.path, cwd=done.folder)
    assert verified.exit_code == 0, verified.stderr
    specs = row_specs(artifact, load_manifest(artifact), RunFolder(artifact).recipe(), run.path, ["onnxruntime"], None)
    assert {spec.subject for spec in specs} == {Subject("student", name=chosen)}
