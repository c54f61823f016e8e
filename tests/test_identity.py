"""The whole job on students that are called as other things are: names may be whatever a recipe admits."""

import json
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from accelerate import Accelerator
from command_line import Called, edc

from edc import metrics
from edc.benchmark.measure.server import ServerPlan
from edc.benchmark.options import BenchPlan
from edc.benchmark.page.document import Bench
from edc.benchmark.regression.compare import compare
from edc.benchmark.workers.timing import TimingPlan
from edc.data import load_data
from edc.networks import WideResNet
from edc.runs.folder import RunFolder
from edc.runs.student import deployable, load_student

pytestmark = pytest.mark.slow  # eight students, an export of each form and a bench

NAMES = ("kd", "teacher", "members", "torch", "int8", "ensemble_kd", "teacher-0", "ensemble")
LABELS = {
    "teacher": "student teacher",
    "members": "student members",
    "ensemble": "student ensemble",
}
RECIPE = """
name: names
data: {kind: synthetic, image_size: 8, num_images: 48, test: 40}
network: wrn10x1
training: {epochs: 1, warmup_epochs: 0, batch_size: 16}
teachers: {ensemble_size: 2}
students:
  kd: {method: kd, temperature: 1}
  teacher: {method: kd, temperature: 2}
  members: {method: latent_be, temperature: 3}
  torch: {method: kd, temperature: 5}
  int8: {method: kd, temperature: 6, epochs: 2}
  ensemble_kd: {method: kd, temperature: 7, epochs: 3}
  teacher-0: {method: kd, temperature: 8, epochs: 2}
  ensemble: {method: kd, temperature: 9, epochs: 4}
"""
PLAN = TimingPlan(seconds_per_row=0.02, num_rounds=8, min_rounds=8, window_ms=0.5, max_windows=3, settle_ms=0.0)
SERVER = ServerPlan(loads=(0.2,), num_rounds=1, seconds_per_point=0.01, least_requests=10, most_seconds=0.05)


@dataclass(frozen=True)
class Done:
    """A folder in which distill, export and bench have been called."""

    folder: Path
    distilled: Called
    benched: Called

    @property
    def run(self) -> Path:
        return self.folder / "runs/names"

    @cache  # noqa: B019 - there is one
    def torch_logits(self, name: str) -> tuple[np.ndarray[Any, Any], ...]:
        """Returns what the trained student says of test and of validation images, (N, K) each, in float64."""
        folder = RunFolder(self.run)
        recipe = folder.recipe()
        data = load_data(recipe.data)
        cpu = Accelerator(cpu=True)
        network = deployable(load_student(recipe, name, data, run=folder), recipe, name, data, accelerator=cpu).double()
        with torch.inference_mode():
            return tuple(network(split.images.double() / 255).numpy() for split in (data.test, data.validation))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("names")
    (folder / "names.yaml").write_text(RECIPE)
    distilled = edc("distill", "names.yaml", "--device", "cpu", "--json", cwd=folder)
    assert distilled.exit_code == 0, distilled.stderr
    exported = edc("export", "--max-batch", "2", "--precision", "fp32", cwd=folder)
    assert exported.exit_code == 0, exported.stderr
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edc.benchmark.options.QUICK", BenchPlan(PLAN, PLAN, 8, SERVER, 2000))
        options = ("--quick", "--batch", "1", "--threads", "1", "--backends", "torch,onnxruntime")
        benched = edc("bench", "export/names", *options, "--no-robustness", "--json", cwd=folder)
    assert benched.exit_code == 0, benched.stderr
    return Done(folder, distilled, benched)


def deployed_instead(done: Done, name: str, folder: Path) -> Path:
    """Returns an artifact of another student of the run, without its baseline, which is the same and takes longest."""
    shutil.copytree(done.folder / "runs", folder / "runs")
    recipe = folder / "runs/names/recipe.yaml"
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "deploy": name}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(WideResNet, "exportable", False, raising=False)
        exported = edc("export", "--max-batch", "2", "--precision", "fp32", cwd=folder)
    assert exported.exit_code == 0, exported.stderr
    return folder / "export/names"


@pytest.mark.parametrize("name", ["ensemble", "ensemble_kd"])
def test_the_exported_student_is_the_one_of_that_name_over_its_own_temperature(done: Done, name: str, tmp_path: Path):
    artifact = done.folder / "export/names" if name == "ensemble" else deployed_instead(done, name, tmp_path)
    test, validation = done.torch_logits(name)
    data = load_data(RunFolder(done.run).recipe().data)
    temperature = metrics.evaluate(
        metrics.log_probs_from_logits(test),
        data.test.labels.numpy(),
        validation_log_probs=metrics.log_probs_from_logits(validation),
        validation_labels=data.validation.labels.numpy(),
    ).calibration_temperature
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["calibration_temperature"] == pytest.approx(temperature, rel=1e-2)
    session = onnxruntime.InferenceSession(artifact / "student.onnx", providers=["CPUExecutionProvider"])
    images = (data.test.images.float() / 255).numpy()
    np.testing.assert_allclose(
        session.run(None, {"images": images})[0], test / manifest["calibration_temperature"], rtol=0, atol=1e-4
    )


def test_students_differ_so_that_one_taken_for_another_would_be_noticed(done: Done):
    logits = {name: done.torch_logits(name)[0] for name in NAMES}
    assert min(np.abs(logits[a] - logits[b]).max() for a in NAMES for b in NAMES if a != b) > 1e-3
    temperatures = [row["calibration_temperature"] for row in done.distilled.document["rows"]]
    assert len({round(temperature, 6) for temperature in temperatures}) == len(temperatures)


def test_rows_of_the_run_say_whose_they_are(done: Done):
    rows = done.distilled.document["rows"]
    found = [(row["kind"], row.get("name"), row.get("member")) for row in rows]
    wanted: list[tuple[str, str | None, int | None]] = [("teacher", None, 0), ("teacher", None, 1)]
    wanted.append(("ensemble", None, None))
    for name in NAMES:
        wanted += [("members", name, None)] if name == "members" else []
        wanted.append(("student", name, None))
    assert found == wanted
    labels = [row["subject"] for row in rows]
    assert len(set(labels)) == len(labels)
    for row in rows:
        if row["kind"] == "student":
            labels_of = load_data(RunFolder(done.run).recipe().data).test.labels.numpy()
            log_probs = metrics.log_probs_from_logits(done.torch_logits(row["name"])[0])
            assert row["raw"]["nll"] == pytest.approx(metrics.nll(log_probs, labels_of), rel=1e-4)
    shown = edc("show", "runs/names", cwd=done.folder).stdout
    names = [re.split(r"\s{2,}", line.strip())[0] for line in shown.splitlines()]
    for name in NAMES:
        assert names.count(LABELS.get(name, name)) == 1
    assert names.count("student members (members)") == names.count("ensemble of 2") == 1


def test_an_artifact_is_verified_against_its_run(done: Done):
    files = json.loads((done.folder / "export/names/manifest.json").read_text())["files"]
    found = {(file["role"], file["member"]) for file in files if file["format"] == "onnx"}
    assert found == {("student", None), ("teacher", 0), ("teacher", 1), ("ensemble", None)}
    checked = edc("verify", "export/names", "--run", "runs/names", cwd=done.folder)
    assert checked.exit_code == 0, checked.stderr


def test_every_student_is_benched_against_the_ensemble_and_never_against_itself(done: Done):
    document = done.benched.document
    rows = {f"{row['subject']} on {row['backend']}": row for row in document["rows"]}
    assert len(rows) == len(document["rows"]) == 2 + len(NAMES) + 1 + 4
    assert not any(row["reason_not_run"] for row in rows.values())
    summary = {(row["kind"], row.get("name"), row.get("member")): row for row in done.distilled.document["rows"]}
    for key, row in rows.items():
        who = row["identity"]
        known = summary[who["role"], who["name"], who["member"]]
        is_tempered = who["role"] == "student" and row["backend"] == "onnxruntime"
        raw, calibrated = known["calibrated" if is_tempered else "raw"]["nll"], known["calibrated"]["nll"]
        if known["member_temperature"] == 1:  # else the row averages members over it, and the summary's raw does not
            assert row["quality"]["raw"]["nll"] == pytest.approx(raw, abs=1e-4), key
        assert row["quality"]["calibrated"]["nll"] == pytest.approx(calibrated, abs=1e-4), key
        assert row["parameters"] == known["parameters"]
        against = {each["basis"]: each["baseline"] for each in row["against"]}
        assert key not in against.values()
        if who["role"] != "ensemble":
            assert rows[against["ensemble"]]["identity"]["role"] == "ensemble"
            assert rows[against["ensemble"]]["backend"] == row["backend"]
            assert against["ensemble in torch" if row["backend"] != "torch" else "ensemble"] == (
                "ensemble, in turn on torch"
            )
        if who["role"] in ("student", "members"):
            assert against["teacher"] == f"teacher 0 on {row['backend']}"
    for form in ("in turn", "merged"):  # the ensemble is itself, not a student of that name
        assert rows[f"ensemble, {form} on onnxruntime"]["dee"] is None
    assert document["verdict"]["row"].startswith("student ensemble on ")
    assert rows[document["verdict"]["baseline"]]["identity"]["role"] == "ensemble"


def test_the_table_and_the_page_tell_them_apart(done: Done):
    document = done.benched.document
    table = [re.split(r"\s{2,}", line.strip()) for line in done.benched.stderr.splitlines()]
    pairs = [" ".join(cells[:1]) for cells in table]
    bench = Bench(document)
    for row in document["rows"]:
        assert any(cell.startswith(row["subject"]) for cell in pairs), row["subject"]
    students = {row.identity.name for row in bench.rows if bench.is_student(row)}
    assert students == {"ensemble"}
    series = {row["subject"]: bench.series(f"{row['subject']} on {row['backend']}") for row in document["rows"]}
    assert series["student ensemble"].colour == 0
    assert {label for label, each in series.items() if each.colour == 1} == {"ensemble, in turn", "ensemble, merged"}
    assert {label for label, each in series.items() if each.colour == 2} == {"teacher 0"}
    curves = {label: who["role"] for label, who in document["curve_identities"].items()}
    assert curves == {"teacher 0": "teacher", "teacher 1": "teacher"} | {LABELS.get(n, n): "student" for n in NAMES}


def test_a_bench_is_compared_with_itself_row_by_row(done: Done):
    changes = compare(done.benched.document, done.benched.document).changes
    times = [change for change in changes if change.figure == "p50_ms"]
    assert len({change.key for change in times}) == len(times) == len(done.benched.document["rows"])
    assert {change.verdict for change in changes} == {"same"}
