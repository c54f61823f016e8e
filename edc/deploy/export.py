"""From a finished run to an artifact: checked files in a folder that is complete or does not exist."""

import shutil
from dataclasses import asdict, dataclass, field
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
from edc.console import console
from edc.data import DataSet, FileImages, Images, load_data
from edc.deploy.artifact.folder import appearing, require_replaceable
from edc.deploy.artifact.manifest import ArtifactFile, Manifest, ParityFigures, Preprocessing, write_manifest
from edc.deploy.engine_files import Built, EngineChoice, build_engines
from edc.deploy.ensemble import ensemble_log_probs, ensemble_network, tempered_ensemble
from edc.deploy.fuse import fuse_batchnorm, scale_classifier
from edc.deploy.onnx.parity import check_onnx_parity, compare_outputs, network_outputs
from edc.deploy.onnx.precision import Precision
from edc.deploy.onnx.uint8_input import take_uint8_pixels
from edc.deploy.onnx_files import Samples, write_precisions
from edc.deploy.records import engine_records, onnx_record, other_record, write_triton_repository
from edc.method.batch_ensemble import ensemble_size_of, member_logits
from edc.recipe import Recipe
from edc.runs.folder import RunFolder, run_folder
from edc.runs.rows import member_temperature, rows_by_subject
from edc.runs.student import deployable, load_student
from edc.seeding import generator_for
from edc.subject import Subject
from edc.teachers.ensemble import load_teachers

__all__ = ["ExportOptions", "export", "preprocessing_of", "references_of", "sample_images"]

NUM_PARITY_IMAGES, NUM_CALIBRATION_IMAGES, NUM_BUDGET_IMAGES, NUM_TEST_IMAGES = 512, 512, 5000, 10_000
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ExportOptions:
    """What to write beside the fp32 files, and how."""

    precisions: tuple[Precision, ...] = ("fp32",)
    max_batch: int = 64
    max_drop: float = 0.005
    """Accuracy that an int8 file may lose on validation images, as a share of 1."""
    fold_temperature: bool = True
    input_type: Literal["float", "uint8"] = "float"
    engines: EngineChoice | None = None
    triton: bool = False
    data_root: Path | None = None
    """Where the run's images are now; None: where they were."""


@dataclass(frozen=True)
class _Network:
    """One network to be written: what its files must compute, and what is exported to compute it."""

    stem: str
    subject: Subject
    reference: nn.Module
    exported: nn.Module
    metrics: dict[str, float] = field(default_factory=dict)


class _Tempered(nn.Module):
    """A network with its logits divided by a temperature: what a file with the temperature folded in must compute."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


def export(run: RunFolder | Path | str, folder: Path | str, options: ExportOptions | None = None) -> Manifest:
    """Writes the artifact of a finished run to `folder` and returns its manifest.

    The student is exported with BatchNorm and (unless told not to) the calibration temperature folded in; each teacher
    and the merged ensemble are exported beside it as the baseline, in the same precisions. Every file passes its gate
    on validation images at batch 1, an odd size and the maximum before the folder appears.

    Raises:
        RunError: the run is missing or unfinished.
        ArtifactError: `folder` holds something that is not an artifact.
        ParityError: a file does not compute what the network computes; nothing is written.
    """
    run, folder, options = run_folder(run), Path(folder), options or ExportOptions()
    summary = run.summary()
    recipe = run.recipe(data_root=options.data_root).deploying(summary)
    require_replaceable(folder)
    data = load_data(recipe.data)
    student = load_student(recipe, recipe.deploy, data, run=run)
    networks = _networks(student, run, recipe, summary, data, fold_temperature=options.fold_temperature)
    samples = _samples(data, recipe, options.max_batch)
    preprocessing = preprocessing_of(data, options.input_type)
    rows = rows_by_subject(summary)
    row = rows[Subject("student", name=recipe.deploy)]
    with appearing(folder) as temporary:
        files: list[ArtifactFile] = []
        built: list[Built] = []
        for network in networks:
            role = network.subject.role
            written = write_precisions(
                network.reference,
                network.exported,
                temporary / network.stem,
                precisions=options.precisions,
                samples=samples,
                class_names=data.class_names,
                metadata={"preprocessing": preprocessing.model_dump(mode="json"), "role": role},
                max_batch=options.max_batch,
                max_drop=options.max_drop,
                known_metrics=network.metrics,
            )
            if options.input_type == "uint8":
                for each in written:
                    take_uint8_pixels(each.path)
                    check_onnx_parity(
                        each.path,
                        network.reference,
                        samples.parity,
                        max_batch=options.max_batch,
                        precision=each.precision,
                        how=preprocessing,
                    )
            files += [
                onnx_record(each, temporary, network.subject, data, preprocessing, options.max_batch)
                for each in written
            ]
            if options.engines and role != "teacher":
                built += build_engines(
                    written,
                    role,
                    options.engines,
                    reference=network.reference,
                    samples=samples,
                    how=preprocessing,
                    max_batch=options.max_batch,
                    max_drop=options.max_drop,
                )
        files += [record for each in built for record in engine_records(each, temporary, data, preprocessing)]
        if options.triton:
            files += write_triton_repository(temporary, files, data, preprocessing)
        _write_recipe(run, temporary / "recipe.yaml", summary)
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
        )
        write_manifest(temporary, manifest)
    return manifest


def _write_recipe(run: RunFolder, path: Path, summary: dict[str, Any]) -> None:
    """Writes the run's recipe for readers who have no summary: it names the student that the artifact holds."""
    recipe = run.recipe()
    if recipe.deploys_best:
        path.write_text(recipe.deploying(summary).as_yaml())
    else:
        shutil.copyfile(run.recipe_path, path)


def sample_images(images: Images, num_images: int, *, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Returns drawn images (N, C, H, W) float32 in [0, 1] and labels (N,): the first may be all of one class.

    If training images may be unreadable, another of the class replaces one, as in training.
    """
    rows = torch.randperm(len(images), generator=generator_for(seed, "sample"))[:num_images]
    if isinstance(images, FileImages) and images.bad.max_fraction:
        pixels = torch.stack([images.load_or_replace(int(row), augment_seed=None)[0] for row in rows])
    else:
        pixels = torch.stack([images[int(row)][0] for row in rows])
    return (pixels.float() / 255).numpy(), images.labels[rows].numpy()


def references_of(
    run: RunFolder, recipe: Recipe, data: DataSet, *, fold_temperature: bool
) -> dict[tuple[str, int | None], nn.Module]:
    """Returns the torch network that each file of an artifact must compute, by the file's role and member."""
    summary = run.summary()
    student = load_student(recipe, recipe.deploy, data, run=run)
    networks = _networks(student, run, recipe, summary, data, fold_temperature=fold_temperature)
    return {(network.subject.role, network.subject.member): network.reference for network in networks}


def preprocessing_of(data: DataSet, input_type: Literal["float", "uint8"] = "float") -> Preprocessing:
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
    )


def _samples(data: DataSet, recipe: Recipe, max_batch: int) -> Samples:
    validation, validation_labels = sample_images(data.validation, NUM_BUDGET_IMAGES, seed=recipe.seed)
    test, test_labels = sample_images(data.test, NUM_TEST_IMAGES, seed=recipe.seed)
    return Samples(
        parity=validation[: max(NUM_PARITY_IMAGES, max_batch)],
        calibration=sample_images(data.train, NUM_CALIBRATION_IMAGES, seed=recipe.seed)[0],
        validation=validation,
        validation_labels=validation_labels,
        test=test,
        test_labels=test_labels,
    )


def _networks(
    student: nn.Module,
    run: RunFolder,
    recipe: Recipe,
    summary: dict[str, Any],
    data: DataSet,
    *,
    fold_temperature: bool,
) -> list[_Network]:
    """Returns the student, then its baseline: each teacher and the ensemble merged into one graph.

    There is no baseline if a teacher cannot be written as ONNX (TorchScript, converted ONNX), because half a baseline
    would not be fair to the ensemble.
    """
    cpu, shape = Accelerator(cpu=True), data.image_shape
    folded = deployable(student, recipe, recipe.deploy, data, accelerator=cpu)
    rows, deployed = rows_by_subject(summary), Subject("student", name=recipe.deploy)
    row = rows[deployed]
    reference, exported = folded, fuse_batchnorm(folded, input_shape=shape).network
    if fold_temperature:
        temperature = row["calibration_temperature"]
        reference = _Tempered(folded, temperature)
        exported = scale_classifier(exported, calibration_temperature=temperature, input_shape=shape)
    networks = [_Network("student", deployed, reference, exported, _metrics(row))]
    teachers = list(load_teachers(recipe, data, teachers_path=run.teachers_path, accelerator=cpu).members)
    if fixed := [f"teacher {m}" for m, teacher in enumerate(teachers) if not getattr(teacher, "exportable", True)]:
        console.print(f"no baseline files: torch cannot write {', '.join(fixed)} as ONNX; bench runs them in torch")
        return networks
    fused = [fuse_batchnorm(teacher, input_shape=shape).network for teacher in teachers]
    for m, teacher in enumerate(teachers):
        subject = Subject("teacher", member=m)
        networks.append(_Network(f"baseline/teacher_{m}", subject, teacher, fused[m], _metrics(rows[subject])))
    by_size = summary["ensemble_calibrated_nll_by_size"]  # what a DEE is read off
    ensemble = Subject("ensemble", ensemble_form="merged")
    known = _metrics(rows[ensemble.network])
    known |= {f"calibrated_nll_of_{m}": nll for m, nll in enumerate(by_size, start=1)}
    temperature = member_temperature(rows[ensemble.network])
    merged = ensemble_network(teachers, temperature=temperature)
    merged_fused = tempered_ensemble(fused, temperature, input_shape=shape)
    return [*networks, _Network("baseline/ensemble", ensemble, merged, merged_fused, known)]


def _differences(
    student: nn.Module, network: _Network, images: Floats, temperature: float, options: ExportOptions
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


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    calibrated = {f"calibrated_{name}": value for name, value in row["calibrated"].items()}
    return {"parameters": row["parameters"], **row["raw"], **calibrated}
