"""What a bench compares: which subjects of an artifact and its run, in which precisions, on which backends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edc.benchmark.backends import BackendName, needs_run
from edc.benchmark.backends.contract import (
    EngineFile,
    EngineSubject,
    OnnxSubject,
    PrecisionClass,
    Subject,
    TorchSubject,
)
from edc.benchmark.workers.pool import RowSpec
from edc.deploy.artifact.manifest import Manifest, Preprocessing
from edc.errors import RequestError
from edc.recipe import Recipe
from edc.runs.folder import RunFolder

__all__ = ["CUDA_GRAPH", "INT8", "also_specs", "base_subject", "is_ensemble", "is_int8", "precision_class", "row_specs"]

CUDA_GRAPH = " (CUDA graph)"
INT8 = " (int8)"
"""At the end of the name of a subject that runs in 8 bits; other precisions than fp32 are named alike."""

_ONNX: dict[BackendName, tuple[str, ...]] = {
    # fp16 is left out: x86 CPUs emulate it. int8-trt is TensorRT's flavour, which these would run in float.
    "onnxruntime": ("fp32", "int8-cpu"),
    "openvino": ("fp32", "int8-cpu"),
    "openvino-bf16": ("fp32",),
    # int8 is left out: the CUDA provider has no 8-bit convolution, and would run float between conversions.
    "onnxruntime-cuda": ("fp32", "fp16"),
}
_ENGINES: dict[BackendName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_CLASSES: dict[str, PrecisionClass] = {
    "fp32": "fp32",
    "tf32": "tf32",
    "fp16": "fp16",
    "int8-cpu": "int8",
    "int8-trt": "int8",
}


@dataclass(frozen=True)
class _Found:
    """A subject that a backend can run: under which name, and in which precision."""

    label: str
    locator: Subject
    precision: PrecisionClass = "fp32"


def row_specs(
    artifact: Path,
    manifest: Manifest,
    recipe: Recipe,
    run: Path,
    backends: Sequence[BackendName],
    data_root: Path | None,
) -> list[RowSpec]:
    """Returns what is compared: one teacher, the ensemble in its forms, and students, on each backend."""
    specs = []
    for backend in backends:
        if needs_run(backend):
            ensemble = {"teacher 0": "teacher 0", "ensemble, in turn": "ensemble"}
            # Compiling takes minutes a row: with torch.compile, what the comparison needs and no more.
            students = {recipe.deploy: recipe.deploy}
            if backend != "torch-compile":
                students = _students(recipe, recipe.students)
            found = _of_run(ensemble | students, run, data_root)
        else:
            found = _of_artifact(artifact, manifest, recipe.deploy, backend)
        specs += [_spec(each, backend) for each in found]
    return specs


def also_specs(
    other: Path,
    manifest: Manifest,
    recipe: Recipe,
    run: Path,
    backends: Sequence[BackendName],
    data_root: Path | None,
    *,
    main: Manifest,
    label: str | None = None,
) -> list[RowSpec]:
    """Returns what another artifact adds to a bench: its student, and its ensemble if that is another one.

    On torch: the student and its members, where its run is.

    Args:
        main: the manifest of the artifact that is benched.
        label: what its rows are called by; the name of its folder if None.

    Raises:
        RequestError: it takes other images or has other classes, or `run` is not its run.
    """
    label = other.name if label is None else label
    _require_same_task(label, manifest, main)
    has_run = any(needs_run(backend) for backend in backends) and _is_run_of(label, run, manifest)
    is_other_ensemble = _ensemble_digests(manifest) != _ensemble_digests(main)
    specs = []
    for backend in backends:
        if not needs_run(backend):
            found = _of_artifact(other, manifest, recipe.deploy, backend)
            found = [each for each in found if _belongs_to(each.label, recipe.deploy, with_ensemble=is_other_ensemble)]
        elif has_run:
            ensemble = {"ensemble, in turn": "ensemble"} if is_other_ensemble else {}
            students = {recipe.deploy: recipe.deploy}
            if backend != "torch-compile":
                students = _students(recipe, (recipe.deploy,))
            found = _of_run(ensemble | students, run, data_root)
        else:
            continue
        specs += [_spec(each, backend, artifact=label) for each in found]
    return specs


def precision_class(spec: RowSpec) -> PrecisionClass:
    """Returns what a row is compared within, beside its backend."""
    return spec.precision


def base_subject(spec: RowSpec) -> str:
    """Returns the subject's name without its precision and its CUDA graph."""
    return _base(spec.subject)


def is_ensemble(spec: RowSpec) -> bool:
    """Returns whether the row is a form of an ensemble; of which artifact, `spec.artifact` says."""
    return spec.subject.startswith("ensemble")


def is_int8(spec: RowSpec) -> bool:
    """Returns whether the row runs in 8 bits."""
    return spec.precision == "int8"


def _spec(found: _Found, backend: BackendName, *, artifact: str | None = None) -> RowSpec:
    precision: PrecisionClass = "bf16" if backend == "openvino-bf16" else found.precision
    return RowSpec(found.label, backend, found.locator, artifact, precision)


def _students(recipe: Recipe, names: Iterable[str]) -> dict[str, str]:
    """Returns students by label: after the fold, and before it where there is one."""
    subjects = {}
    for name in names:
        if recipe.students[name].method == "latent_be":
            subjects[f"{name} (members)"] = f"{name} (members)"
        subjects[name] = name
    return subjects


def _of_run(subjects: dict[str, str], run: Path, data_root: Path | None) -> list[_Found]:
    return [_Found(label, TorchSubject(run, subject, data_root)) for label, subject in subjects.items()]


def _of_artifact(artifact: Path, manifest: Manifest, student: str, backend: BackendName) -> list[_Found]:
    """Returns the subjects that the artifact has files of, for this backend."""
    library = _ENGINES.get(backend)
    precisions = ("fp32", "tf32", "fp16", "int8-trt") if library else _ONNX[backend]
    found = []
    for precision in precisions:
        suffix = "" if precision == "fp32" else f" ({_CLASSES[precision]})"
        files: dict[str, list[EngineFile]] = {}
        for file in manifest.files:
            if file.format == (library or "onnx") and file.precision == precision:
                files.setdefault(file.role, []).append(EngineFile(artifact / file.path, file.sha256))
        teachers = files.get("teacher", [])
        labels = {
            "teacher 0": teachers[:1],
            "ensemble, in turn": teachers,
            "ensemble, merged": files.get("ensemble", []),
            student: files.get("student", []),
        }
        for label, of_label in labels.items():
            if of_label:
                found += _forms(f"{label}{suffix}", tuple(of_label), _CLASSES[precision], is_engine=library is not None)
    if library and not found:  # one row that says so, rather than none that does not
        found = [_Found(label, EngineSubject(label, ())) for label in ("ensemble, merged", student)]
    return found


def _forms(label: str, files: tuple[EngineFile, ...], precision: PrecisionClass, *, is_engine: bool) -> list[_Found]:
    if not is_engine:
        return [_Found(label, OnnxSubject(tuple(file.path for file in files)), precision)]
    return [
        _Found(label + suffix, EngineSubject(label, files, precision, cuda_graph=bool(suffix)), precision)
        for suffix in ("", CUDA_GRAPH)
    ]


def _base(label: str) -> str:
    label = label.removesuffix(CUDA_GRAPH)
    for name in get_args(PrecisionClass):
        label = label.removesuffix(f" ({name})")
    return label


def _belongs_to(label: str, student: str, *, with_ensemble: bool) -> bool:
    return _base(label) == student or (with_ensemble and label.startswith("ensemble"))


def _ensemble_digests(manifest: Manifest) -> set[str]:
    """Returns what tells ensembles apart: the digests of the float32 files of their teachers, or of their merger."""
    files = [file for file in manifest.files if file.format == "onnx" and file.precision == "fp32"]
    teachers = {file.sha256 for file in files if file.role == "teacher"}
    return teachers or {file.sha256 for file in files if file.role == "ensemble"}


def _is_run_of(label: str, run: Path, manifest: Manifest) -> bool:
    """Returns whether the run is there, raising `RequestError` if it is another artifact's."""
    folder = RunFolder(run)
    if not folder.recipe_path.is_file():
        return False
    if folder.recipe().digest() != manifest.recipe_sha256:
        raise RequestError(
            f"--also {label}: {run} is not the run it was made from (another recipe); move that run away, "
            "or leave torch out: --backends onnxruntime"
        )
    return True


def _require_same_task(label: str, manifest: Manifest, main: Manifest) -> None:
    """Raises if the two do not take the same images, or do not tell the same classes apart."""
    if manifest.preprocessing != main.preprocessing:
        raise RequestError(
            f"--also {label}: takes {_images(manifest.preprocessing)}, the artifact that is benched takes "
            f"{_images(main.preprocessing)}; rows are compared on the same images, so bench them apart"
        )
    if manifest.classes != main.classes:
        pairs = zip(manifest.classes, main.classes, strict=False)
        found = next((f": {this!r} where that has {that!r}" for this, that in pairs if this != that), "")
        raise RequestError(
            f"--also {label}: has {len(manifest.classes)} classes, the artifact that is benched has {len(main.classes)}"
            f"{found}; rows are compared on the same labels, so bench them apart"
        )


def _images(how: Preprocessing) -> str:
    height, width = how.image_size
    low, high = how.value_range
    return (
        f"{how.color} images of {height}x{width} as {how.dtype} {how.layout} in [{low:g}, {high:g}] "
        f"(resize {how.resize}, {how.interpolation}, shorter side {how.resize_shorter_side})"
    )
