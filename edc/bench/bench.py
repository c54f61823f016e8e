"""The fair comparison: a student against its ensemble, on the same backend, threads and images, taking turns."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edc import metrics
from edc.bench.backends import BackendName, is_installed, require_installed
from edc.bench.backends.contract import Floats
from edc.bench.environment import Environment, environment_now
from edc.bench.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.bench.rows import Against, Row, RowQuality, fastest, quality_of, row_of, speedup
from edc.bench.specs import INT8, is_ensemble, is_int8, row_specs
from edc.bench.statistics import compare_accuracy
from edc.bench.timing import TimingPlan
from edc.data import DataSet, Images, evaluation_batches, load_data
from edc.data.data_set import take
from edc.deploy.manifest import Manifest, load_manifest, verify_files
from edc.errors import RequestError, RunError
from edc.files import write_json
from edc.recipe import Recipe
from edc.report.progress import console
from edc.run import RunFolder
from edc.seeding import generator_for

__all__ = ["BenchResult", "bench"]

SCHEMA_VERSION = 1
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
    if "torch" in chosen:
        _require_same_run(run, manifest)
    data = _load_data(recipe, data_root)
    environment = environment_now(threads=threads)
    specs = row_specs(artifact, manifest, recipe, run, chosen, data_root)
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


def _qualities(pool: WorkerPool, specs: list[RowSpec], data: DataSet, *, limit: int | None, seed: int) -> _Qualities:
    """Runs test and validation images through every row."""
    outputs, labels = {}, {}
    for name, split in (("test", data.test), ("validation", data.validation)):
        images = split
        if limit is not None and limit < len(split):  # drawn, not the first: files may be sorted by class
            images = take(split, torch.randperm(len(split), generator=generator_for(seed, "quick"))[:limit])
        console.print(f"predicting {len(images):,} {name} images", highlight=False)
        outputs[name] = pool.predict(specs, _float_batches(images))
        labels[name] = images.labels.numpy()
    quality: dict[RowSpec, RowQuality | NotRun] = {}
    correct = {}
    for spec in specs:
        test, validation = outputs["test"][spec], outputs["validation"][spec]
        failed = next((each for each in (test, validation) if isinstance(each, NotRun)), None)
        if failed is not None or isinstance(test, NotRun) or isinstance(validation, NotRun):
            quality[spec] = failed or NotRun("no predictions")
            continue
        ensemble = next((outputs["test"][s] for s in specs if s.backend == spec.backend and is_ensemble(s)), None)
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
    for backend, precision in dict.fromkeys(((spec.backend, is_int8(spec)), ("torch", False))):
        forms = {
            s: t for s, t in timings.items() if s.backend == backend and is_ensemble(s) and is_int8(s) == precision
        }
        best = fastest(forms)
        if best is None or best == spec:
            continue
        accuracy = None
        if best in qualities.correct and spec in qualities.correct:
            accuracy = compare_accuracy(qualities.correct[best], qualities.correct[spec], seed=seed)
        found.append(Against(best.key, speedup(forms[best], timings[spec], seed=seed), accuracy))
    return found


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


def _require_same_run(run: Path, manifest: Manifest) -> None:
    """Raises if `run` is another run than the artifact's; an absent one only costs the torch rows."""
    folder = RunFolder(run)
    if folder.recipe_path.is_file() and folder.recipe().digest() != manifest.recipe_sha256:
        raise RequestError(
            f"{run}: is not the run this artifact was made from (another recipe). Name the right one with --run, "
            "or leave torch out: --backends onnxruntime"
        )


def _load_data(recipe: Recipe, data_root: Path | None) -> DataSet:
    update = {"root": data_root} if data_root is not None else {}
    return load_data(recipe.data.model_copy(update=update))


def _float_batches(images: Images, batch_size: int = 256) -> Iterator[Floats]:
    """Yields images as the networks take them."""
    for pixels, _ in evaluation_batches(images, batch_size=batch_size):
        yield (pixels.float() / 255).numpy()


def _timing_images(images: Images, max_batch: int) -> Floats:
    """Returns up to 16 batches of different real images."""
    batches = _float_batches(images, batch_size=max_batch)
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
