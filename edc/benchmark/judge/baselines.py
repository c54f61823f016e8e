"""Each row against its baselines: the ensemble here and in torch, one teacher, and its own fp32 file."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edc.benchmark.backends import ON_GPU, in_fp32
from edc.benchmark.judge.rows import Against, Basis, Row, fastest, speedup
from edc.benchmark.judge.statistics import (
    AccuracyComparison,
    Estimate,
    compare_accuracy,
    decided,
    holm,
    images_per_second,
)
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing

__all__ = ["best_ensemble", "compare_all", "doubts_about", "with_corrected_p"]

DOUBT = 1.5
"""A speed-up that differs from images per second, or exceeds the saving in FLOPs, by this factor is doubted."""
Correct = NDArray[np.bool_]
Timings = Mapping[RowSpec, Timing | NotRun]


def compare_all(
    specs: Sequence[RowSpec],
    timings: Timings,
    correct: Mapping[RowSpec, Correct],
    *,
    seed: int,
    flops: Mapping[str, int] = MappingProxyType({}),
) -> dict[RowSpec, tuple[Against, ...]]:
    """Returns every row's comparisons, of one batch size; a baseline that did not run is not there.

    Args:
        flops: of an image, by key, where they are known.
    """
    return {
        spec: tuple(
            _against(spec, baseline, basis, specs, timings, correct, seed=seed, flops=flops)
            for baseline, basis in _baselines(spec, specs, timings).items()
        )
        for spec in specs
    }


def _against(
    spec: RowSpec,
    baseline: RowSpec,
    basis: Basis,
    specs: Sequence[RowSpec],
    timings: Timings,
    correct: Mapping[RowSpec, Correct],
    *,
    seed: int,
    flops: Mapping[str, int],
) -> Against:
    full = _in_fp32(baseline, specs) or baseline
    # The ensemble's answers in torch and here differ by rounding only: one test of the two is enough.
    accuracy = None if basis == "ensemble in torch" else _accuracy(full, spec, correct, seed=seed)
    ratio = speedup(timings[baseline], timings[spec], seed=seed)
    of_baseline, of_row = flops.get(baseline.key), flops.get(spec.key)
    flops_ratio = of_baseline / of_row if of_baseline and of_row else None
    throughput_ratio = _throughput_ratio(timings[baseline], timings[spec])
    # Another precision or another library may be faster than FLOPs say.
    expected = flops_ratio if basis in ("ensemble", "teacher") else None
    return Against(
        baseline.key,
        basis,
        ratio,
        accuracy,
        None if accuracy is None else full.key,
        flops_ratio,
        throughput_ratio,
        doubts_about(ratio, flops_ratio=expected, throughput_ratio=throughput_ratio),
    )


def doubts_about(
    ratio: Estimate | None, *, flops_ratio: float | None, throughput_ratio: float | None
) -> tuple[str, ...]:
    """Returns reasons to doubt a speed-up.

    On a busy machine a row shorter than the scheduler's slice is interrupted less often than a long one. The ratio of
    medians then exceeds the ratio of images per second and the saving in arithmetic.
    """
    if ratio is None:
        return ()
    doubts = []
    if throughput_ratio and not 1 / DOUBT < ratio.value / throughput_ratio < DOUBT:
        doubts.append(f"{ratio.value:.2f} times as fast by medians, {throughput_ratio:.2f} times by images per second")
    if flops_ratio and ratio.value > DOUBT * max(flops_ratio, 1.0):  # what calls cost brings small networks near 1
        doubts.append(f"{ratio.value:.2f} times as fast with {flops_ratio:.2f} times fewer FLOPs")
    return tuple(doubts)


def _throughput_ratio(baseline: Timing | NotRun, row: Timing | NotRun) -> float | None:
    if isinstance(baseline, NotRun) or isinstance(row, NotRun):
        return None
    of_baseline, of_row = (images_per_second(timing.samples.all, batch=timing.batch) for timing in (baseline, row))
    return of_row / of_baseline if of_baseline and of_row else None


def best_ensemble(
    specs: Sequence[RowSpec], timings: Timings, *, backend: str, precision: str = "fp32"
) -> RowSpec | None:
    """Returns the fastest form of the artifact's own ensemble on a backend and in a precision: the fair baseline."""
    forms = [spec for spec in specs if (spec.backend, spec.precision) == (backend, precision) and spec.is_own_ensemble]
    return fastest({spec: timings[spec] for spec in forms if spec in timings})


def with_corrected_p(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Returns the rows with Holm's correction over all accuracy tests of the bench, each counted once.

    There are two families: McNemar's tests of any difference, and the tests against the margin, which give the
    verdicts. Batch sizes do not change predictions: a row and its baseline are one test, however often they are timed.
    """
    tests = {
        (row.key, against.accuracy_baseline): against.accuracy
        for row in rows
        for against in row.against
        if against.accuracy is not None
    }
    of_difference = dict(zip(tests, holm([test.paired.p_value for test in tests.values()]), strict=True))
    of_margin = dict(zip(tests, holm([test.p_margin for test in tests.values()]), strict=True))

    def with_p(row: Row, against: Against) -> Against:
        accuracy = against.accuracy
        if accuracy is None:
            return against
        name = row.key, against.accuracy_baseline
        verdict = decided(of_margin[name], accuracy.difference.value, margin=accuracy.margin)
        accuracy = dataclasses.replace(
            accuracy, verdict=verdict, p_corrected=of_difference[name], p_margin_corrected=of_margin[name]
        )
        return dataclasses.replace(against, accuracy=accuracy)

    return tuple(
        dataclasses.replace(row, against=tuple(with_p(row, against) for against in row.against)) for row in rows
    )


def _baselines(spec: RowSpec, specs: Sequence[RowSpec], timings: Timings) -> dict[RowSpec, Basis]:
    """Returns the baselines of `spec` with the basis of each; never itself."""
    torch = "torch-cuda" if spec.backend in ON_GPU else "torch"
    wanted: list[tuple[RowSpec | None, Basis]] = [
        (best_ensemble(specs, timings, backend=spec.backend, precision=spec.precision), "ensemble"),
        (best_ensemble(specs, timings, backend=torch), "ensemble in torch"),
        (None if spec.subject.is_ensemble else _teacher(spec, specs), "teacher"),
        (_in_fp32(spec, specs), "fp32"),
    ]
    found: dict[RowSpec, Basis] = {}
    for baseline, basis in wanted:
        if baseline is not None and baseline != spec:
            found.setdefault(baseline, basis)
    return found


def _teacher(spec: RowSpec, specs: Sequence[RowSpec]) -> RowSpec | None:
    """Returns the row of one teacher alone, on the same backend and in the same precision."""
    wanted = (None, "teacher", spec.backend, spec.subject.precision, spec.subject.cuda_graph)

    def what(other: RowSpec) -> tuple[object, ...]:
        of = other.subject
        return other.artifact, of.role, other.backend, of.precision, of.cuda_graph

    return next((other for other in specs if what(other) == wanted), None)


def _in_fp32(spec: RowSpec, specs: Sequence[RowSpec]) -> RowSpec | None:
    """Returns the row of the same network in fp32 on the same backend, for a row that is in less."""
    if spec.precision == "fp32":
        return None
    wanted = (spec.artifact, spec.subject.base, in_fp32(spec.backend), "fp32")
    return next((o for o in specs if (o.artifact, o.subject.base, o.backend, o.precision) == wanted), None)


def _accuracy(
    baseline: RowSpec, spec: RowSpec, correct: Mapping[RowSpec, Correct], *, seed: int
) -> AccuracyComparison | None:
    """Returns the paired comparison; none between two forms of one ensemble, which are one function."""
    are_ensembles = baseline.subject.is_ensemble and spec.subject.is_ensemble
    same_function = are_ensembles and (baseline.artifact, baseline.precision) == (spec.artifact, spec.precision)
    if same_function or baseline == spec or baseline not in correct or spec not in correct:
        return None
    return compare_accuracy(correct[baseline], correct[spec], seed=seed)
