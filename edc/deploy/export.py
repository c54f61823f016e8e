"""From a finished run to an artifact: checked files in a folder that is complete or does not exist."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import edc
from edc import metrics
from edc.data import DataSet, FileImages, load_data
from edc.deploy.artifact.folder import appearing, artifact_lock, require_replaceable
from edc.deploy.artifact.manifest import (
    ArtifactFile,
    Manifest,
    MissingFile,
    ParityFigures,
    Preprocessing,
    write_manifest,
)
from edc.deploy.card import CARD_NAME, model_card
from edc.deploy.engine_files import Built, EngineChoice, build_engines
from edc.deploy.ensemble import ensemble_log_probs
from edc.deploy.gates import Gates
from edc.deploy.networks import TOO_LARGE, ExportedNetwork, networks_of
from edc.deploy.onnx.parity import compare_outputs, network_outputs
from edc.deploy.onnx.precision import Precision
from edc.deploy.onnx_files import Samples, Written, with_uint8_input, write_precisions
from edc.deploy.records import engine_records, onnx_record, other_record, write_recipe, write_triton_repository
from edc.deploy.samples import sample_images, samples_of
from edc.errors import RunError
from edc.method.batch_ensemble import ensemble_size_of, member_logits
from edc.progress import step
from edc.recipe import Recipe
from edc.runs.folder import RunFolder, run_folder
from edc.runs.rows import member_temperature, rows_by_subject
from edc.runs.student import load_student
from edc.subject import Subject

__all__ = ["ExportOptions", "export", "preprocessing_of", "sample_images"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ExportOptions:
    """What to write beside the fp32 files, and how."""

    student: str | None = None
    """Which student of the run; None: the one that the recipe deploys."""
    precisions: tuple[Precision, ...] = ("fp32",)
    max_batch: int = 64
    max_drop: float = 0.005
    """Accuracy that an int8 file may lose on validation images, as a share of 1."""
    fold_temperature: bool = True
    input_type: Literal["float", "uint8"] = "float"
    engines: EngineChoice | None = None
    triton: bool = False
    baseline: bool = True
    """Whether the teachers and their ensemble are written beside the student."""
    all_or_nothing: bool = False
    """Whether one file that fails its gate ends the export, and nothing is written."""
    data_root: Path | None = None
    """Where the run's images are now; None: where they were."""


def export(run: RunFolder | Path | str, folder: Path | str, options: ExportOptions | None = None) -> Manifest:
    """Writes the artifact of a finished run to `folder` and returns its manifest.

    The student is exported with BatchNorm and (unless told not to) the calibration temperature folded in; each teacher
    and the merged ensemble are exported beside it as the baseline, in the same precisions. Every file passes its gate
    on validation images at batch 1, an odd size and the maximum before the folder appears. A file that fails is not
    written; the manifest's `missing` says which and why.

    Raises:
        RunError: the run is missing or unfinished, or has no such student, or another process exports to `folder`.
        ArtifactError: `folder` holds something that is not an artifact.
        ParityError: the student's float32 file does not compute what the network computes; nothing is written.
    """
    run, folder, options = run_folder(run), Path(folder), options or ExportOptions()
    summary = run.summary()
    recipe = run.recipe(data_root=options.data_root).deploying(summary)
    if options.student is not None:
        recipe = _deploying(recipe, options.student, run)
    require_replaceable(folder)
    rows = rows_by_subject(summary)
    row = rows[Subject("student", name=recipe.deploy)]
    with artifact_lock(folder):
        data = load_data(recipe.data)
        run.warn_of_other_data(data)
        student = load_student(recipe, recipe.deploy, data, run=run)
        networks = networks_of(
            student, run, recipe, summary, data, fold_temperature=options.fold_temperature, baseline=options.baseline
        )
        samples = samples_of(data, recipe, options.max_batch)
        preprocessing = preprocessing_of(data, options.input_type, orientation=recipe.data.orientation or "exif")
        with appearing(folder) as temporary:
            files, missing = _write_files(networks, temporary, data, preprocessing, samples, options)
            write_recipe(run, temporary / "recipe.yaml", recipe.deploy)
            files.append(other_record(temporary / "recipe.yaml", temporary, "recipe"))
            manifest = Manifest(
                run=run.path.name,
                recipe_sha256=summary["recipe_sha256"],
                created=datetime.now(UTC),
                versions={"edc": edc.__version__, "torch": torch.__version__, "onnx": onnx.__version__},
                classes=data.class_names,
                preprocessing=preprocessing,
                calibration_temperature=row["calibration_temperature"],
                member_temperature=member_temperature(rows[Subject("ensemble")]),
                temperature_folded=options.fold_temperature,
                differences=_differences(student, networks[0], samples.parity, row["calibration_temperature"], options),
                files=tuple(files),
                missing=tuple(missing),
                ensemble_calibrated_nll_by_size=tuple(summary["ensemble_calibrated_nll_by_size"]),
                majority=summary["data"].get("majority"),
                notes=_notes(networks, options) | _few_classes(networks, rows, data),
            )
            (temporary / CARD_NAME).write_text(model_card(manifest, recipe, summary), encoding="utf-8")
            write_manifest(temporary, manifest)
    return manifest


def _deploying(recipe: Recipe, student: str, run: RunFolder) -> Recipe:
    if student not in recipe.students:
        raise RunError(f"{run.path}: has no student {student!r}; expected one of {', '.join(recipe.students)}")
    return recipe.deploying_student(student)


def _write_files(
    networks: list[ExportedNetwork],
    folder: Path,
    data: DataSet,
    preprocessing: Preprocessing,
    samples: Samples,
    options: ExportOptions,
) -> tuple[list[ArtifactFile], list[MissingFile]]:
    """Writes every file of every network; returns the manifest's entries of those that passed and of the others."""
    gates = Gates(folder, all_or_nothing=options.all_or_nothing)
    files: list[ArtifactFile] = []
    built: list[Built] = []
    for number, network in enumerate(networks, start=1):
        subject, which = network.subject, f"{network.stem} ({', '.join(options.precisions)})"
        with step(f"writing and checking {which}, {number} of {len(networks)}"):
            written, engines = _write_network(network, folder, data, preprocessing, samples, options, gates)
        files += [onnx_record(each, folder, subject, data, preprocessing, options.max_batch) for each in written]
        built += engines
    files += [record for each in built for record in engine_records(each, folder, data, preprocessing)]
    if options.triton:
        files += write_triton_repository(folder, files, data, preprocessing)
    return files, gates.missing


def _write_network(
    network: ExportedNetwork,
    folder: Path,
    data: DataSet,
    preprocessing: Preprocessing,
    samples: Samples,
    options: ExportOptions,
    gates: Gates,
) -> tuple[list[Written], list[Built]]:
    """Writes the files of one network; returns the ONNX files and the engines that passed their gates."""
    subject = network.subject
    judged = partial(gates.judged, subject)
    written = write_precisions(
        network.reference,
        network.exported,
        folder / network.stem,
        precisions=options.precisions,
        samples=samples,
        class_names=data.class_names,
        metadata={"preprocessing": preprocessing.model_dump(mode="json"), "role": subject.role},
        max_batch=options.max_batch,
        max_drop=options.max_drop,
        known_metrics=network.metrics,
        computes_known=network.temperature == 1,
        judged=judged,
    )
    if options.input_type == "uint8":
        written = with_uint8_input(
            written, network.reference, samples, preprocessing, max_batch=options.max_batch, judged=judged
        )
    if not options.engines or subject.role == "teacher":
        return written, []
    engines = build_engines(
        written,
        subject.role,
        options.engines,
        reference=network.reference,
        samples=samples,
        how=preprocessing,
        max_batch=options.max_batch,
        max_drop=options.max_drop,
        judged=judged,
    )
    return written, engines


def preprocessing_of(
    data: DataSet, input_type: Literal["float", "uint8"] = "float", *, orientation: Literal["exif", "stored"] = "exif"
) -> Preprocessing:
    """Returns how an image file becomes an input, the same way as the run's evaluation images did."""
    channels, height, width = data.image_shape
    fraction = data.test.crop_fraction if isinstance(data.test, FileImages) else 1.0
    square = height == width
    return Preprocessing(
        layout="NHWC" if input_type == "uint8" else "NCHW",
        dtype="uint8" if input_type == "uint8" else "float32",
        color="RGB" if channels == 3 else "L",
        image_size=(height, width),
        resize="shorter_side_then_center_crop" if square else "exact",
        resize_shorter_side=round(height / fraction) if square else None,
        orientation=orientation,
    )


def _notes(networks: list[ExportedNetwork], options: ExportOptions) -> dict[str, str]:
    """Returns what the manifest says of files that nobody asked for in vain, and that are not there."""
    roles = [network.subject.role for network in networks]
    too_large = {"ensemble": TOO_LARGE} if "teacher" in roles and "ensemble" not in roles else {}
    return too_large if options.baseline else {"baseline": "left out, as asked for"}


def _few_classes(networks: list[ExportedNetwork], rows: dict[Subject, dict[str, Any]], data: DataSet) -> dict[str, str]:
    """Returns, by label, which of the networks predict one or few classes of the test images."""
    known = {network.subject.network: rows[network.subject.network].get("by_class") for network in networks}
    found = {
        subject.label: metrics.in_words(each["images"], each["predicted"], data.class_names)
        for subject, each in known.items()
        if each
    }
    return {label: words for label, words in found.items() if words}


def _differences(
    student: nn.Module, network: ExportedNetwork, images: Floats, temperature: float, options: ExportOptions
) -> dict[str, ParityFigures]:
    """Returns how far fusing moved the student's outputs, and how far folding moved them from its members' mean."""
    reference = network_outputs(network.reference, images, batch_size=64)
    fused = network_outputs(network.exported, images, batch_size=64)
    found = {"fused_from_unfused": compare_outputs(reference, fused)}
    if ensemble_size_of(student) > 1:
        with torch.inference_mode():
            members = torch.cat(
                [member_logits(student.cpu(), torch.from_numpy(b)) for b in np.array_split(images, 8)], 1
            )
            mean = ensemble_log_probs(members)
            folded = torch.from_numpy(reference) * (temperature if options.fold_temperature else 1.0)
        found["folded_from_members"] = compare_outputs(mean.numpy(), folded.log_softmax(-1).numpy())
    return {name: ParityFigures(**{**asdict(parity), "batch_sizes": (64,)}) for name, parity in found.items()}
