"""Reads finished runs of one recipe for a comparison: the figures of every row, per image where known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edc.errors import RunError
from edc.evidence.parts import RunInParts, join_parts
from edc.metrics import Labels
from edc.recipe.equal_cost import units_per_step
from edc.runs.folder import TEST_IMAGES, RunFolder, first_difference
from edc.runs.per_image import PerImage, read_per_image
from edc.runs.rows import recipe_names, rows_by_subject
from edc.subject import Subject
from edc.train.saved.epochs import read_metrics

__all__ = ["MEASURES", "Measure", "Over", "ReadRun", "Together", "read_runs"]

Array = NDArray[np.float64]
Measure = Literal["acc", "calibrated_nll"]
Over = Literal["seeds and test images", "seeds", "test images", "nothing"]

MEASURES: tuple[Measure, ...] = ("acc", "calibrated_nll")


@dataclass(frozen=True, eq=False)
class ReadRun:
    """A run as read. `cells` are the figures of every row: (N,), per test image, or () if these are not known."""

    run: RunInParts
    rows: dict[Subject, dict[str, Any]]
    cells: dict[Measure, dict[Subject, Array]]
    num_images: int
    """0 if figures per image are not known."""

    def cell(self, measure: Measure, subject: Subject | None) -> Array:
        """Returns the figures of a row; None stands for one teacher."""
        of_rows = self.cells[measure]
        if subject is not None:
            return of_rows[subject]
        teachers = np.stack([cell for other, cell in of_rows.items() if other.role == "teacher"])
        return np.asarray(teachers.mean(0), np.float64)

    def units(self, name: str) -> float | None:
        """Returns the cost of a student's training in forward passes of a batch.

        Older edcs did not write it; it then follows from the run's recipe, if there is one.
        """
        row = self.rows.get(Subject("student", name=name), {})
        if "training" in row:
            return float(row["training"]["units"])
        folder = self.run.folder_of(name)
        if not folder.recipe_path.is_file() or name not in (recipe := folder.recipe()).students:
            return None
        section, training = recipe.students[name], recipe.training_of(recipe.students[name])
        num_steps = training.epochs * (self.run.summary["data"]["train"] // training.batch_size)
        return float(units_per_step(section, recipe.teachers.size) * num_steps)

    def hours(self, name: str) -> float | None:
        """Returns how long a student trained, by the last complete line of its metrics.jsonl."""
        epochs = read_metrics(self.run.folder_of(name).student_path(name) / "metrics.jsonl")
        known = [float(epoch["seconds"]) for epoch in epochs if epoch.get("seconds") is not None]
        return known[-1] / 3600 if known else None


@dataclass(frozen=True)
class Together:
    """Runs that can be compared, with notes on the comparison."""

    runs: tuple[ReadRun, ...]
    teachers: tuple[int, ...]
    """Which set of teachers each run has, from 0."""
    over: Over
    """What the intervals are over."""
    notes: tuple[str, ...]


def read_runs(folders: Sequence[RunFolder]) -> Together:
    """Returns finished runs that differ in seeds, in teachers, or in both; each may be in parts (`join_parts`).

    Raises:
        RunError: a run is unfinished, given twice, or of another recipe or ensemble size.
    """
    runs = join_parts(folders)
    sets = tuple(run.teachers for run in runs)
    _require_comparable(runs)
    found = [_per_image(run) for run in runs]
    known = [of_run for of_run in found if of_run is not None]
    notes = [*_about_spread(runs), *_about_teachers(sets)]
    has_images = False
    if len(known) < len(found):
        without = ", ".join(str(folder.path) for folder in folders if read_per_image(folder, folder.summary()) is None)
        notes.append(
            f"{without}: no predictions.npz, which older edcs did not write, so that no test images are resampled. "
            "Remove its summary.json and call edc distill again: nothing is trained, and both are written"
        )
    elif _other_content(folders, TEST_IMAGES) or any(not np.array_equal(labels, known[0][1]) for _, labels in known):
        notes.append("the runs have other test images than one another, so that these are not resampled")
    else:
        has_images = True
    over: Over = "seeds and test images" if has_images else "seeds"
    if len(runs) == 1:
        over = "test images" if has_images else "nothing"
        notes.append("one seed says nothing about the spread of training")
    read = []
    for run, of_run in zip(runs, found, strict=True):
        rows = rows_by_subject(run.summary)
        by_image = of_run[0] if has_images and of_run else None
        cells = {m: {s: _cell(m, row, by_image[s] if by_image else None) for s, row in rows.items()} for m in MEASURES}
        read.append(ReadRun(run, rows, cells, num_images=run.summary["data"]["test"] if has_images else 0))
    return Together(tuple(read), sets, over, tuple(notes))


def _per_image(run: RunInParts) -> tuple[dict[Subject, PerImage], Labels] | None:
    """Returns the results of every row of all parts, and the labels; None if one of them has none."""
    results: dict[Subject, PerImage] = {}
    labels: Labels | None = None
    for folder, summary in zip(run.folders, run.summaries, strict=True):
        if (of_part := read_per_image(folder, summary)) is None:
            return None
        if labels is not None and not np.array_equal(labels, of_part[1]):
            raise RunError(
                f"{folder.path}: has other test images than {run.folders[0].path}, and its seed and teachers; "
                "show them one at a time"
            )
        labels = of_part[1]
        results = of_part[0] | results
    return None if labels is None else (results, labels)


def _require_comparable(runs: Sequence[RunInParts]) -> None:
    names = [recipe_names(run.summary) for run in runs]
    if not frozenset.intersection(*names):
        of_all = ", ".join(sorted(frozenset.union(*names)))
        raise RunError(f"runs of different recipes ({of_all}) cannot be averaged; show them one at a time")
    sizes = sorted({run.summary["ensemble_size"] for run in runs})
    if len(sizes) > 1:
        raise RunError(f"runs of ensembles of {' and '.join(map(str, sizes))} cannot be averaged; show them apart")


def _about_spread(runs: Sequence[RunInParts]) -> list[str]:
    """Returns what differs, in more than seeds and students, between runs and the first of their recipe's name or with
    one of their students, or in the images that they learned from: a note for each difference, with all folders that
    have it.
    """
    first_of: dict[Subject | str, RunFolder] = {}
    differing: dict[str, list[str]] = {}
    for run in runs:
        for folder, summary in zip(run.folders, run.summaries, strict=True):
            students = [subject for subject in rows_by_subject(summary) if subject.role == "student"]
            for first in dict.fromkeys(first_of.setdefault(key, folder) for key in (summary["name"], *students)):
                for difference in [] if first is folder else _what_differs(first, folder):
                    differing.setdefault(difference, []).append(str(folder.path))
    return [
        f"{', '.join(paths)}: {difference}; the spread is not of seeds alone" for difference, paths in differing.items()
    ]


def _what_differs(first_folder: RunFolder, folder: RunFolder) -> list[str]:
    differences = []
    if first_folder.recipe_path.is_file() and folder.recipe_path.is_file():
        first, recipe = first_folder.recipe(), folder.recipe()
        if folder.best_by(recipe) != first_folder.best_by(first):
            differences.append(f"chose the best epochs of its students by another measure than {first_folder.path}")
        # Students that only one of them has are in another part, or are left out and named.
        first, recipe = (
            one.model_copy(
                update={
                    "name": first.name,
                    "seed": 0,
                    "teachers": one.teachers.model_copy(update={"seed": 0}),
                    "students": {name: one.students[name] for name in first.students if name in recipe.students},
                    "deploy": first.deploy,
                    "deploy_by": None,
                }
            )
            for one in (first, recipe)
        )
        if recipe.digest() != first.digest():
            difference = first_difference(first, recipe).replace("asked for", "here")
            differences.append(f"differs from {first_folder.path} in {difference}")
    differences += [
        f"learned from other content of {name} than {first_folder.path}"
        for name in ("the images", "the extra images")
        if _other_content([first_folder, folder], name)
    ]
    return differences


def _other_content(folders: Sequence[RunFolder], name: str) -> list[RunFolder]:
    """Returns the runs whose inputs.json has another digest of `name` than the first one's, if both have one."""
    digests = [(folder.inputs() or {}).get(name) for folder in folders]
    return [
        folder
        for folder, digest in zip(folders, digests, strict=True)
        if None not in (digest, digests[0]) and digest != digests[0]
    ]


def _about_teachers(sets: Sequence[int]) -> list[str]:
    if len(sets) < 2:
        return []
    if len(set(sets)) == 1:
        return ["all runs have the same teachers: the intervals are of students of these"]
    return [f"{len(set(sets))} sets of teachers: each run is compared with its own"]


def _cell(measure: Measure, row: dict[str, Any], result: PerImage | None) -> Array:
    if measure == "acc":
        return np.asarray(row["raw"]["acc"] if result is None else result.correct, np.float64)
    return np.asarray(row["calibrated"]["nll"] if result is None else result.calibrated_nll, np.float64)
