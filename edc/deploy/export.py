"""From a finished run to an artifact: files that a server can trust, in a folder that is whole or not there."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

import edc
from edc.data import DataSet, FileImages, Images, load_data
from edc.deploy.fuse import fuse_batchnorm, scale_classifier
from edc.deploy.manifest import (
    MANIFEST_NAME,
    ArtifactFile,
    Manifest,
    ParityFigures,
    Preprocessing,
    TensorInfo,
    write_manifest,
)
from edc.deploy.onnx_from_network import ensemble_network, onnx_from_network
from edc.deploy.parity import check_onnx_parity
from edc.errors import ArtifactError, FailedError
from edc.files import sha256_of
from edc.recipe import Recipe
from edc.run import RunFolder
from edc.student import deployable, load_student
from edc.teacher import load_teachers

__all__ = ["export"]

NUM_PARITY_IMAGES = 512


@dataclass(frozen=True)
class _Subject:
    """One network to be written: what it must compute, and what is exported to compute it."""

    path: str
    role: str
    reference: nn.Module
    exported: nn.Module
    row: dict[str, Any]
    """Its row in the run's summary."""
    more_metrics: dict[str, float] = field(default_factory=dict)


class _Tempered(nn.Module):
    """A network with its logits divided by a temperature: what a file with the temperature folded in must compute."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


def export(run: RunFolder, folder: Path, *, max_batch: int, fold_temperature: bool = True) -> Manifest:
    """Writes the artifact of a finished run to `folder` and returns its manifest.

    The student is exported with BatchNorm and (unless told not to) the calibration temperature folded in; each teacher
    and the merged ensemble are exported beside it as the baseline. Every file is held to parity with the torch network
    on validation images at batch 1, an odd size and `max_batch` before the folder appears.

    Raises:
        RunError: the run is missing or unfinished.
        ArtifactError: `folder` holds something that is not an artifact.
        ParityError: a file does not compute what the network computes; nothing is written.
    """
    summary, recipe = run.summary(), run.recipe()
    _require_replaceable(folder)
    data = load_data(recipe.data)
    subjects = _subjects(run, recipe, summary, data, fold_temperature=fold_temperature)
    images = sample_images(data.validation, max(NUM_PARITY_IMAGES, max_batch))
    preprocessing = preprocessing_of(recipe, data)
    student_row = _row(summary, recipe.deploy)
    with _appearing(folder) as temporary:
        files = []
        for subject in subjects:
            path = temporary / subject.path
            onnx_from_network(
                subject.exported,
                path,
                input_shape=data.image_shape,
                class_names=data.class_names,
                metadata={"preprocessing": preprocessing.model_dump(mode="json"), "role": subject.role},
            )
            parity = check_onnx_parity(path, subject.reference, images, max_batch=max_batch, precision="fp32")
            files.append(_describe(path, subject, data, max_batch, ParityFigures(**dataclasses.asdict(parity))))
        shutil.copy(run.recipe_path, temporary / "recipe.yaml")
        files.append(_plain_file(temporary / "recipe.yaml", "recipe"))
        manifest = Manifest(
            run=run.path.name,
            recipe_sha256=summary["recipe_sha256"],
            created=datetime.now(UTC),
            versions={"edc": edc.__version__, "torch": torch.__version__, "onnx": onnx.__version__},
            classes=data.class_names,
            preprocessing=preprocessing,
            calibration_temperature=student_row["calibration_temperature"],
            temperature_folded=fold_temperature,
            files=tuple(files),
        )
        write_manifest(temporary, manifest)
    return manifest


def sample_images(images: Images, num_images: int) -> NDArray[np.float32]:
    """Returns the first images as the network takes them: (N, C, H, W) float32 in [0, 1]."""
    rows = range(min(num_images, len(images)))
    pixels = torch.stack([images[row][0] for row in rows])
    return (pixels.float() / 255).numpy()


def preprocessing_of(recipe: Recipe, data: DataSet) -> Preprocessing:
    """Returns how an image file becomes an input, the same way as the run's evaluation images did."""
    channels, height, width = data.image_shape
    color: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
    if height != width:
        return Preprocessing(color=color, image_size=(height, width), resize="exact")
    fraction = data.test.crop_fraction if isinstance(data.test, FileImages) else 1.0
    return Preprocessing(
        color=color,
        image_size=(height, width),
        resize="shorter_side_then_center_crop",
        resize_shorter_side=round(height / fraction),
    )


def _subjects(
    run: RunFolder, recipe: Recipe, summary: dict[str, Any], data: DataSet, *, fold_temperature: bool
) -> list[_Subject]:
    """Returns the student, then its baseline: each teacher and the ensemble merged into one graph."""
    cpu = Accelerator(cpu=True)
    shape = data.image_shape
    student = deployable(
        load_student(recipe, recipe.deploy, data, run=run), recipe, recipe.deploy, data, accelerator=cpu
    )
    row = _row(summary, recipe.deploy)
    reference, exported = student, fuse_batchnorm(student, input_shape=shape).network
    if fold_temperature:
        temperature = row["calibration_temperature"]
        reference = _Tempered(student, temperature)
        exported = scale_classifier(exported, calibration_temperature=temperature, input_shape=shape)
    subjects = [_Subject("student.onnx", "student", reference, exported, row)]
    teachers = list(load_teachers(recipe, data, teachers_path=run.teachers_path, accelerator=cpu).members)
    fused = [fuse_batchnorm(teacher, input_shape=shape).network for teacher in teachers]
    for m, teacher in enumerate(teachers):
        subjects.append(
            _Subject(f"baseline/teacher_{m}.onnx", "teacher", teacher, fused[m], _row(summary, f"teacher {m}"))
        )
    merged, merged_fused = ensemble_network(teachers), ensemble_network(fused)
    by_size = summary["ensemble_calibrated_nll_by_size"]  # what a DEE is read off
    nlls = {f"calibrated_nll_of_{m}": nll for m, nll in enumerate(by_size, start=1)}
    subjects.append(
        _Subject("baseline/ensemble.onnx", "ensemble", merged, merged_fused, _row(summary, "ensemble"), nlls)
    )
    return subjects


def _row(summary: dict[str, Any], subject: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in summary["rows"] if row["subject"] == subject)
    return row


def _describe(path: Path, subject: _Subject, data: DataSet, max_batch: int, parity: ParityFigures) -> ArtifactFile:
    row = subject.row
    return ArtifactFile(
        path=subject.path,
        role=subject.role,
        format="onnx",
        precision="fp32",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        inputs=(TensorInfo(name="images", shape=("batch", *data.image_shape), dtype="float32"),),
        outputs=(TensorInfo(name="logits", shape=("batch", data.num_classes), dtype="float32"),),
        max_batch=max_batch,
        parity=parity,
        metrics={
            "parameters": row["parameters"],
            **row["raw"],
            **{f"calibrated_{key}": value for key, value in row["calibrated"].items()},
            **subject.more_metrics,
        },
        notes={"metrics": "of the torch network on the test images"},
    )


def _plain_file(path: Path, role: str) -> ArtifactFile:
    return ArtifactFile(
        path=path.name, role=role, format="other", precision="none", sha256=sha256_of(path), bytes=path.stat().st_size
    )


def _require_replaceable(folder: Path) -> None:
    """Raises unless `folder` is absent, empty, or an earlier artifact."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ArtifactError(f"{folder}: is not empty and holds no {MANIFEST_NAME}; choose another folder with --output")
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: is a file, expected a folder for the artifact; choose another with --output")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yields a folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by an export that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FailedError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def newest_artifact(folder: Path) -> Path:
    """Returns the artifact under `folder` that was exported last."""
    manifests = sorted(folder.glob(f"*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise ArtifactError(f"{folder.absolute()}: no artifact here; make one with: edc export")
    return manifests[-1].parent
