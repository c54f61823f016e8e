"""The smallest artifact that passes `edc verify`: one ONNX file made by hand and its manifest."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tiny_onnx import CHANNELS, NUM_CLASSES, SIZE, write_tiny_onnx

from edc.deploy.artifact.manifest import MANIFEST_NAME, ArtifactFile, Manifest, Preprocessing, TensorInfo
from edc.system.files import sha256_of

__all__ = ["write_changed_onnx", "write_tiny_artifact"]


def write_tiny_artifact(folder: Path) -> dict[str, Any]:
    """Writes the smallest artifact and returns its manifest."""
    folder.mkdir(exist_ok=True)
    write_tiny_onnx(folder / "student.onnx")
    file = ArtifactFile(
        path="student.onnx",
        role="student",
        format="onnx",
        precision="fp32",
        sha256=sha256_of(folder / "student.onnx"),
        bytes=(folder / "student.onnx").stat().st_size,
        inputs=(TensorInfo(name="images", shape=("batch", CHANNELS, SIZE, SIZE), dtype="float32"),),
        outputs=(TensorInfo(name="logits", shape=("batch", NUM_CLASSES), dtype="float32"),),
        max_batch=8,
    )
    manifest = Manifest(
        run="r",
        recipe_sha256="0" * 64,
        created=datetime(2026, 11, 25, tzinfo=UTC),
        versions={"edc": "0.1.0"},
        classes=tuple("abcde"),
        preprocessing=Preprocessing(color="RGB", image_size=(SIZE, SIZE), resize="exact"),
        calibration_temperature=1.0,
        temperature_folded=True,
        files=(file,),
    )
    document: dict[str, Any] = manifest.model_dump(mode="json")
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    return document


def write_changed_onnx(folder: Path, content: bytes, manifest: dict[str, Any]) -> None:
    """Replaces student.onnx, and in the manifest its size and digest."""
    path = folder / "student.onnx"
    path.write_bytes(content)
    listed = {**manifest["files"][0], "sha256": sha256_of(path), "bytes": len(content)}
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "files": [listed]}))
