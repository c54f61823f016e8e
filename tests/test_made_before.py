"""Runs, checkpoints and artifacts that edc 0.1.0 made before its modules moved into rooms still load and go on.

tests/made_before/ was written by the commands that each test names, on one thread of an AVX-512 CPU, torch 2.14.1.
"""

import json
import shutil
from pathlib import Path

import pytest
from command_line import edc

from edc.benchmark.page import page_from_bench
from edc.benchmark.regression.compare import compare
from edc.benchmark.regression.saved_bench import load_saved

MADE_BEFORE = Path(__file__).parent / "made_before"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(MADE_BEFORE, tmp_path / "made")
    return tmp_path / "made"


def test_a_finished_run_is_shown_and_found_finished(copied: Path) -> None:
    """Made by: edc distill recipe.yaml --device cpu."""
    run = copied / "runs/made_before"
    before = json.loads((run / "summary.json").read_text())
    assert edc("show", run, "--json", cwd=copied).document["rows"] == before["rows"]
    again = edc("distill", run / "recipe.yaml", "--run", run, "--device", "cpu", "--json", cwd=copied)
    assert again.document == before
    assert "step " not in again.stderr  # nothing was trained again


def test_a_run_without_its_summary_evaluates_the_same_weights_to_the_same_figures(copied: Path) -> None:
    run = copied / "runs/made_before"
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    again = edc("distill", run / "recipe.yaml", "--run", run, "--device", "cpu", "--json", cwd=copied).document
    assert len(again["rows"]) == len(before["rows"]) == 6
    for row, old in zip(again["rows"], before["rows"], strict=True):
        assert row["raw"]["acc"] == old["raw"]["acc"]
        assert row["raw"]["nll"] == pytest.approx(old["raw"]["nll"], rel=1e-5)
        if row["forwards"] == 1:
            assert row["calibrated"]["nll"] == pytest.approx(old["calibrated"]["nll"], rel=1e-4)
        else:  # of several members, the better of two ways to calibrate them is taken now, on validation images
            was_at_bound = old["calibration_temperature"] > 19.99  # of the search then
            was_helped = row["member_temperature"] != 1 or (was_at_bound and row["calibration_temperature"] > 20)
            assert was_helped or row["calibrated"]["nll"] == pytest.approx(old["calibrated"]["nll"], rel=1e-4)
        assert row["parameters"] == old["parameters"]


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_student_goes_on_from_its_checkpoint_as_it_would_have_then(copied: Path) -> None:
    """Stopped by SIGTERM after its first epoch; the lines to the end are what the edc of then wrote when it went on."""
    run = copied / "runs/stopped_before"
    recipe = run / "recipe.yaml"
    assert edc("distill", recipe, "--run", run, "--device", "cpu", "--threads", "1", cwd=copied).exit_code == 0
    lines = (run / "students/latent_be/metrics.jsonl").read_text().splitlines()
    then = (copied / "stopped_before_to_its_end.jsonl").read_text().splitlines()
    assert len(lines) == len(then) == 60
    for now, before in [(json.loads(a), json.loads(b)) for a, b in zip(lines, then, strict=True)][:3]:
        assert now["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert now["validation_acc"] == before["validation_acc"]


def test_an_old_artifact_is_verified_against_its_run(copied: Path) -> None:
    """Made by: edc export runs/made_before --precision fp32."""
    artifact, run = copied / "export/made_before", copied / "runs/made_before"
    done = edc("verify", artifact, "--run", run, "--json", cwd=copied)
    assert done.exit_code == 0, done.stderr


def test_an_old_bench_is_read_by_the_page_and_by_a_comparison() -> None:
    """Made by: edc bench export/made_before --quick --backends torch,onnxruntime."""
    old = MADE_BEFORE / "export/made_before/bench.json"
    document = load_saved(old)
    assert compare(document, document, fail_on=0.05).worse == ()
    assert all(row["subject"] in page_from_bench(document) for row in document["rows"])
