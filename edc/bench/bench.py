"""The fair comparison: a student against its ensemble, on the same backend, threads and images, taking turns."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edc import metrics
from edc.bench.backends import BackendName, is_installed, require_installed
from edc.bench.backends.contract import Floats, OnnxSubject, TorchSubject
from edc.bench.environment import Environment, environment_now
from edc.bench.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.bench.rows import Against, Row, RowQuality, fastest, quality_of, row_of, speedup
from edc.bench.statistics import compare_accuracy
from edc.bench.timing import TimingPlan
from edc.data import DataSet, Images, evaluation_batches, load_data
from edc.deploy.manifest import Manifest, load_manifest, verify_files
from edc.errors import RequestError, RunError
from edc.files import write_json
from edc.recipe import Recipe
from edc.report.progress import console
from edc.run import RunFolder

__all__ = ["BenchResult", "bench"]

SCHEMA_VERSION = 1
INT8 = " (int8)"
"""At the end of the name of a subject that runs in 8 bits."""
ONNX_BACKENDS: tuple[BackendName, ...] = ("onnxruntime", "openvino")
QUICK_PLAN = TimingPlan(seconds_per_row=0.6, num_rounds=12, max_windows=15)
QUICK_IMAGES = 2000
"""Images that quality is measured on with `quick`; all of them without."""


@dataclass(frozen=True)
class BenchResult:
    """All rows of a bench, and what they were measured on."""

    artifact: str
    deploy: str
    ensemble_size: int
    rows: tuple[Row, ...]
    parameters: dict[str, int]
    """By subject."""
    dee: dict[str, float | None]
    """By `subject on backend`; 0 is worse than one teacher, infinity (here None) better than all."""
    num_test_images: int
    environment: Environment

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                **row.to_json(),
                "parameters": self.parameters.get(row.subject),
                "dee": self.dee.get(f"{row.subject} on {row.backend}"),
            }
            for row in self.rows
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "artifact": self.artifact,
            "deploy": self.deploy,
            "ensemble_size": self.ensemble_size,
            "num_test_images": self.num_test_images,
            "environment": self.environment.to_json(),
            "rows": rows,
        }


def bench(
    artifact: Path,
    *,
    run: Path,
    data_root: Path | None,
    backends: Sequence[BackendName] | None,
    batches: Sequence[int] | None,
    threads: int,
    quick: bool,
    seed: int = 0,
) -> BenchResult:
    """Measures every subject on every backend, writes `bench.json` into the artifact, and returns the result.

    Args:
        run: the run the artifact came from, for the torch rows; they say so if it is not there.
        backends: None takes every one that is installed.
        batches: None takes 1 and the largest that the artifact was checked for.

    Raises:
        ArtifactError: the artifact is missing, damaged or changed.
        RequestError: a batch over what the artifact was checked for, a backend that is not installed.
    """
    manifest = load_manifest(artifact)
    verify_files(artifact, manifest)
    batches = _batches(manifest, batches)
    for name in backends or ():
        require_installed(name)
    chosen = [name for name in (backends or ("torch", *ONNX_BACKENDS)) if is_installed(name)]
    recipe = RunFolder(artifact).recipe()
    data = _load_data(recipe, data_root)
    environment = environment_now(threads=threads)
    specs = _specs(artifact, manifest, recipe, run, chosen, data_root)
    with WorkerPool(images=_timing_images(data.test, max(batches)), threads=threads) as pool:
        pool.start(chosen)
        loads = {spec: _said(pool.load(spec), f"loading {spec.key}") for spec in specs}
        limit = QUICK_IMAGES if quick else None
        qualities = _qualities(pool, specs, data, limit=limit, seed=seed)
        plan = QUICK_PLAN if quick else TimingPlan()
        rows: list[Row] = []
        for batch in batches:
            console.print(f"timing {len(specs)} rows in turn at batch {batch}", highlight=False)
            timings = pool.time(specs, batch=batch, plan=plan, seed=seed)
            for spec in specs:
                rows.append(
                    row_of(
                        spec,
                        batch=batch,
                        load=loads[spec],
                        timing=timings[spec],
                        quality=qualities.quality[spec],
                        against=_comparisons(spec, timings, qualities, seed=seed),
                    )
                )
    result = BenchResult(
        artifact=artifact.name,
        deploy=recipe.deploy,
        ensemble_size=recipe.teachers.size,
        rows=tuple(rows),
        parameters=_parameters(manifest, recipe, run),
        dee=_dee(manifest, qualities.quality),
        num_test_images=min(len(data.test), limit or len(data.test)),
        environment=environment.at_end(),
    )
    write_json(artifact / "bench.json", result.to_json())
    return result


@dataclass(frozen=True)
class _Qualities:
    """Quality of every row, and which test images it gets right."""

    quality: dict[RowSpec, RowQuality | NotRun]
    correct: dict[RowSpec, NDArray[np.bool_]]


def _specs(
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


def _qualities(pool: WorkerPool, specs: list[RowSpec], data: DataSet, *, limit: int | None, seed: int) -> _Qualities:
    """Runs test and validation images through every row."""
    outputs, labels = {}, {}
    for name, images in (("test", data.test), ("validation", data.validation)):
        console.print(f"predicting {min(len(images), limit or len(images)):,} {name} images", highlight=False)
        outputs[name] = pool.predict(specs, _float_batches(images, limit))
        labels[name] = images.labels.numpy()[:limit]
    labels = {
        name: images.labels.numpy()[:limit] for name, images in (("test", data.test), ("validation", data.validation))
    }
    quality: dict[RowSpec, RowQuality | NotRun] = {}
    correct = {}
    for spec in specs:
        test, validation = outputs["test"][spec], outputs["validation"][spec]
        failed = next((each for each in (test, validation) if isinstance(each, NotRun)), None)
        if failed is not None or isinstance(test, NotRun) or isinstance(validation, NotRun):
            quality[spec] = failed or NotRun("no predictions")
            continue
        ensemble = next((outputs["test"][s] for s in specs if s.backend == spec.backend and _is_ensemble(s)), None)
        quality[spec] = quality_of(
            test,
            labels["test"],
            validation_outputs=validation,
            validation_labels=labels["validation"],
            ensemble_outputs=None if isinstance(ensemble, NotRun) else ensemble,
        )
        correct[spec] = test.argmax(1) == labels["test"]
    return _Qualities(quality, correct)


def _comparisons(
    spec: RowSpec, timings: dict[RowSpec, Timing | NotRun], qualities: _Qualities, *, seed: int
) -> list[Against]:
    """Returns the row against the ensemble's best form: same backend and precision, then torch in fp32."""
    found = []
    for backend, precision in dict.fromkeys(((spec.backend, _is_int8(spec)), ("torch", False))):
        forms = {
            s: t for s, t in timings.items() if s.backend == backend and _is_ensemble(s) and _is_int8(s) == precision
        }
        best = fastest(forms)
        if best is None or best == spec:
            continue
        accuracy = None
        if best in qualities.correct and spec in qualities.correct:
            accuracy = compare_accuracy(qualities.correct[best], qualities.correct[spec], seed=seed)
        found.append(Against(best.key, speedup(forms[best], timings[spec], seed=seed), accuracy))
    return found


def _is_ensemble(spec: RowSpec) -> bool:
    return spec.subject.startswith("ensemble")


def _is_int8(spec: RowSpec) -> bool:
    return spec.subject.endswith(INT8)


def _batches(manifest: Manifest, batches: Sequence[int] | None) -> list[int]:
    """Returns the batch sizes to measure: those asked for, or 1 and the largest that the artifact was checked for."""
    if manifest.preprocessing.dtype != "float32":
        raise RequestError("artifact: takes uint8 pixels; bench needs one with float input (edc export --input float)")
    limits = [file.max_batch for file in manifest.files if file.max_batch is not None]
    largest = min(limits, default=64)
    if batches is None:
        return sorted({1, largest})
    too_large = [batch for batch in batches if batch > largest]
    if too_large:
        raise RequestError(
            f"--batch: {too_large[0]} is over {largest}, the largest batch this artifact was checked for; "
            f"export again with --max-batch {too_large[0]}"
        )
    return list(batches)


def _load_data(recipe: Recipe, data_root: Path | None) -> DataSet:
    update = {"root": data_root} if data_root is not None else {}
    return load_data(recipe.data.model_copy(update=update))


def _float_batches(images: Images, limit: int | None, batch_size: int = 256) -> Iterator[Floats]:
    """Yields the first `limit` images as the networks take them."""
    left = limit or len(images)
    for pixels, _ in evaluation_batches(images, batch_size=batch_size):
        yield (pixels[:left].float() / 255).numpy()
        left -= len(pixels)
        if left <= 0:
            return


def _timing_images(images: Images, max_batch: int) -> Floats:
    """Returns up to 16 batches of different real images."""
    wanted = 16 * max_batch
    batches = _float_batches(images, min(wanted, len(images)), batch_size=max_batch)
    return np.concatenate(list(itertools.islice(batches, 16)))


def _parameters(manifest: Manifest, recipe: Recipe, run: Path) -> dict[str, int]:
    """Returns parameters by subject: what the summary of the run says, or the manifest without it."""
    of_file = {file.role: int(file.metrics["parameters"]) for file in manifest.files if "parameters" in file.metrics}
    found = {"teacher 0": of_file.get("teacher"), recipe.deploy: of_file.get("student")}
    found |= dict.fromkeys(("ensemble, in turn", "ensemble, merged"), of_file.get("ensemble"))
    with suppress(RunError):
        found |= {row["subject"]: row["parameters"] for row in RunFolder(run).summary()["rows"]}
    found |= {f"{subject}{INT8}": parameters for subject, parameters in found.items()}
    return {subject: parameters for subject, parameters in found.items() if parameters is not None}


def _dee(manifest: Manifest, qualities: dict[RowSpec, RowQuality | NotRun]) -> dict[str, float | None]:
    """Returns the deep-ensemble equivalent of each row, from its own calibrated NLL."""
    ensemble = next((file.metrics for file in manifest.files if file.role == "ensemble"), {})
    nlls = [ensemble[key] for m in range(1, len(ensemble) + 1) if (key := f"calibrated_nll_of_{m}") in ensemble]
    found: dict[str, float | None] = {}
    for spec, quality in qualities.items():
        if not nlls or isinstance(quality, NotRun) or quality.calibrated is None:
            continue
        value = metrics.dee(quality.calibrated.nll, nlls)
        found[spec.key] = value if np.isfinite(value) else None
    return found


def _said(report: Any, doing: str) -> Any:
    if isinstance(report, NotRun):
        console.print(f"{doing}: {report.reason}", highlight=False)
    return report
