"""The fair comparison: a student against its ensemble, on the same backend, threads and images, taking turns."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edc import metrics
from edc.benchmark.backends.contract import Floats, OnnxSource
from edc.benchmark.environment import Environment, environment_now
from edc.benchmark.forecast import forecast
from edc.benchmark.judge.baselines import best_ensemble, compare_all, with_corrected_p
from edc.benchmark.judge.rows import Row, row_of
from edc.benchmark.judge.verdict import BenchVerdict, verdict_on
from edc.benchmark.measure.classes import few_classes_of, figures_by_class
from edc.benchmark.measure.curves import training_curves
from edc.benchmark.measure.disagreements import Disagreements, disagreements
from edc.benchmark.measure.quality import Predictions, Qualities, float_batches, predict_all, score_all
from edc.benchmark.measure.robustness import robustness, robustness_specs
from edc.benchmark.measure.server import ServerLoad, serve_loads
from edc.benchmark.measure.sweep import Throughput, batch_sizes, sweep
from edc.benchmark.options import BenchOptions
from edc.benchmark.packed import packed
from edc.benchmark.page.write import write_page
from edc.benchmark.request import BenchRequest, prepare
from edc.benchmark.result import BenchResult
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.benchmark.workers.protocol import LoadReport
from edc.console import console, duration
from edc.deploy.artifact.folder import artifact_lock
from edc.deploy.artifact.manifest import Manifest, load_manifest
from edc.errors import FailedError
from edc.progress import step
from edc.subject import Subject
from edc.system.files import remove_leftovers, write_json

__all__ = ["bench"]

Timings = Mapping[RowSpec, Timing | NotRun]


def bench(artifact: Path | str, options: BenchOptions | None = None) -> BenchResult:
    """Measures every subject on every backend, writes `bench.json` and `report.html` into the artifact.

    Quality comes first, timing after it, and nothing is written before the end: an interrupted bench leaves the
    files of the last one.

    Args:
        options: by default all backends that run here, with the artifact's run in `runs/`.

    Raises:
        EdcError: as `edc.benchmark.request.prepare`, before anything is measured.
        FailedError: not one row ran; the files of the last bench are still there.
    """
    artifact = Path(artifact)
    manifest = load_manifest(artifact)
    options = options or BenchOptions(run=Path("runs") / manifest.run)
    with artifact_lock(artifact):
        remove_leftovers(artifact)
        request = prepare(artifact, options)
        environment = environment_now(threads=options.threads)
        measured = _measure(request, options)
        result = _result(request, options, measured, environment.at_end())
        _require_some_row(result.rows)
        document = result.to_json()
        write_json(artifact / "bench.json", document)
        write_page(document, artifact / "report.html")
    return result


@dataclass(frozen=True, eq=False)
class _Measured:
    """The results of the workers."""

    loads: dict[RowSpec, LoadReport | NotRun]
    predictions: Predictions
    qualities: Qualities
    robustness: dict[str, list[dict[str, Any]]]
    timings: dict[int, Timings]
    """By batch size."""
    sweep_batches: tuple[int, ...]
    throughput: list[Throughput]
    server: list[ServerLoad]


def _measure(request: BenchRequest, options: BenchOptions) -> _Measured:
    plan, seed, specs = options.plan, options.seed, request.specs
    with WorkerPool(images=_timing_images(request), threads=options.threads) as pool:
        pool.start(request.backends)
        loads = _load_all(pool, specs)
        expected = forecast(pool, request, options)
        for line in (f"measuring {len(specs)} rows takes about {duration(expected.seconds)}", *expected.notes):
            console.print(line, highlight=False)
        with step(f"quality of {len(specs)} rows"):
            predictions = predict_all(pool, specs, request.data, limit=expected.quality_images, seed=seed)
            qualities = score_all(predictions, specs)
        robust = _robustness(pool, qualities, request, options) if expected.robustness else {}
        timings: dict[int, Timings] = {}
        for batch in expected.batches:
            with step(f"timing {len(specs)} rows in turn at batch {batch}"):
                with_memory = not options.quick or batch == expected.batches[-1]
                timings[batch] = pool.time(specs, batch=batch, plan=plan.timing, seed=seed, with_memory=with_memory)
        sizes = batch_sizes(expected.largest_batch, factor=plan.sweep_factor)
        with step(f"throughput at batch {', '.join(map(str, sizes))}"):
            throughput = sweep(pool, specs, batches=sizes, plan=plan.sweep, seed=seed, timed=timings)
        server = _serve(pool, request, options, timings.get(1)) if expected.server else []
    return _Measured(loads, predictions, qualities, robust, timings, tuple(sizes), throughput, server)


def _result(request: BenchRequest, options: BenchOptions, measured: _Measured, environment: Environment) -> BenchResult:
    """Returns the result: rows with their comparisons, the verdict, and the report's other parts."""
    seed, specs, qualities, predictions = options.seed, request.specs, measured.qualities, measured.predictions
    rows = _rows(request, measured, seed=seed)
    few_classes = few_classes_of(qualities, request.manifest.classes)
    teacher = request.teachers.words_where(drawn=options.quick)
    verdict = _verdict(rows, request, qualities, few_classes, teacher=teacher, seed=seed)
    return BenchResult(
        artifact=request.artifact.resolve().name,
        deploy=request.recipe.deploy,
        ensemble_size=request.recipe.teachers.size,
        command=options.command,
        quick=options.quick,
        seed=seed,
        num_test_images=len(predictions.test_labels),
        num_validation_images=len(predictions.validation_labels),
        test_digest=predictions.digest(),
        class_names=request.manifest.classes,
        plan=options.plan.timing,
        environment=environment,
        rows=rows,
        parameters=request.parameters,
        flops=request.flops,
        dee=_dee(request, qualities, predictions),
        students=frozenset(spec.key for spec in specs if _is_student(spec, request)),
        verdict=verdict,
        correct={spec.key: packed(correct) for spec, correct in qualities.correct.items()},
        reliability={spec.key: diagram for spec, diagram in qualities.reliability.items()},
        robustness=measured.robustness,
        by_class=figures_by_class(rows, verdict, qualities),
        few_classes=few_classes,
        teachers=request.teachers,
        majority=metrics.majority_of(predictions.test_labels, request.manifest.classes),
        sweep_batches=measured.sweep_batches,
        throughput=tuple(measured.throughput),
        server=tuple(measured.server),
        disagreements=_disagreements(predictions, qualities, specs, verdict, seed=seed),
        curves=training_curves(options.run, request.recipe, request.data),
    )


def _require_some_row(rows: tuple[Row, ...]) -> None:
    reasons = dict.fromkeys(f"{row.key}: {row.reason_not_run}" for row in rows)
    if all(row.reason_not_run for row in rows):
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise FailedError(f"bench: no row could run, so nothing was written. {next(iter(reasons), 'No rows')}{more}")


def _timing_images(request: BenchRequest) -> Floats:
    """Returns up to 16 batches of different real images, of the largest batch that is timed."""
    return np.concatenate(list(itertools.islice(float_batches(request.data.test, batch_size=request.max_batch), 16)))


def _load_all(pool: WorkerPool, specs: tuple[RowSpec, ...]) -> dict[RowSpec, LoadReport | NotRun]:
    loads = {}
    with step(f"loading {len(specs)} rows"):
        for spec in specs:
            loads[spec] = pool.load(spec)
    for spec, load in loads.items():
        if isinstance(load, NotRun):
            console.print(f"loading {spec.key}: {load.reason}", highlight=False)
    return loads


def _robustness(
    pool: WorkerPool, qualities: Qualities, request: BenchRequest, options: BenchOptions
) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of one row per subject, by key."""
    temperatures = {
        spec: None if isinstance(quality, NotRun) else quality.calibration_temperature
        for spec, quality in qualities.quality.items()
    }
    specs = robustness_specs([spec for spec in request.specs if spec in qualities.correct])
    with step(f"quality of {len(specs)} rows on corrupted images"):
        return robustness(
            pool, specs, request.data.test, temperatures=temperatures, quick=options.quick, seed=options.seed
        )


def _serve(pool: WorkerPool, request: BenchRequest, options: BenchOptions, timings: Timings | None) -> list[ServerLoad]:
    """Returns the server scenario of the student and of the ensemble's best form, for each backend that has both."""
    plan, specs = options.plan, request.specs
    if timings is None:
        timings = pool.time(specs, batch=1, plan=plan.sweep, seed=options.seed, with_memory=False)
    pairs = []
    for backend in request.backends:
        student = next((spec for spec in specs if spec.backend == backend and _is_student(spec, request)), None)
        if student is None:
            continue
        ensemble = best_ensemble(specs, timings, backend=backend, precision=student.precision)
        if ensemble is not None:
            pairs.append((student, ensemble))
    with step(f"{2 * len(pairs)} rows as servers at {len(plan.server.loads)} loads"):
        return serve_loads(pool, timings, pairs, plan=plan.server, bound_ms=options.latency_bound_ms, seed=options.seed)


def _rows(request: BenchRequest, measured: _Measured, *, seed: int) -> tuple[Row, ...]:
    rows = []
    for batch, timings in measured.timings.items():
        against = compare_all(request.specs, timings, measured.qualities.correct, seed=seed, flops=request.flops)
        rows += [
            row_of(
                spec,
                batch=batch,
                load=measured.loads[spec],
                timing=timings[spec],
                quality=measured.qualities.quality[spec],
                against=against[spec],
            )
            for spec in request.specs
        ]
    return with_corrected_p(rows)


def _verdict(
    rows: tuple[Row, ...],
    request: BenchRequest,
    qualities: Qualities,
    few_classes: Mapping[str, str],
    *,
    teacher: str,
    seed: int,
) -> BenchVerdict | None:
    files = {
        spec.key: spec.source.files[0].name
        for spec in request.specs
        if isinstance(spec.source, OnnxSource) and len(spec.source.files) == 1
    }
    return verdict_on(
        rows,
        students={spec.key: spec.precision for spec in request.specs if _is_student(spec, request)},
        files=files,
        validation_acc={spec.key: acc for spec, acc in qualities.validation_acc.items()},
        losses={spec.key: losses for spec, losses in qualities.losses.items()},
        few_classes=few_classes,
        teacher=teacher,
        seed=seed,
    )


def _is_student(spec: RowSpec, request: BenchRequest) -> bool:
    return spec.artifact is None and spec.subject.base == Subject("student", name=request.recipe.deploy)


def _disagreements(
    predictions: Predictions,
    qualities: Qualities,
    specs: tuple[RowSpec, ...],
    verdict: BenchVerdict | None,
    *,
    seed: int,
) -> Disagreements | None:
    """Returns the images on which the two rows of the verdict differ."""
    if verdict is None:
        return None
    by_key = {spec.key: spec for spec in specs}
    pair = by_key[verdict.row], by_key[verdict.baseline]
    return disagreements(predictions, qualities, student=pair[0], ensemble=pair[1], seed=seed)


def _ensemble_nlls(manifest: Manifest) -> list[float]:
    """Returns the calibrated NLL of ensembles of 1, 2, ... teachers; an older edc kept it with the merged file."""
    ensemble = next((file.metrics for file in manifest.files if file.role == "ensemble"), {})
    kept = [ensemble[key] for m in range(1, len(ensemble) + 1) if (key := f"calibrated_nll_of_{m}") in ensemble]
    return list(manifest.ensemble_calibrated_nll_by_size) or kept


def _dee(request: BenchRequest, qualities: Qualities, predictions: Predictions) -> dict[str, float | None]:
    """Returns the deep-ensemble equivalent of each row but the ensemble's own, from its own calibrated NLL.

    The ensembles it is read off were measured on all test images, so fewer (a quick bench) give none.
    """
    nlls = _ensemble_nlls(request.manifest)
    found: dict[str, float | None] = {}
    if not nlls or len(predictions.test_labels) < len(request.data.test):
        return found
    for spec, quality in qualities.quality.items():
        if isinstance(quality, NotRun) or quality.calibrated is None or spec.is_own_ensemble:
            continue
        value = metrics.dee(quality.calibrated.nll, nlls)
        found[spec.key] = value if np.isfinite(value) else None
    return found
