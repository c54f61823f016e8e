"""The results of each network of a run on each test image; intervals over test images are computed from them.

One predictions.npz in the run's folder is of the teachers and the ensemble; one in each student's folder is of the
student and its members. Each row is one network, in the order of summary.json.

    correct (R, N) bool             whether the most probable class is the label
    calibrated_nll (R, N) float32   -log p(label) in nats, after calibration
    labels (N,) int32               they show whether two runs have the same images
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from edc.errors import RunError
from edc.metrics import Labels
from edc.runs.folder import RunFolder
from edc.runs.rows import rows_by_subject
from edc.subject import Subject
from edc.system.files import write_atomically

__all__ = ["PerImage", "per_image_of", "read_per_image", "write_per_image"]

FILE = "predictions.npz"
ANEW = "Remove it and the run's summary.json, and call edc distill again: it trains nothing, and writes both anew."


@dataclass(frozen=True, eq=False)
class PerImage:
    """One network's results on the test images. Shapes: both (N,)."""

    correct: NDArray[np.bool_]
    calibrated_nll: NDArray[np.float64]


def per_image_of(log_probs: NDArray[np.float64], calibrated: NDArray[np.float64], labels: Labels) -> PerImage:
    """Returns a network's results from its log-probabilities (N, K), raw and calibrated."""
    return PerImage(log_probs.argmax(1) == labels, -calibrated[np.arange(len(labels)), labels])


def write_per_image(run: RunFolder, results: Mapping[Subject, PerImage], labels: Labels) -> None:
    """Writes the results of a run's networks, given in the order of its rows; an equal file is left as it is."""
    for path, subjects in _by_file(run, results).items():
        arrays = {
            "correct": np.stack([results[subject].correct for subject in subjects]),
            "calibrated_nll": np.stack([results[subject].calibrated_nll for subject in subjects]).astype(np.float32),
            "labels": np.asarray(labels, np.int32),
        }
        if path.is_file() and _says_the_same(path, arrays):
            continue
        with write_atomically(path) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_per_image(run: RunFolder, summary: dict[str, Any]) -> tuple[dict[Subject, PerImage], Labels] | None:
    """Returns the results of every row of the run's summary, and the labels; None if an older edc wrote none.

    Raises:
        RunError: a file is damaged, or belongs to another summary.
    """
    rows = rows_by_subject(summary)
    files = _by_file(run, rows)
    if not all(path.is_file() for path in files):
        return None
    results: dict[Subject, PerImage] = {}
    for path, subjects in files.items():
        arrays = _arrays(path)
        labels = arrays["labels"]
        accuracies = [rows[subject]["raw"]["acc"] for subject in subjects]
        if arrays["correct"].shape != (len(subjects), summary["data"]["test"]) or not np.allclose(
            arrays["correct"].mean(1), accuracies, rtol=0, atol=1e-9
        ):
            raise RunError(f"{path}: is not of the networks that summary.json is about. {ANEW}")
        for row, subject in enumerate(subjects):
            results[subject] = PerImage(arrays["correct"][row], arrays["calibrated_nll"][row].astype(np.float64))
    return results, labels.astype(np.int64)


def _by_file(run: RunFolder, subjects: Iterable[Subject]) -> dict[Path, list[Subject]]:
    files: dict[Path, list[Subject]] = {}
    for subject in subjects:
        folder = run.path if subject.name is None else run.student_path(subject.name)
        files.setdefault(folder / FILE, []).append(subject)
    return files


def _says_the_same(path: Path, arrays: dict[str, NDArray[Any]]) -> bool:
    """Returns whether the file has these figures, up to rounding, which depends on the number of threads."""
    try:
        held = _arrays(path)
    except RunError:
        return False
    return (
        np.array_equal(held["correct"], arrays["correct"])
        and np.array_equal(held["labels"], arrays["labels"])
        and np.allclose(held["calibrated_nll"], arrays["calibrated_nll"], rtol=1e-3, atol=1e-4)
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a file, after a check that their shapes fit one another."""
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("correct", "calibrated_nll", "labels")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise RunError(f"{path}: damaged ({error}). {ANEW}") from None
    if (
        arrays["correct"].shape != arrays["calibrated_nll"].shape
        or arrays["correct"].shape[1:] != arrays["labels"].shape
    ):
        raise RunError(f"{path}: damaged (its arrays do not fit one another). {ANEW}")
    return arrays
