"""The bench in two sentences: how much faster and how much worse, and which file to ship on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from edc.bench.rows import Against, Row
from edc.bench.statistics import MARGIN, AccuracyComparison, Estimate

__all__ = ["BenchVerdict", "loss_difference", "row_to_ship", "verdict_on"]

WORDS = {"not worse": "not worse", "worse": "worse", "undecided": "not decided"}
BACKEND_WORDS = {
    "torch": "PyTorch",
    "torch-compile": "torch.compile",
    "torch-cuda": "PyTorch on CUDA",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime on CUDA",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO in bf16",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class BenchVerdict:
    """Two sentences on one row against the ensemble's best form, both named by key."""

    sentences: tuple[str, str]
    baseline: str
    row: str
    batch: int


def row_to_ship(
    rows: Sequence[Row], *, students: Mapping[str, str], validation_acc: Mapping[str, float], margin: float = MARGIN
) -> Row | None:
    """Returns the fastest row of the student's files that keeps its accuracy, at the smallest batch that was timed.

    Keeping it: on *validation* images no more than `margin` below the student's best fp32 row. Test images choose
    nothing; they tell what the chosen file is worth. PyTorch rows are no files: they count only where nothing else
    was measured.

    Args:
        students: the rows to choose from, by key, with their precision.
        validation_acc: their validation accuracy, by key.
    """
    timed = [row for row in rows if row.key in students and row.p50_ms and row.key in validation_acc]
    smallest = min((row.batch for row in timed), default=0)
    timed = [row for row in timed if row.batch == smallest and _ensemble(row) is not None]
    files = [row for row in timed if not row.backend.startswith("torch")] or timed
    full = max((acc for key, acc in validation_acc.items() if students.get(key) == "fp32"), default=0.0)
    holding = [row for row in files if validation_acc[row.key] >= full - margin]
    return min(holding, key=_p50, default=None)


def verdict_on(
    rows: Sequence[Row],
    *,
    students: Mapping[str, str],
    files: Mapping[str, str],
    validation_acc: Mapping[str, float],
    losses: Mapping[str, NDArray[np.float64]],
    seed: int,
) -> BenchVerdict | None:
    """Returns the two sentences, or None if no student could be held to an ensemble on its own backend.

    Args:
        students: by key, the precision of the rows to choose from.
        files: by key, the name of a row's file, if it is one.
        validation_acc: by key, the accuracy on validation images.
        losses: by key, the calibrated -log p(label) of each test image (N,).
    """
    row = row_to_ship(rows, students=students, validation_acc=validation_acc)
    against = None if row is None else _ensemble(row)
    if row is None or against is None or against.speedup is None or against.accuracy is None:
        return None
    form = against.baseline.rsplit(" on ", 1)[0].removeprefix("ensemble, ")
    backend = BACKEND_WORDS.get(row.backend, row.backend)
    first = (
        f"{row.subject} is {_times(against.speedup)} times as fast as the ensemble's best form ({form}) in {backend} "
        f"at batch {row.batch}, with {_points(against.accuracy)} of accuracy: "
        f"{WORDS[against.accuracy.verdict]} at the {100 * against.accuracy.margin:g}-point margin."
    )
    calibration = _calibration(row, against, losses, seed=seed)
    what = files.get(row.key, row.subject)
    reason = f"the fastest here that keeps its fp32 validation accuracy to {100 * MARGIN:g} points."
    return BenchVerdict(
        (first, f"{calibration}Ship {what} with {backend}: {reason}"), against.baseline, row.key, row.batch
    )


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
    if row.key not in losses or against.baseline not in losses:
        return ""
    of_row, of_baseline = losses[row.key], losses[against.baseline]
    change = loss_difference(of_row, of_baseline, seed=seed)
    interval = "" if change.low is None else f" ({change.low:+.3f} to {change.high:+.3f})"
    return (
        f"Each with its own temperature, its NLL is {of_row.mean():.3f} and the ensemble's {of_baseline.mean():.3f}, "
        f"a difference of {change.value:+.3f}{interval}. "
    )


def _ensemble(row: Row) -> Against | None:
    return next((against for against in row.against if against.basis == "ensemble"), None)


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
    return f"{value} points ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
