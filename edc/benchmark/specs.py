"""The rows of a bench: which subjects of an artifact and its run, in which precisions, on which backends."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from edc.benchmark.backends import BackendName, needs_run
from edc.benchmark.backends.contract import EngineFile, EngineSource, OnnxSource, Source, TorchSource
from edc.benchmark.workers.pool import RowSpec
from edc.deploy.artifact.manifest import Manifest, Preprocessing
from edc.errors import RequestError
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.subject import PrecisionClass, Subject

__all__ = ["also_specs", "row_specs"]

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
_IN_TURN = Subject("ensemble", ensemble_form="in turn")
_MERGED = Subject("ensemble", ensemble_form="merged")
_Found = tuple[Subject, Source]
"""A subject that a backend can run, and where it is."""


def row_specs(
    artifact: Path,
    manifest: Manifest,
    recipe: Recipe,
    run: Path,
    backends: Sequence[BackendName],
    data_root: Path | None,
    *,
    teacher: int = 0,
) -> list[RowSpec]:
    """Returns what is compared: one teacher, the ensemble in its forms, and students, on each backend.

    Args:
        teacher: the number of that teacher.
    """
    specs = []
    for backend in backends:
        if needs_run(backend):
            # Compiling takes minutes per row, so torch.compile runs only what the comparison needs.
            students = [Subject("student", name=recipe.deploy)]
            if backend != "torch-compile":
                students = _students(recipe, recipe.students)
            found = _of_run([Subject("teacher", member=teacher), _IN_TURN, *students], run, data_root)
        else:
            found = _of_artifact(artifact, manifest, recipe.deploy, backend, teacher=teacher)
        specs += [RowSpec(subject, backend, source) for subject, source in found]
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
            roles = ("student", "ensemble") if is_other_ensemble else ("student",)
            found = [(subject, source) for subject, source in found if subject.role in roles]
        elif has_run:
            ensemble = [_IN_TURN] if is_other_ensemble else []
            students = [Subject("student", name=recipe.deploy)]
            if backend != "torch-compile":
                students = _students(recipe, (recipe.deploy,))
            found = _of_run([*ensemble, *students], run, data_root)
        else:
            continue
        specs += [RowSpec(subject, backend, source, label) for subject, source in found]
    return specs


def _students(recipe: Recipe, names: Iterable[str]) -> list[Subject]:
    """Returns students after the fold, and before it where there is one."""
    subjects = []
    for name in names:
        if recipe.students[name].method == "latent_be":
            subjects.append(Subject("members", name=name))
        subjects.append(Subject("student", name=name))
    return subjects


def _of_run(subjects: Iterable[Subject], run: Path, data_root: Path | None) -> list[_Found]:
    return [(subject, TorchSource(run, subject.network, data_root)) for subject in subjects]


def _of_artifact(
    artifact: Path, manifest: Manifest, student_name: str, backend: BackendName, *, teacher: int = 0
) -> list[_Found]:
    """Returns the subjects that the artifact has files of, for this backend."""
    library, student = _ENGINES.get(backend), Subject("student", name=student_name)
    precisions = ("fp32", "tf32", "fp16", "int8-trt") if library else _ONNX[backend]
    found: list[_Found] = []
    for precision in precisions:
        files: dict[str, list[EngineFile]] = {}
        unfit: dict[Path, str] = {}
        members = []
        for file in sorted(manifest.files, key=lambda file: file.member or 0):
            if file.format == (library or "onnx") and file.precision == precision:
                files.setdefault(file.role, []).append(EngineFile(artifact / file.path, file.sha256))
                members += [file.member] if file.role == "teacher" else []
                if file.not_for_openvino:
                    unfit[artifact / file.path] = file.not_for_openvino
        teachers = files.get("teacher", [])
        subjects = {
            Subject("teacher", member=teacher): [teachers[members.index(teacher)]] if teacher in members else [],
            _IN_TURN: teachers if len(members) == manifest.num_teachers else [],  # never an ensemble of fewer
            _MERGED: files.get("ensemble", []),
            student: files.get("student", []),
        }
        for subject, of_subject in subjects.items():
            if of_subject:
                # What divides the members' logits is part of a merged ensemble's own graph.
                temperature = manifest.member_temperature if subject == _IN_TURN else 1.0
                form = replace(subject, precision=_CLASSES[precision])
                how = manifest.preprocessing
                reason = next((unfit[file.path] for file in of_subject if file.path in unfit), None)
                found += _forms(form, of_subject, temperature, is_engine=library is not None, how=how, reason=reason)
    if library and not found:  # one row that says so, rather than none that does not
        found = [(subject, EngineSource(subject, ())) for subject in (_MERGED, student)]
    return found


def _forms(
    subject: Subject,
    files: list[EngineFile],
    member_temperature: float,
    *,
    is_engine: bool,
    how: Preprocessing,
    reason: str | None,
) -> list[_Found]:
    feed = None if (how.dtype, how.layout, how.value_range) == ("float32", "NCHW", (0.0, 1.0)) else how
    if not is_engine:
        return [(subject, OnnxSource(tuple(file.path for file in files), member_temperature, feed, reason))]
    forms = (replace(subject, cuda_graph=cuda_graph) for cuda_graph in (False, True))
    return [(form, EngineSource(form, tuple(files), member_temperature, feed)) for form in forms]


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
    # How a file is turned is another matter: here all get the same pixels, and older artifacts do not say it.
    if manifest.preprocessing.model_copy(update={"orientation": main.preprocessing.orientation}) != main.preprocessing:
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
