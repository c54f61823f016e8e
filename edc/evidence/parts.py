"""Runs of one seed and one set of teachers whose students are others: one run in parts.

Students are trained in parts where each job of a cluster trains one, or where a student was added by a second recipe.
They are compared as students of one run are: on the same test images, with the same teachers and ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edc.errors import RunError
from edc.recipe import BestBy
from edc.runs.folder import RunFolder, first_difference
from edc.runs.rows import SAME_NLL, rows_by_subject, teacher_sets, validation_score
from edc.subject import Subject

__all__ = ["RunInParts", "join_parts"]

Rows = dict[Subject, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class RunInParts:
    """A run whose students are in one folder or more. `summary` is of all of them together."""

    folders: tuple[RunFolder, ...]
    summaries: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    teachers: int
    """Which set of teachers it has, from 0."""

    @property
    def label(self) -> str:
        """What to call the run: the names of its folders."""
        return " + ".join(folder.path.name for folder in self.folders)

    def folder_of(self, student: str) -> RunFolder:
        """Returns the folder that a student is in, the first of several.

        Raises:
            RunError: it is in none.
        """
        for folder, summary in zip(self.folders, self.summaries, strict=True):
            if student in _students(rows_by_subject(summary)):
                return folder
        raise RunError(f"{self.label}: has no student {student!r}")


def join_parts(folders: Sequence[RunFolder]) -> tuple[RunInParts, ...]:
    """Returns the runs that folders are of, in their order: those of one seed and one set of teachers are one.

    Raises:
        RunError: a run is unfinished, or two of one seed and one set of teachers trained the same student.
    """
    summaries = [folder.summary() for folder in folders]
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (summary, teachers) in enumerate(zip(summaries, teacher_sets(summaries), strict=True)):
        groups.setdefault((summary["seed"], teachers), []).append(number)
    runs = []
    for (_, teachers), numbers in groups.items():
        of_run, own = tuple(folders[number] for number in numbers), tuple(summaries[number] for number in numbers)
        for later in range(1, len(numbers)):
            for earlier in range(later):
                _require_other_students(of_run[earlier], own[earlier], of_run[later], own[later])
        runs.append(RunInParts(of_run, own, _joined(of_run, own), teachers))
    return tuple(runs)


def _require_other_students(
    first: RunFolder, first_summary: dict[str, Any], second: RunFolder, second_summary: dict[str, Any]
) -> None:
    """Raises `RunError` if both runs trained one student, or one of them has none that the other has not.

    A student that is the same network in both was copied, which is how runs share one.
    """
    rows, second_rows = rows_by_subject(first_summary), rows_by_subject(second_summary)
    names, second_names = _students(rows), _students(second_rows)
    same_seed = f"{second.path}: has seed {second_summary['seed']} and the teachers of {first.path}"
    common = [name for name in second_names if name in names]
    if set(names) <= set(second_names) or set(second_names) <= set(names):
        if differs := _difference(first, second):
            raise RunError(
                f"{same_seed}, and differs from it in {differs}; runs are averaged over seeds. Show them one at a "
                "time, or give the student another name: students of other names are compared as those of one run."
            )
        raise RunError(f"{same_seed}; the same training twice is no evidence of spread. Name runs with other seeds.")
    for name in common:
        one, other = (float(of[Subject("student", name=name)]["raw"]["nll"]) for of in (rows, second_rows))
        if abs(one - other) > SAME_NLL * one:
            raise RunError(
                f"{same_seed}, and another student of the name {name!r}, so that these runs cannot be shown as one. "
                "Give it another name, or show them one at a time."
            )


def _difference(first: RunFolder, second: RunFolder) -> str | None:
    """Returns the first field in which the recipes of two runs of one seed differ, if both have one and do."""
    if not (first.recipe_path.is_file() and second.recipe_path.is_file()):
        return None
    held, asked = first.recipe(), second.recipe()
    if held.digest() == asked.digest():
        return None
    return first_difference(held, asked).replace("asked for", f"in {second.path}")


def _joined(folders: Sequence[RunFolder], summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one summary: what the first says, with the students of all.

    `deploy_by` is what the deployed student was chosen by, on validation images: None where a recipe names it.
    """
    measures = {_deploys_by(folder) for folder in folders}
    deploy_by = measures.pop() if len(measures) == 1 else None
    if len(summaries) == 1:
        return summaries[0] | {"deploy_by": deploy_by}
    rows: Rows = {}
    for summary in summaries:
        for subject, row in rows_by_subject(summary).items():
            rows.setdefault(subject, row)
    names = list(dict.fromkeys(str(summary["name"]) for summary in summaries))
    deployed = {str(summary["deploy"]) for summary in summaries}
    joined = {
        **summaries[0],
        "name": " + ".join(names),
        "recipes": names,
        "rows": list(rows.values()),
        "deploy": min(deployed, key=lambda name: _score(rows, name, by=deploy_by or "calibrated_nll")),
        "deploy_by": deploy_by,
    }
    for field in ("chosen", "fold_choice"):
        joined[field] = {name: value for summary in summaries for name, value in summary.get(field, {}).items()}
    return joined


def _deploys_by(folder: RunFolder) -> BestBy | None:
    """Returns what the run's deployed student was chosen by; None if its recipe names it, or is not there."""
    if not folder.recipe_path.is_file():
        return None
    recipe = folder.recipe()
    return recipe.best_by if recipe.deploys_best else None


def _score(rows: Rows, student: str, *, by: BestBy) -> float:
    return validation_score(rows.get(Subject("student", name=student), {}), by=by)


def _students(rows: Rows) -> list[str]:
    return [subject.name for subject in rows if subject.role == "student" and subject.name is not None]
