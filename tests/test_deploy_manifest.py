"""The manifest: what goes in comes out, and what is not to be trusted is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from edc.deploy.artifact.manifest import (
    ArtifactFile,
    Manifest,
    Preprocessing,
    TensorInfo,
    load_manifest,
    manifest_schema,
    verify_files,
    write_manifest,
)
from edc.errors import ArtifactError
from edc.system.files import sha256_of, write_atomically

ROOT = Path(__file__).parents[1]


def example(folder: Path) -> Manifest:
    (folder / "student.onnx").write_bytes(b"weights")
    file = ArtifactFile(
        path="student.onnx",
        role="student",
        format="onnx",
        precision="fp32",
        sha256=sha256_of(folder / "student.onnx"),
        bytes=7,
        inputs=(TensorInfo(name="images", shape=("batch", 3, 32, 32), dtype="float32"),),
        outputs=(TensorInfo(name="logits", shape=("batch", 2), dtype="float32"),),
        metrics={"accuracy": 0.9},
    )
    return Manifest(
        run="demo",
        recipe_sha256="0" * 64,
        created=datetime(2026, 11, 22, tzinfo=UTC),
        versions={"edc": "0.1.0"},
        classes=("cat", "dög"),
        preprocessing=Preprocessing(
            color="RGB", image_size=(32, 32), resize="shorter_side_then_center_crop", resize_shorter_side=36
        ),
        calibration_temperature=1.25,
        temperature_folded=False,
        files=(file,),
    )


def written(folder: Path, **changes) -> dict:
    """Write the example manifest with `changes` at its top level, past the checks of `Manifest`."""
    write_manifest(folder, example(folder))
    content = json.loads((folder / "manifest.json").read_text())
    content.update(changes)
    (folder / "manifest.json").write_text(json.dumps(content))
    return content


def test_round_trip(tmp_path):
    manifest = example(tmp_path)
    write_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest
    verify_files(tmp_path, manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "student.onnx"]
    assert "2026-11-22T00:00:00Z" in (tmp_path / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"suprise": 1}, "suprise"),
        ({"classes": ["one"]}, "classes"),
        ({"classes": ["a", "b", "c"]}, "3 names, but student.onnx has 2 outputs"),
        ({"created": "2026-11-22T00:00:00+02:00"}, "not in UTC"),
        ({"calibration_temperature": 0}, "calibration_temperature"),
        ({"files": []}, "files"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(tmp_path, changes, message):
    written(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.onnx", "a/../../x.onnx", "C:\\x.onnx", "a\\b.onnx", ".", ""])
def test_path_that_leaves_the_folder_is_refused(tmp_path, path):
    content = written(tmp_path)
    content["files"][0]["path"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="not a path inside"):
        load_manifest(tmp_path)


def test_missing_and_broken_manifests_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not found"):
        load_manifest(tmp_path / "nowhere")
    for text, message in [("{", "not JSON"), ("[]", "schema_version is None"), ("\xff", "not JSON")]:
        (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ArtifactError, match=message):
            load_manifest(tmp_path)


def test_changed_files_are_found(tmp_path):
    manifest = example(tmp_path)
    (tmp_path / "student.onnx").write_bytes(b"weightz")
    with pytest.raises(ArtifactError, match="another SHA-256"):
        verify_files(tmp_path, manifest)
    (tmp_path / "student.onnx").write_bytes(b"weights!")
    with pytest.raises(ArtifactError, match="has 8 bytes, the manifest says 7"):
        verify_files(tmp_path, manifest)
    (tmp_path / "student.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"student\.onnx is missing"):
        verify_files(tmp_path, manifest)


def test_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    manifest = example(folder)
    (folder / "student.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "student.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="link out of the folder"):
        verify_files(folder, manifest)


def test_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValidationError, match="at least as large"):
        Preprocessing(color="L", image_size=(32, 40), resize="shorter_side_then_center_crop", resize_shorter_side=36)
    with pytest.raises(ValidationError, match="no meaning"):
        Preprocessing(color="L", image_size=(8, 8), resize="none", resize_shorter_side=8)


def test_shipped_schema_is_the_generated_one():
    shipped = json.loads((ROOT / "export" / "manifest.schema.json").read_text(encoding="utf-8"))
    assert shipped == json.loads(json.dumps(manifest_schema()))


def test_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), write_atomically(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
