"""The bench in words: speed-up, loss of accuracy, the file to ship on this machine, and doubts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from edc.benchmark.judge.rows import Against, Basis, Row
from edc.benchmark.judge.statistics import MARGIN, AccuracyComparison, Estimate
from edc.subject import Subject

__all__ = ["BenchVerdict", "loss_difference", "row_to_ship", "verdict_on"]

WORDS = {"not worse": "not worse", "worse": "worse", "undecided": "not decided"}
BACKEND_WORDS = {
    "torch": "PyTorch",
    "torch-compile": "torch.compile",
    "torch-cuda": "PyTorch on CUDA",
    "torch-cuda-tf32": "PyTorch on CUDA in TF32",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime on CUDA",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO in bf16",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class BenchVerdict:
    """The statement about one row against the ensemble's best form, both named by key.

    `sentences`: whoever predicts one or few classes; the two that matter (speed and accuracy; which file), then
    calibration, one teacher, and doubts.
    """

    sentences: tuple[str, ...]
    baseline: str
    row: str
    batch: int


def row_to_ship(
    rows: Sequence[Row], *, students: Mapping[str, str], validation_acc: Mapping[str, float], margin: float = MARGIN
) -> Row | None:
    """Returns the fastest row of the student's files that keeps its accuracy, at the smallest batch that was timed.

    A row keeps it if it is at most `margin` below the student's best fp32 row on *validation* images. Test images
    choose nothing; they only measure the chosen file. PyTorch rows are no files: they count only if nothing else was
    measured.

    Args:
        students: the rows to choose from, by key, with their precision.
        validation_acc: their validation accuracy, by key.
    """
    timed = [row for row in rows if row.key in students and row.p50_ms and row.key in validation_acc]
    smallest = min((row.batch for row in timed), default=0)
    return min(_holding(rows, smallest, students, validation_acc, margin), key=_p50, default=None)


def _holding(
    rows: Sequence[Row], batch: int, students: Mapping[str, str], validation_acc: Mapping[str, float], margin: float
) -> list[Row]:
    """Returns the rows of one batch size to choose from: files that keep the student's validation accuracy."""
    timed = [row for row in rows if row.batch == batch and row.key in students and row.p50_ms]
    timed = [row for row in timed if row.key in validation_acc]
    if all(_against(row, "ensemble") is None for row in timed):
        return []
    files = [row for row in timed if not row.backend.startswith("torch")] or timed
    full = max((acc for key, acc in validation_acc.items() if students.get(key) == "fp32"), default=0.0)
    return [row for row in files if validation_acc[row.key] >= full - margin]


def verdict_on(
    rows: Sequence[Row],
    *,
    students: Mapping[str, str],
    files: Mapping[str, str],
    validation_acc: Mapping[str, float],
    losses: Mapping[str, NDArray[np.float64]],
    seed: int,
    few_classes: Mapping[str, str] = MappingProxyType({}),
    teacher: str = "",
) -> BenchVerdict | None:
    """Returns the sentences, or None if no student could be compared with an ensemble on its own backend.

    Args:
        rows: all of the bench, the baselines too.
        students: by key, the precision of the rows to choose from.
        files: by key, the name of a row's file, if it is one.
        validation_acc: by key, the accuracy on validation images.
        losses: by key, the calibrated -log p(label) of each test image (N,).
        few_classes: by key, that a row predicts one or few classes, in words.
        teacher: which one "one teacher" is, and what all have, in words.
    """
    shipped = row = row_to_ship(rows, students=students, validation_acc=validation_acc)
    if shipped is not None and _against(shipped, "ensemble") is None:  # the ensemble runs on another backend alone
        beside = [each for each in rows if each.batch == shipped.batch and each.key in students and each.p50_ms]
        row = min((each for each in beside if _against(each, "ensemble")), key=_p50, default=None)
    against = None if row is None else _against(row, "ensemble")
    if shipped is None or row is None or against is None or against.speedup is None or against.accuracy is None:
        return None
    candidates = {
        batch: _holding(rows, batch, students, validation_acc, MARGIN)
        for batch in sorted({each.batch for each in rows})
    }
    baseline = next(each for each in rows if (each.key, each.batch) == (against.baseline, row.batch))
    sentences = (
        *_one_or_few_classes(row, baseline, against, few_classes),
        _speed_and_accuracy(row, baseline.subject, against.accuracy, against.speedup),
        _file_to_ship(shipped, candidates, files),
        _calibration(row, against, losses, seed=seed),
        _one_teacher(row, teacher),
        _doubts(row, baseline),
    )
    return BenchVerdict(tuple(filter(None, sentences)), against.baseline, row.key, row.batch)


def _one_or_few_classes(row: Row, baseline: Row, against: Against, few_classes: Mapping[str, str]) -> list[str]:
    """Returns a sentence on the row and on its ensemble, if one predicts few classes: nothing else matters then."""
    named = {row.key: row.subject.label, against.accuracy_baseline or baseline.key: "The ensemble"}
    return [f"{name} {few_classes[key]}." for key, name in named.items() if key in few_classes]


def _speed_and_accuracy(row: Row, ensemble: Subject, accuracy: AccuracyComparison, speedup: Estimate) -> str:
    form = f"{ensemble.ensemble_form}{ensemble.how_it_runs}"
    of_row, of_ensemble = accuracy.paired.candidate_accuracy, accuracy.paired.reference_accuracy
    return (
        f"{row.subject.label} is {_times(speedup)} times as fast as the ensemble's best form ({form}) in "
        f"{_backend(row)} at batch {row.batch}, and right on {100 * of_row:.2f} % of the test images where the "
        f"ensemble is right on {100 * of_ensemble:.2f} %: {_points(accuracy)}, {WORDS[accuracy.verdict]} at the "
        f"{100 * accuracy.margin:g}-point margin."
    )


def _file_to_ship(row: Row, candidates: Mapping[int, Sequence[Row]], files: Mapping[str, str]) -> str:
    """Returns the sentence on the fastest file, on those that cannot be told from it, and on larger batches."""

    def named(each: Row) -> str:
        return f"{files.get(each.key, each.subject.label)} in {_backend(each)}"

    limit = row.p50_ms.high if row.p50_ms and row.p50_ms.high else _p50(row)
    equals = [each for each in candidates[row.batch] if each.key != row.key and each.p50_ms]
    equals = [each for each in equals if each.p50_ms and (each.p50_ms.low or each.p50_ms.value) <= limit]
    sentence = (
        f"Of the student's files that keep its fp32 validation accuracy to {100 * MARGIN:g} points, {named(row)} is "
        f"the fastest at batch {row.batch}"
    )
    if equals:
        sentence += f" ({', '.join(map(named, equals))} cannot be told from it)"
    for batch, holding in candidates.items():
        best = min(holding, key=_p50, default=None)
        if best is not None and batch > row.batch:
            sentence += f" and at batch {batch}" if best.key == row.key else f", {named(best)} is at batch {batch}"
    return sentence + "."


def _one_teacher(row: Row, who: str) -> str:
    """Returns the sentence on one teacher, which costs the same without any distillation."""
    against = _against(row, "teacher")
    if against is None or against.accuracy is None:
        return ""
    speed = "" if against.speedup is None else f", at {_times(against.speedup)} times its speed"
    acc = 100 * against.accuracy.paired.reference_accuracy
    verdict = WORDS[against.accuracy.verdict]
    who = f" ({who})" if who else ""
    differs = f"the student differs by {_points(against.accuracy)}, {verdict}{speed}"
    return f"One teacher alone{who} has {acc:.2f} %: {differs}."


def _doubts(row: Row, baseline: Row) -> str:
    """Returns the sentence on flags of the speed-up's measurement, and on why it may be wrong."""
    against = _against(row, "ensemble")
    doubts = list(against.doubts) if against else []
    flags = {flag.split(":")[0] for each in (row, baseline) for flag in each.flags}
    if flags:
        doubts.append(f"flagged while it was measured: {', '.join(sorted(flags))}")
    return f"Doubts about the speed: {'; '.join(doubts)}." if doubts else ""


def loss_difference(row: NDArray[np.float64], baseline: NDArray[np.float64], *, seed: int) -> Estimate:
    """Returns the mean of row - baseline, two losses of the same images, and its 95 % bootstrap interval over images.

    Shapes:
        row, baseline (N,)
    """
    difference = row - baseline
    if len(difference) < 2 or np.ptp(difference) == 0:
        return Estimate(float(difference.mean()), None, None)
    low, high = bootstrap(
        (difference,), np.mean, n_resamples=2000, batch=50, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(float(difference.mean()), float(low), float(high))


def _calibration(row: Row, against: Against, losses: Mapping[str, NDArray[np.float64]], *, seed: int) -> str:
    baseline = against.accuracy_baseline or against.baseline
    if row.key not in losses or baseline not in losses:
        return ""
    of_row, of_baseline = losses[row.key], losses[baseline]
    change = loss_difference(of_row, of_baseline, seed=seed)
    interval = "" if change.low is None else f" ({change.low:+.3f} to {change.high:+.3f})"
    return (
        f"Each with its own temperature, its NLL is {of_row.mean():.3f} and the ensemble's {of_baseline.mean():.3f}, "
        f"a difference of {change.value:+.3f}{interval}."
    )


def _against(row: Row, basis: Basis) -> Against | None:
    return next((against for against in row.against if against.basis == basis), None)


def _backend(row: Row) -> str:
    return BACKEND_WORDS.get(row.backend, row.backend)


def _p50(row: Row) -> float:
    return row.p50_ms.value if row.p50_ms else float("inf")


def _times(ratio: Estimate) -> str:
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f}-{ratio.high:.2f})"
    return f"{ratio.value:.2f}{interval}"


def _points(accuracy: AccuracyComparison) -> str:
    difference = accuracy.difference
    value = "0.00" if difference.value == 0 else f"{100 * difference.value:+.2f}"
    if difference.low is None or difference.high is None:
        return f"{value} points"
    return f"{value} points ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
