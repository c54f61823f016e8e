"""Each row against what it must be held to: the ensemble here, the ensemble in torch, and its own fp32 file."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edc.bench.pool import NotRun, RowSpec, Timing
from edc.bench.rows import Against, Basis, Row, fastest, speedup
from edc.bench.specs import base_subject, is_ensemble, precision_class
from edc.bench.statistics import AccuracyComparison, compare_accuracy, holm

__all__ = ["best_ensemble", "compare_all", "with_corrected_p"]

ON_GPU = ("torch-cuda", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
Correct = NDArray[np.bool_]
Timings = Mapping[RowSpec, Timing | NotRun]


def compare_all(
    specs: Sequence[RowSpec], timings: Timings, correct: Mapping[RowSpec, Correct], *, seed: int
) -> dict[RowSpec, tuple[Against, ...]]:
    """Returns every row's comparisons, of one batch size; a baseline that did not run is not there."""
    return {
        spec: tuple(
            Against(
                baseline.key,
                basis,
                speedup(timings[baseline], timings[spec], seed=seed),
                _accuracy(baseline, spec, correct, seed=seed),
            )
            for baseline, basis in _baselines(spec, specs, timings).items()
        )
        for spec in specs
    }


def best_ensemble(
    specs: Sequence[RowSpec], timings: Timings, *, backend: str, precision: str = "fp32"
) -> RowSpec | None:
    """Returns the fastest form of the artifact's own ensemble on a backend and in a precision: the fair baseline."""
    forms = [
        spec
        for spec in specs
        if (spec.backend, precision_class(spec)) == (backend, precision) and is_ensemble(spec) and not spec.artifact
    ]
    return fastest({spec: timings[spec] for spec in forms if spec in timings})


def with_corrected_p(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Returns the rows with Holm's correction over all accuracy tests of the bench, each counted once.

    Batch sizes do not change predictions: a row and its baseline are one test, however often they are timed.
    """
    p_values = {
        (row.key, against.baseline): against.accuracy.paired.p_value
        for row in rows
        for against in row.against
        if against.accuracy is not None
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))

    def with_p(row: Row, against: Against) -> Against:
        if against.accuracy is None:
            return against
        accuracy = dataclasses.replace(against.accuracy, p_corrected=corrected[row.key, against.baseline])
        return dataclasses.replace(against, accuracy=accuracy)

    return tuple(
        dataclasses.replace(row, against=tuple(with_p(row, against) for against in row.against)) for row in rows
    )


def _baselines(spec: RowSpec, specs: Sequence[RowSpec], timings: Timings) -> dict[RowSpec, Basis]:
    """Returns what `spec` is held to, and as what; never itself."""
    torch = "torch-cuda" if spec.backend in ON_GPU else "torch"
    wanted: list[tuple[RowSpec | None, Basis]] = [
        (best_ensemble(specs, timings, backend=spec.backend, precision=precision_class(spec)), "ensemble"),
        (best_ensemble(specs, timings, backend=torch), "ensemble in torch"),
        (_fp32_file(spec, specs), "fp32"),
    ]
    found: dict[RowSpec, Basis] = {}
    for baseline, basis in wanted:
        if baseline is not None and baseline != spec:
            found.setdefault(baseline, basis)
    return found


def _fp32_file(spec: RowSpec, specs: Sequence[RowSpec]) -> RowSpec | None:
    """Returns the row of the same network in fp32 on the same backend, for a row that is in less."""
    if precision_class(spec) == "fp32":
        return None
    wanted = (spec.artifact, base_subject(spec), spec.backend.removesuffix("-bf16"), "fp32")
    return next((o for o in specs if (o.artifact, base_subject(o), o.backend, precision_class(o)) == wanted), None)


def _accuracy(
    baseline: RowSpec, spec: RowSpec, correct: Mapping[RowSpec, Correct], *, seed: int
) -> AccuracyComparison | None:
    """Returns the paired comparison; none between two forms of one ensemble, which are one function."""
    same_function = is_ensemble(baseline) and is_ensemble(spec) and _of_ensemble(baseline) == _of_ensemble(spec)
    if same_function or baseline not in correct or spec not in correct:
        return None
    return compare_accuracy(correct[baseline], correct[spec], seed=seed)


def _of_ensemble(spec: RowSpec) -> tuple[str | None, str]:
    return spec.artifact, precision_class(spec)
