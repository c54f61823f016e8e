"""The request of a bench, checked: all errors that can be found early are raised here, before minutes are spent."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edc.benchmark.backends import BackendName, available_backends, needs_run, require_installed
from edc.benchmark.measure.flops import flops_by_subject
from edc.benchmark.options import BenchOptions
from edc.benchmark.regression.compatible import require_rows_in_common, require_same_classes
from edc.benchmark.saved.document import whole_bench
from edc.benchmark.specs import also_specs, row_specs
from edc.benchmark.teachers import Teachers, teachers_of
from edc.benchmark.workers.pool import RowSpec
from edc.data import DataSet, load_data
from edc.deploy.artifact.manifest import Manifest, load_manifest, verify_files
from edc.deploy.onnx.checked import read_arithmetic
from edc.errors import ArtifactError, DataError, RequestError, RunError
from edc.recipe import Recipe
from edc.recipe.data_section import FILE_KINDS
from edc.runs.folder import RunFolder
from edc.runs.rows import rows_by_subject
from edc.subject import Subject
from edc.teachers.ensemble import teacher_key
from edc.train.checkpoint import load_state

__all__ = ["BenchRequest", "prepare"]


@dataclass(frozen=True)
class BenchRequest:
    """An artifact that is whole, the images to measure it on, and every row to be measured."""

    artifact: Path
    manifest: Manifest
    recipe: Recipe
    data: DataSet
    backends: tuple[BackendName, ...]
    batches: tuple[int, ...]
    max_batch: int
    """The largest batch the artifact's files were checked for."""
    specs: tuple[RowSpec, ...]
    teachers: Teachers
    parameters: dict[str, int]
    """By key."""
    flops: dict[str, int]
    """Of one image, by key, where the artifact has the file to count them in."""


def prepare(artifact: Path, options: BenchOptions) -> BenchRequest:
    """Returns what `options` ask for.

    Raises:
        ArtifactError: the artifact is missing, damaged or changed.
        RequestError: a batch over what the artifact was checked for, another artifact's run, a saved bench of something
            else to compare with.
        NotInstalledError: a backend that was asked for by name.
        DataError: the test images are not there, or are of other classes.
        CheckpointError: the run is there, and its weights are damaged.
    """
    manifest = load_manifest(artifact)
    _require_sound(artifact, manifest)
    if not os.access(artifact, os.W_OK):
        raise ArtifactError(f"{artifact}: cannot be written to, and bench.json belongs there; copy it elsewhere")
    max_batch = _max_batch(manifest)
    batches = _batches(options.batches, max_batch)
    for name in options.backends or ():
        require_installed(name)
    backends = tuple(options.backends or available_backends(quick=options.quick))
    recipe = _recipe(artifact)
    takes_run = any(needs_run(name) for name in backends)
    if takes_run:
        _require_same_run(options.run, manifest)
    data = _load_data(artifact, manifest, recipe, options.data_root)
    if takes_run:
        RunFolder(options.run).warn_of_other_data(data)
        _require_readable(options.run, recipe, data)
    teachers = teachers_of(manifest, options.run)
    specs = row_specs(artifact, manifest, recipe, options.run, backends, options.data_root, teacher=teachers.best)
    parameters = _parameters(manifest, recipe, options.run, specs)
    flops = _flops(artifact, manifest, recipe, specs)
    for other, label in _also_labels(options.also, artifact).items():
        added, parameters_of_other, flops_of_other = _also(other, manifest, options, backends, label=label)
        specs += added
        parameters |= parameters_of_other
        flops |= flops_of_other
    if options.compare_with is not None:
        old = whole_bench(options.compare_with, name="--compare")
        require_same_classes(manifest.classes, old)
        require_rows_in_common([(spec.key, batch) for spec in specs for batch in batches], old)
    return BenchRequest(
        artifact, manifest, recipe, data, backends, tuple(batches), max_batch, tuple(specs), teachers, parameters, flops
    )


def _require_sound(artifact: Path, manifest: Manifest) -> None:
    """Raises unless the files are those of the manifest, and those in ONNX hold nothing but arithmetic."""
    verify_files(artifact, manifest)
    for file in manifest.files:
        if file.format == "onnx":
            read_arithmetic(artifact / file.path)


def _also_labels(others: Sequence[Path], artifact: Path) -> dict[Path, str]:
    """Returns the prefix of each other artifact's rows: its folder's name, or its path if names repeat."""
    labels: dict[Path, str] = {}
    seen = {artifact.resolve()}
    names = [other.resolve().name for other in others]
    for other, name in zip(others, names, strict=True):
        if other.resolve() in seen:
            raise RequestError(f"--also {other}: is measured already; name every artifact once")
        seen.add(other.resolve())
        labels[other] = name if names.count(name) == 1 else str(other)
    return labels


def _also(
    other: Path, main: Manifest, options: BenchOptions, backends: tuple[BackendName, ...], *, label: str
) -> tuple[list[RowSpec], dict[str, int], dict[str, int]]:
    """Returns the rows of another artifact, their parameters and FLOPs; its run is looked for beside this one's."""
    manifest = load_manifest(other)
    _require_sound(other, manifest)
    recipe, run = _recipe(other), options.run.parent / manifest.run
    specs = also_specs(other, manifest, recipe, run, backends, options.data_root, main=main, label=label)
    return specs, _parameters(manifest, recipe, run, specs), _flops(other, manifest, recipe, specs)


def _flops(artifact: Path, manifest: Manifest, recipe: Recipe, specs: Sequence[RowSpec]) -> dict[str, int]:
    found = flops_by_subject(artifact, manifest, recipe)
    return {spec.key: found[spec.subject.base] for spec in specs if spec.subject.base in found}


def _parameters(manifest: Manifest, recipe: Recipe, run: Path, specs: Sequence[RowSpec]) -> dict[str, int]:
    """Returns parameters by key: what the summary of the run says, or the manifest without it."""
    of_file = {
        (file.role, file.member): int(file.metrics["parameters"])
        for file in manifest.files
        if "parameters" in file.metrics
    }
    found = {Subject("teacher", member=m): number for (role, m), number in of_file.items() if role == "teacher"}
    others = {"ensemble": Subject("ensemble"), "student": Subject("student", name=recipe.deploy)}
    found |= {subject: of_file[role, None] for role, subject in others.items() if (role, None) in of_file}
    with suppress(RunError):
        if RunFolder(run).recipe().digest() != manifest.recipe_sha256:
            raise RunError(f"{run}: another artifact's run")
        found |= {subject: row["parameters"] for subject, row in rows_by_subject(RunFolder(run).summary()).items()}
    by_key = {spec.key: found.get(spec.subject.network) for spec in specs}
    return {key: parameters for key, parameters in by_key.items() if parameters is not None}


def _max_batch(manifest: Manifest) -> int:
    return min((file.max_batch for file in manifest.files if file.max_batch is not None), default=64)


def _batches(asked: Sequence[int] | None, largest: int) -> list[int]:
    """Returns the batch sizes to measure: those asked for, or 1 and the largest that the artifact was checked for."""
    if asked is None:
        return sorted({1, largest})
    too_large = [batch for batch in asked if batch > largest]
    if too_large:
        raise RequestError(
            f"--batch: {too_large[0]} is over {largest}, the largest batch this artifact was checked for; "
            f"export again with --max-batch {too_large[0]}"
        )
    return list(dict.fromkeys(asked))


def _recipe(artifact: Path) -> Recipe:
    folder = RunFolder(artifact)
    if not folder.recipe_path.is_file():
        raise ArtifactError(
            f"{folder.recipe_path}: not found; it says which images to measure on. Fetch or export the artifact again"
        )
    return folder.recipe()


def _require_same_run(run: Path, manifest: Manifest) -> None:
    """Raises if `run` is not the artifact's run; without a run only the torch rows are missing."""
    folder = RunFolder(run)
    if folder.recipe_path.is_file() and folder.recipe().digest() != manifest.recipe_sha256:
        raise RequestError(
            f"{run}: is not the run this artifact was made from (another recipe). Name the right one with --run, "
            "or leave torch out: --backends onnxruntime"
        )


def _require_readable(run: Path, recipe: Recipe, data: DataSet) -> None:
    """Raises if weights of an existing run are damaged; absent weights only mean missing rows."""
    folder = RunFolder(run)
    if not folder.recipe_path.is_file():
        return
    paths = [folder.student_path(name) / "weights.safetensors" for name in recipe.students]
    if not recipe.teachers.checkpoints:
        keys = (teacher_key(recipe, data, m)[0] for m in range(recipe.teachers.size))
        paths += [folder.teachers_path / key / "weights.safetensors" for key in keys]
    for path in paths:
        if path.is_file():
            load_state(path)


def _load_data(artifact: Path, manifest: Manifest, recipe: Recipe, data_root: Path | None) -> DataSet:
    update: dict[str, Any] = {"root": data_root} if data_root is not None else {}
    if recipe.data.kind in FILE_KINDS:  # as it was exported: older artifacts are of images that nothing turned
        update["orientation"] = manifest.preprocessing.orientation
    data = load_data(recipe.data.model_copy(update=update))
    for name, images in (("test", data.test), ("validation", data.validation)):
        if not len(images):
            raise DataError(
                f"{artifact}: its data set ({recipe.data.kind}) has no {name} images, which bench measures on; "
                "point --data-root at a copy that has them"
            )
    if data.class_names != manifest.classes:
        raise DataError(
            f"{artifact}: knows {_classes(manifest.classes)}, its data set has {_classes(data.class_names)} now; "
            "point --data-root at the data it was made from"
        )
    return data


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
