"""What a bench compares: which subjects of an artifact and its run, on which backends."""

from collections.abc import Sequence
from pathlib import Path

from edc.bench.backends import BackendName
from edc.bench.backends.contract import OnnxSubject, TorchSubject
from edc.bench.pool import RowSpec
from edc.deploy.manifest import Manifest
from edc.recipe import Recipe

__all__ = ["INT8", "is_ensemble", "is_int8", "row_specs"]

INT8 = " (int8)"
"""At the end of the name of a subject that runs in 8 bits."""


def row_specs(
    artifact: Path,
    manifest: Manifest,
    recipe: Recipe,
    run: Path,
    backends: Sequence[BackendName],
    data_root: Path | None,
) -> list[RowSpec]:
    """Returns what is compared: one teacher, the ensemble in its forms, and students, on each backend."""
    files: dict[tuple[str, str], list[Path]] = {}
    for file in manifest.files:
        if file.format == "onnx":
            files.setdefault((file.role, file.precision), []).append(artifact / file.path)
    specs = []
    for backend in backends:
        if backend == "torch":
            subjects = {"teacher 0": "teacher 0", "ensemble, in turn": "ensemble"}
            for name, student in recipe.students.items():
                if student.method == "latent_be":
                    subjects[f"{name} (members)"] = f"{name} (members)"
                subjects[name] = name
            specs += [
                RowSpec(label, backend, TorchSubject(run, subject, data_root)) for label, subject in subjects.items()
            ]
            continue
        # fp16 is left out: x86 CPUs emulate it. int8-trt is TensorRT's flavour, which these would run in float.
        for precision, suffix in (("fp32", ""), ("int8-cpu", INT8)):
            teachers = files.get(("teacher", precision), [])
            subjects_files = {
                "teacher 0": teachers[:1],
                "ensemble, in turn": teachers,
                "ensemble, merged": files.get(("ensemble", precision), []),
                recipe.deploy: files.get(("student", precision), []),
            }
            specs += [
                RowSpec(f"{label}{suffix}", backend, OnnxSubject(tuple(paths)))
                for label, paths in subjects_files.items()
                if paths
            ]
    return specs


def is_ensemble(spec: RowSpec) -> bool:
    """Returns whether the row is a form of the ensemble."""
    return spec.subject.startswith("ensemble")


def is_int8(spec: RowSpec) -> bool:
    """Returns whether the row runs in 8 bits."""
    return spec.subject.endswith(INT8)
