"""A file that fails its gate is not written, the others are; and nothing but whole ensembles is compared with."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import edc
from conftest import Workshop
from torch import nn

from edc.benchmark.specs import row_specs
from edc.data import load_data
from edc.deploy.artifact.folder import artifact_lock
from edc.deploy.artifact.manifest import load_manifest, verify_files
from edc.deploy.fuse import fuse_batchnorm
from edc.deploy.gates import Gates
from edc.deploy.networks import references_of
from edc.deploy.onnx_files import Samples, write_precisions
from edc.errors import DiskError, ParityError
from edc.runs.folder import RunFolder
from edc.subject import Subject


def flip_a_weight_of_teacher_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes teacher 0, and so the merged ensemble, compute something else by the sign of one weight."""
    calls = iter(range(100))

    def flipped(network: nn.Module, **options: Any) -> Any:
        fused = fuse_batchnorm(network, **options)
        if next(calls) == 1:
            weights = [layer.weight for layer in fused.network.modules() if isinstance(layer, nn.Conv2d)]
            with torch.no_grad():
                weights[-1].view(-1)[weights[-1].abs().argmax()] *= -1
        return fused

    monkeypatch.setattr("edc.deploy.networks.fuse_batchnorm", flipped)


def labels_of_rows(artifact: Path, workshop: Workshop) -> list[str]:
    recipe = RunFolder(workshop.run).recipe()
    specs = row_specs(artifact, load_manifest(artifact), recipe, workshop.run, ["onnxruntime"], None)
    return [spec.subject.label for spec in specs]


def test_files_that_fail_are_left_out_and_named_and_the_others_are_there(workshop: Workshop, tmp_path, monkeypatch):
    flip_a_weight_of_teacher_0(monkeypatch)
    target = tmp_path / "artifact"
    called = edc("export", "runs/tiny", "--output", target, "--max-batch", "8", "--json", cwd=workshop.folder)
    assert called.exit_code == 1
    manifest = load_manifest(target)
    assert called.document["manifest"] == manifest.model_dump(mode="json")
    assert {file.path for file in manifest.files} == {"student.onnx", "baseline/teacher_1.onnx", "recipe.yaml"}
    assert [(file.path, file.role, file.member) for file in manifest.missing] == [
        ("baseline/teacher_0.onnx", "teacher", 0),
        ("baseline/ensemble.onnx", "ensemble", None),
    ]
    verify_files(target, manifest)
    for path in ("student.onnx", "baseline/teacher_1.onnx"):
        assert (target / path).read_bytes() == (workshop.artifact / path).read_bytes()
    assert sorted(path.name for path in (target / "baseline").iterdir()) == ["teacher_1.onnx"]
    for file in manifest.missing:
        assert f"not written: {file.path}: {file.reason}" in called.stderr
        assert "largest difference" in file.reason
        assert file.path not in file.reason
        assert str(tmp_path) not in file.reason
    assert "--no-baseline" in called.stderr
    # Neither teacher 1 under the name of teacher 0, nor an ensemble of one.
    assert labels_of_rows(target, workshop) == ["latent_be"]
    assert labels_of_rows(workshop.artifact, workshop) == [
        *("teacher 0", "ensemble, in turn", "ensemble, merged", "latent_be")
    ]


def test_int8_over_its_budget_costs_only_itself_and_names_the_figure_and_the_flag(tmp_path):
    torch.manual_seed(0)
    inside = [nn.Conv2d(8, 8, 1), nn.ReLU()] * 3
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *inside, nn.Flatten(), nn.Linear(288, 3)).eval()
    images, labels = np.random.default_rng(0).random((32, 3, 8, 8), np.float32), np.arange(32) % 3
    samples = Samples(images, images, images, labels, images, labels)
    options: dict[str, Any] = {
        "precisions": ("fp16", "int8-cpu"),
        "samples": samples,
        "class_names": ("a", "b", "c"),
        "metadata": {},
        "max_batch": 8,
        "max_drop": -2.0,
        "known_metrics": {},
        "computes_known": True,
    }
    student = Subject("student", name="kd")
    gates = Gates(tmp_path, all_or_nothing=False)
    judged = partial(gates.judged, student)
    written = write_precisions(network, network, tmp_path / "student", judged=judged, **options)
    assert [file.path.name for file in written] == ["student.onnx", "student.fp16.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.fp16.onnx", "student.onnx"]
    (missing,) = gates.missing
    assert (missing.path, missing.role, missing.precision) == ("student.int8-cpu.onnx", "student", "int8-cpu")
    assert "more than the -200 points of accuracy allowed (minmax " in missing.reason
    assert "--max-drop" in missing.reason
    with (
        pytest.raises(ParityError, match="int8-cpu loses more"),
        Gates(tmp_path, True).judged(student, tmp_path / "x.onnx", "int8-cpu"),
    ):
        raise ParityError("int8-cpu loses more")


def test_full_disk_is_no_failed_gate(tmp_path):
    gates = Gates(tmp_path, all_or_nothing=False)
    with pytest.raises(DiskError), gates.judged(Subject("teacher", member=0), tmp_path / "t.onnx", "fp32"):
        raise DiskError("the disk is full")
    assert gates.missing == []


def test_an_ensemble_too_large_for_one_file_is_kept_as_its_teachers(workshop: Workshop, monkeypatch):
    sizes = {path.name: path.stat().st_size for path in (workshop.artifact / "baseline").iterdir()}
    limit = 2 * sizes["teacher_0.onnx"] - 20_000
    assert sizes["teacher_0.onnx"] < limit < sizes["ensemble.onnx"]
    run = RunFolder(workshop.run)
    recipe = run.recipe()
    found = [set(references_of(run, recipe, load_data(recipe.data), fold_temperature=True, baseline=True))]
    monkeypatch.setattr("edc.deploy.onnx.from_network._MAX_BYTES", limit)
    found.append(set(references_of(run, recipe, load_data(recipe.data), fold_temperature=True, baseline=True)))
    assert found[1] == {("student", None), ("teacher", 0), ("teacher", 1)} == found[0] - {("ensemble", None)}


def test_artifact_without_a_baseline_keeps_what_a_dee_is_read_off(workshop: Workshop, tmp_path):
    called = edc("export", "runs/tiny", "--no-baseline", "--output", tmp_path / "alone", cwd=workshop.folder)
    assert called.exit_code == 0, called.stderr
    manifest = load_manifest(tmp_path / "alone")
    assert {file.path for file in manifest.files} == {"student.onnx", "recipe.yaml"}
    assert labels_of_rows(tmp_path / "alone", workshop) == ["latent_be"]
    summary = json.loads((workshop.run / "summary.json").read_text())
    assert list(manifest.ensemble_calibrated_nll_by_size) == summary["ensemble_calibrated_nll_by_size"]


def test_artifact_at_which_another_process_works_is_left_alone(workshop: Workshop, tmp_path):
    shutil.copytree(workshop.artifact, tmp_path / "artifact")
    before = {path: path.read_bytes() for path in (tmp_path / "artifact").rglob("*") if path.is_file()}
    with artifact_lock(tmp_path / "artifact"):
        for command in (["export", "runs/tiny", "--output"], ["bench", "--quick"]):
            called = edc(*command, tmp_path / "artifact", cwd=workshop.folder)
            assert called.exit_code == 2
            assert "artifact: another process is exporting or benching this artifact" in called.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "artifact").rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
