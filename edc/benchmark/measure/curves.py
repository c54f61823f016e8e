"""Training curves of the run an artifact came from, as its metrics.jsonl files have them."""

import math
from dataclasses import dataclass
from pathlib import Path

from edc.data import DataSet
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.subject import Subject
from edc.teachers.ensemble import teacher_key
from edc.train.saved.epochs import read_metrics

__all__ = ["CurvePoint", "training_curves"]


@dataclass(frozen=True)
class CurvePoint:
    """One epoch. Epochs that were not validated have no accuracy."""

    epoch: int
    loss: float
    validation_acc: float | None


def training_curves(run: Path, recipe: Recipe, data: DataSet) -> dict[Subject, tuple[CurvePoint, ...]]:
    """Returns the curve of every teacher and student that left one; nothing where the run is gone."""
    folder = RunFolder(run)
    if not folder.recipe_path.is_file():
        return {}
    paths = {Subject("student", name=name): folder.student_path(name) for name in recipe.students}
    if not recipe.teachers.checkpoints:
        keys = (teacher_key(recipe, data, m)[0] for m in range(recipe.teachers.size))
        paths = {Subject("teacher", member=m): folder.teachers_path / key for m, key in enumerate(keys)} | paths
    curves = {subject: _curve(path / "metrics.jsonl") for subject, path in paths.items()}
    return {subject: curve for subject, curve in curves.items() if curve}


def _curve(path: Path) -> tuple[CurvePoint, ...]:
    """Returns the epochs of a file; a line that a crash cut off is left out."""
    points = []
    for record in read_metrics(path):
        loss, acc = record.get("loss"), record.get("validation_acc")
        if loss is not None and math.isfinite(float(loss)):
            points.append(CurvePoint(int(record["epoch"]), float(loss), None if acc is None else float(acc)))
    return tuple(points)
