"""An artifact, whole: what `edc export` writes computes what the run trained, says so truly, or is not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import edc
from conftest import TESTS, Workshop
from data_files import samples_of, write_class_folders
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

from edc.data import DataSet, MemoryImages, load_data
from edc.deploy.artifact.manifest import load_manifest, manifest_schema, verify_files
from edc.deploy.export import ExportOptions, export, sample_images
from edc.deploy.fuse import fuse_batchnorm
from edc.errors import DataError, ParityError
from edc.networks import build_network
from edc.recipe import DataSection
from edc.runs.folder import RunFolder
from edc.system.files import sha256_of

Array = NDArray[Any]
FILES = ["baseline/ensemble.onnx", "baseline/teacher_0.onnx", "baseline/teacher_1.onnx", "recipe.yaml", "student.onnx"]


@pytest.fixture(scope="module")
def data(workshop: Workshop) -> DataSet:
    return load_data(RunFolder(workshop.run).recipe().data)


@pytest.fixture(scope="module")
def images(data: DataSet) -> Array:
    """All test images, (N, C, H, W) float32 in [0, 1]."""
    return data.test.images.numpy().astype(np.float32) / 255


def onnx_logits(path: Path, images: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0].astype(np.float64)


def torch_logits(workshop: Workshop, data: DataSet, state: dict[str, Array], images: Array) -> Array:
    """Returns the float64 logits of the plain network with the weights `state`."""
    recipe = RunFolder(workshop.run).recipe()
    network = build_network(
        recipe.network, num_classes=data.num_classes, image_shape=data.image_shape, mean=data.mean, std=data.std
    )
    network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    with torch.inference_mode():
        return network.double().eval()(torch.from_numpy(images).double()).numpy()


def folded_by_hand(state: dict[str, Array]) -> dict[str, Array]:
    """Returns plain weights: each slow weight times the mean over members of outer(1 + sigma, 1 + rho)."""
    plain = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind in ("rho", "sigma"):
            continue
        if f"{layer}.rho" in state:
            r, s = 1 + state[f"{layer}.rho"].astype(np.float64), 1 + state[f"{layer}.sigma"].astype(np.float64)
            if kind == "weight":
                outer = np.einsum("mo,mi->oi", s, r) / len(r)
                value = value * outer.reshape(outer.shape + (1,) * (value.ndim - 2))  # noqa: PLW2901
            elif kind == "bias":
                value = value * s.mean(0)  # noqa: PLW2901
        plain[name] = value
    return plain


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def teacher_states(workshop: Workshop) -> list[dict[str, Array]]:
    files = sorted((workshop.folder / "runs/teachers").glob("*/weights.safetensors"))
    assert [file.parent.name.split("-")[2] for file in files] == ["seed0", "seed1"]
    return [load_file(file) for file in files]


def row_of(workshop: Workshop, subject: str) -> dict[str, Any]:
    return next(row for row in workshop.distilled.document["rows"] if row["subject"] == subject)


# What the files compute


def test_student_is_the_folded_network_over_the_calibration_temperature(workshop: Workshop, data, images):
    state = load_file(workshop.run / "students/latent_be/weights.safetensors")
    assert any(np.abs(value).max() > 1e-4 for name, value in state.items() if name.endswith(".rho"))
    manifest = load_manifest(workshop.artifact)
    assert manifest.temperature_folded
    assert manifest.calibration_temperature == row_of(workshop, "latent_be")["calibration_temperature"] != 1
    wanted = torch_logits(workshop, data, folded_by_hand(state), images) / manifest.calibration_temperature
    np.testing.assert_allclose(onnx_logits(workshop.artifact / "student.onnx", images), wanted, rtol=0, atol=2e-5)


def test_student_on_test_images_has_the_calibrated_nll_of_the_summary(workshop: Workshop, data, images):
    log_probs = log_softmax(onnx_logits(workshop.artifact / "student.onnx", images))
    labels = data.test.labels.numpy()
    row = row_of(workshop, "latent_be")
    assert -log_probs[np.arange(len(labels)), labels].mean() == pytest.approx(row["calibrated"]["nll"], abs=1e-5)
    assert (log_probs.argmax(1) == labels).mean() == pytest.approx(row["calibrated"]["acc"], abs=1e-9)


def test_baseline_is_the_teachers_and_the_mean_of_their_probabilities(workshop: Workshop, data, images):
    teachers = [torch_logits(workshop, data, state, images) for state in teacher_states(workshop)]
    for m, wanted in enumerate(teachers):
        got = onnx_logits(workshop.artifact / f"baseline/teacher_{m}.onnx", images)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    temperature = load_manifest(workshop.artifact).member_temperature
    assert temperature == row_of(workshop, "ensemble")["member_temperature"] != 1
    wanted = np.log(np.exp([log_softmax(logits / temperature) for logits in teachers]).mean(0))
    got = onnx_logits(workshop.artifact / "baseline/ensemble.onnx", images)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_every_batch_size_gives_the_same_logits(workshop: Workshop, images):
    whole = onnx_logits(workshop.artifact / "student.onnx", images)
    for size in (1, 3, 8):
        parts = [onnx_logits(workshop.artifact / "student.onnx", images[i : i + size]) for i in range(0, 12, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole[: sum(map(len, parts))], rtol=0, atol=1e-5)


def test_consumer_without_torch_reads_the_artifact(workshop: Workshop, images, tmp_path):
    pixels = np.round(images[0] * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    script = TESTS.parent / "export/classify.py"
    done = subprocess.run(
        [sys.executable, str(script), str(workshop.artifact), str(tmp_path / "image.png"), "--top", "4", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    wanted = np.exp(log_softmax(onnx_logits(workshop.artifact / "student.onnx", images[:1])[0]))
    got = {entry["label"]: entry["probability"] for entry in json.loads(done.stdout)["top"]}
    assert got == pytest.approx({f"class{k}": wanted[k] for k in range(4)}, abs=1e-6)


# What the manifest says


def test_manifest_lists_every_file_with_its_digest(workshop: Workshop):
    manifest = load_manifest(workshop.artifact)
    verify_files(workshop.artifact, manifest)
    on_disk = sorted(
        path.relative_to(workshop.artifact).as_posix() for path in workshop.artifact.rglob("*") if path.is_file()
    )
    assert on_disk == sorted([*FILES, "README.md", "manifest.json"])
    assert sorted(file.path for file in manifest.files) == FILES
    for file in manifest.files:
        assert file.sha256 == sha256_of(workshop.artifact / file.path)


def test_manifest_has_every_field_the_schema_asks_for(workshop: Workshop):
    document, schema = json.loads((workshop.artifact / "manifest.json").read_text()), manifest_schema()
    assert set(schema["required"]) <= set(document) <= set(schema["properties"])
    assert document["classes"] == ["class0", "class1", "class2", "class3"]
    assert document["run"] == "tiny"
    assert document["recipe_sha256"] == workshop.distilled.document["recipe_sha256"]
    assert document["preprocessing"]["image_size"] == [8, 8]
    assert document["preprocessing"]["color"] == "RGB"


def test_metrics_of_every_file_are_those_of_its_own_outputs(workshop: Workshop, data: DataSet, images: Array):
    files = [file for file in load_manifest(workshop.artifact).files if file.format == "onnx"]
    assert {file.role for file in files} == {"student", "teacher", "ensemble"}
    labels = data.test.labels.numpy()
    for file in files:
        log_probs = onnx_logits(workshop.artifact / file.path, images)
        log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
        assert file.metrics["acc"] == (log_probs.argmax(1) == labels).mean(), file.path
        assert file.metrics["nll"] == pytest.approx(-log_probs[np.arange(len(labels)), labels].mean(), abs=1e-5)
        assert file.metrics["parameters"] > 0


def test_figures_of_teachers_are_the_runs(workshop: Workshop):
    for file in load_manifest(workshop.artifact).files:
        if file.role == "teacher":
            row = row_of(workshop, f"teacher {file.member}")
            calibrated = {f"calibrated_{name}": value for name, value in row["calibrated"].items()}
            expected = row["raw"] | calibrated | {"parameters": row["parameters"]}
            assert {name: file.metrics[name] for name in expected} == expected


def test_parity_was_measured_at_one_odd_and_maximum_on_all_validation_images(workshop: Workshop, data):
    for file in load_manifest(workshop.artifact).files:
        if file.format != "onnx":
            continue
        assert file.max_batch == 8
        assert file.parity.batch_sizes[0] == 1
        assert file.parity.batch_sizes[-1] == 8
        assert any(size % 2 for size in file.parity.batch_sizes[1:])
        assert file.parity.num_images == len(data.validation)
        assert file.parity.max_abs_diff < 1e-4
        assert file.parity.argmax_agreement == 1


def test_images_of_a_split_in_class_order_are_drawn_from_every_class():
    labels = torch.arange(10).repeat_interleave(100)
    pixels = (labels[:, None, None, None] * 20 + torch.arange(3)[:, None, None]).to(torch.uint8).expand(-1, 3, 2, 2)
    images, drawn = sample_images(MemoryImages(pixels, labels), 100, seed=1)
    assert images.shape == (100, 3, 2, 2)
    np.testing.assert_array_equal(np.round(images[:, 0, 0, 0] * 255) // 20, drawn)
    counts = np.bincount(drawn, minlength=10)
    assert 2 <= counts.min() <= counts.max() <= 25
    np.testing.assert_array_equal(drawn, sample_images(MemoryImages(pixels, labels), 100, seed=1)[1])
    everything = sample_images(MemoryImages(pixels, labels), 5000, seed=1)[1]
    np.testing.assert_array_equal(np.sort(everything), labels)


def test_unreadable_training_image_is_replaced_in_calibration_as_it_was_in_training(tmp_path):
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        write_class_folders(tmp_path / split, samples_of(20, first_seed=first))
    (tmp_path / "train/class0/00004.jpg").write_bytes(b"no image")
    section = {"kind": "image_folder", "root": tmp_path, "image_size": 8, "augmentation": "none", "num_workers": 0}
    damaged = load_data(DataSection(**section, max_bad_fraction=0.1)).train
    images, labels = sample_images(damaged, 20, seed=0)
    assert np.bincount(labels).tolist() == [10, 10]
    whole = [damaged[i][0].numpy() / np.float32(255) for i in range(20) if i != 2]  # the third of its class
    assert all(any(np.array_equal(image, each) for each in whole) for image in images)
    with pytest.raises(DataError, match=r"class0/00004\.jpg: not a readable image"):
        sample_images(load_data(DataSection(**section)).train, 20, seed=0)


# Whole or not there


def test_second_export_has_the_same_bytes(workshop: Workshop, tmp_path):
    export(RunFolder(workshop.run), tmp_path / "again", ExportOptions(max_batch=8))
    compared = [path for path in FILES if path.endswith(".onnx")]
    assert len(compared) == 4
    for path in compared:
        assert (tmp_path / "again" / path).read_bytes() == (workshop.artifact / path).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def flip_a_weight_of(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the result of one call (from 0) of `fuse_batchnorm` differ from the truth by the sign of one weight."""
    calls = iter(range(100))

    def flipped(network: nn.Module, **options: Any) -> Any:
        fused = fuse_batchnorm(network, **options)
        if next(calls) == call:
            weights = [layer.weight for layer in fused.network.modules() if isinstance(layer, nn.Conv2d)]
            with torch.no_grad():
                largest = weights[-1].abs().argmax()
                weights[-1].view(-1)[largest] *= -1
        return fused

    monkeypatch.setattr("edc.deploy.networks.fuse_batchnorm", flipped)


def test_file_that_computes_something_else_is_not_written(workshop: Workshop, tmp_path, monkeypatch):
    flip_a_weight_of(0, monkeypatch)
    called = edc("export", "runs/tiny", "--output", tmp_path / "new/artifact", "--json", cwd=workshop.folder)
    assert called.exit_code == 1
    assert called.document["error"]["kind"] == "ParityError"
    assert "student.onnx" in called.document["error"]["message"]
    assert [path for path in tmp_path.rglob("*") if path.name != "new"] == []


def test_earlier_artifact_survives_a_failed_export(workshop: Workshop, tmp_path, monkeypatch):
    shutil.copytree(workshop.artifact, tmp_path / "artifact")
    flip_a_weight_of(1, monkeypatch)  # a teacher: the student's file is right and written by then
    with pytest.raises(ParityError, match="teacher_0"):
        export(RunFolder(workshop.run), tmp_path / "artifact", ExportOptions(max_batch=8, all_or_nothing=True))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    verify_files(tmp_path / "artifact", load_manifest(tmp_path / "artifact"))
    for path in [*FILES, "manifest.json"]:
        assert (tmp_path / "artifact" / path).read_bytes() == (workshop.artifact / path).read_bytes()


def test_verify_finds_parity_with_the_run_and_none_with_another_recipe(workshop: Workshop, tmp_path):
    called = edc("verify", "export/tiny", "--run", "runs/tiny", "--json", cwd=workshop.folder)
    assert called.exit_code == 0
    assert "4 files compute what the networks of runs/tiny compute" in called.document["checks"][-1]
    shutil.copytree(workshop.run, tmp_path / "other")
    summary = json.loads((tmp_path / "other/summary.json").read_text())
    (tmp_path / "other/summary.json").write_text(json.dumps(summary | {"recipe_sha256": "0" * 64}))
    called = edc("verify", "export/tiny", "--run", tmp_path / "other", cwd=workshop.folder)
    assert called.exit_code == 2
    assert "another recipe" in called.stderr
