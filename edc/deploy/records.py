"""The manifest's entry of each file, the recipe beside them, and the Triton repository made from them."""

import shutil
from pathlib import Path
from typing import Any, Literal

from edc.data import DataSet
from edc.deploy.artifact.manifest import ArtifactFile, Preprocessing, TensorInfo
from edc.deploy.artifact.triton import Instances, triton_config, write_triton_model
from edc.deploy.engine.description import sidecar_path
from edc.deploy.engine_files import Built
from edc.deploy.onnx_files import Written
from edc.runs.folder import RunFolder
from edc.subject import Subject
from edc.system.files import sha256_of

__all__ = ["engine_records", "onnx_record", "other_record", "write_recipe", "write_triton_repository"]

_TRITON_INSTANCES: dict[str, Instances] = {"fp32": "auto", "fp16": "gpu", "int8-cpu": "cpu"}
"""Of ONNX files, by precision; Triton's ONNX Runtime has no use for the others."""


def _tensors(data: DataSet, how: Preprocessing) -> dict[str, Any]:
    channels, height, width = data.image_shape
    shape = (height, width, channels) if how.layout == "NHWC" else (channels, height, width)
    return {
        "inputs": (TensorInfo(name="images", shape=("batch", *shape), dtype=how.dtype),),
        "outputs": (TensorInfo(name="logits", shape=("batch", data.num_classes), dtype="float32"),),
    }


def onnx_record(
    written: Written, folder: Path, subject: Subject, data: DataSet, how: Preprocessing, max_batch: int
) -> ArtifactFile:
    """Returns the manifest's entry of an ONNX file."""
    return ArtifactFile(
        path=written.path.relative_to(folder).as_posix(),
        role=subject.role,
        member=subject.member,
        format="onnx",
        precision=written.precision,
        sha256=sha256_of(written.path),
        bytes=written.path.stat().st_size,
        **_tensors(data, how),
        max_batch=max_batch,
        parity=written.parity,
        metrics=written.metrics,
        notes=written.notes,
    )


def engine_records(built: Built, folder: Path, data: DataSet, how: Preprocessing) -> list[ArtifactFile]:
    """Returns the manifest's entries of an engine and of its description."""
    engine = ArtifactFile(
        path=built.path.relative_to(folder).as_posix(),
        role=built.role,
        format=built.engine.library,
        precision="tf32" if built.precision == "fp32" and built.engine.tf32 else built.precision,
        sha256=built.engine.sha256,
        bytes=built.engine.bytes,
        **_tensors(data, how),
        max_batch=built.engine.max_batch,
        parity=built.parity,
        notes=built.notes,
    )
    return [engine, other_record(sidecar_path(built.path), folder, "engine description")]


def other_record(path: Path, folder: Path, role: str) -> ArtifactFile:
    """Returns the manifest's entry of any other file."""
    return ArtifactFile(
        path=path.relative_to(folder).as_posix(),
        role=role,
        format="other",
        precision="none",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
    )


def write_recipe(run: RunFolder, path: Path, student: str) -> None:
    """Writes the run's recipe for readers who have no summary: it names the student that the artifact holds."""
    recipe = run.recipe()
    if recipe.deploy == student:
        shutil.copyfile(run.recipe_path, path)
    else:
        path.write_text(recipe.deploying_student(student).as_yaml())


def write_triton_repository(
    folder: Path, files: list[ArtifactFile], data: DataSet, how: Preprocessing
) -> list[ArtifactFile]:
    """Writes a Triton model repository for the student and, as the baseline, the ensemble; returns its files.

    fp32 is served by GPUs, or by the CPU of a server without one; fp16 and engines by GPUs, int8-cpu by the CPU.
    """
    channels, height, width = data.image_shape
    shape = (height, width, channels) if how.layout == "NHWC" else (channels, height, width)
    repository = folder / "triton"
    for file in files:
        backend: Literal["onnxruntime", "tensorrt"] | None = None
        if file.format == "onnx" and file.precision in _TRITON_INSTANCES:
            backend = "onnxruntime"
        elif file.format == "tensorrt":
            backend = "tensorrt"
        if backend is None or file.role not in ("student", "ensemble") or file.max_batch is None:
            continue
        name = f"{file.role}_{file.precision}_{'onnx' if backend == 'onnxruntime' else 'plan'}"
        config = triton_config(
            name,
            backend=backend,
            input_shape=shape,
            num_classes=data.num_classes,
            max_batch=file.max_batch,
            input_type=how.dtype,
            instances=_TRITON_INSTANCES[file.precision] if backend == "onnxruntime" else "gpu",
        )
        write_triton_model(repository, name, model=folder / file.path, class_names=data.class_names, config=config)
    return [other_record(path, folder, "triton") for path in sorted(repository.rglob("*")) if path.is_file()]
