"""The rows of summary.json by subject."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edc import metrics
from edc.recipe import BestBy, Recipe
from edc.subject import Subject

__all__ = [
    "SAME_NLL",
    "best_teacher",
    "deployed_student",
    "has_temperature",
    "identity_of",
    "member_temperature",
    "recipe_names",
    "rows_by_subject",
    "seeds_in_words",
    "teacher_sets",
    "validation_score",
]

SAME_NLL = 1e-4
"""Relative: the NLL of one network, measured twice. Its last figures depend on the number of threads."""


def identity_of(subject: Subject) -> dict[str, Any]:
    """Returns the fields that identify a row's network; `subject` is for people, the others are for programs."""
    row: dict[str, Any] = {"subject": subject.label, "kind": subject.role}
    if subject.name is not None:
        row["name"] = subject.name
    if subject.member is not None:
        row["member"] = subject.member
    return row


def rows_by_subject(summary: dict[str, Any]) -> dict[Subject, dict[str, Any]]:
    """Returns the rows of summary.json by subject, in their order.

    Rows of an edc that wrote neither name nor member are told by their kind and their order: teachers by number, and
    members right before the student that they are folded into, whose `subject` was its bare name.
    """
    rows: list[dict[str, Any]] = summary["rows"]
    found: dict[Subject, dict[str, Any]] = {}
    num_teachers = 0
    for row, following in zip(rows, [*rows[1:], {}], strict=True):
        name, member = row.get("name"), row.get("member")
        match row["kind"]:
            case "teacher":
                member = num_teachers if member is None else member
                num_teachers += 1
            case "members":
                name = following.get("subject") if name is None else name
            case "student":
                name = row["subject"] if name is None else name
        found[Subject(row["kind"], name=name, member=member)] = row
    return found


def recipe_names(summary: dict[str, Any]) -> frozenset[str]:
    """Returns the names of the recipes that a summary is of: one, but of a run in parts (`edc.evidence.parts`)."""
    return frozenset(summary.get("recipes", (summary["name"],)))


def best_teacher(rows: Mapping[Subject, dict[str, Any]]) -> Subject | None:
    """Returns the teacher with the best validation accuracy, of equals the first; None if an older edc wrote none."""
    teachers = [subject for subject in rows if subject.role == "teacher"]
    if not teachers or any(rows[subject].get("validation") is None for subject in teachers):
        return None
    return max(teachers, key=lambda subject: float(rows[subject]["validation"]["acc"]))


def member_temperature(row: dict[str, Any]) -> float:
    """Returns what divides the logits of each member of a row before their mean; an older edc divided by nothing."""
    return float(row.get("member_temperature", 1.0))


def has_temperature(row: dict[str, Any]) -> bool:
    """Returns whether a row is calibrated: one that is right on all validation images has no temperature.

    It keeps the probabilities that it has, which is dividing by exactly 1. An older edc did not say what it divided by.
    """
    return not (row.get("calibration_temperature") == 1 and member_temperature(row) == 1)


def deployed_student(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the student that is exported: the recipe's, or with `deploy: best` the best on validation images.

    Of equals the first. Test images have no part in it.
    """
    if not recipe.deploys_best:
        return recipe.deploy
    students = [row for row in rows if row["kind"] == "student"]
    return str(min(students, key=lambda row: validation_score(row, by=recipe.best_by))["name"])


def validation_score(row: dict[str, Any], *, by: BestBy) -> float:
    """Returns what a student is chosen by, on validation images; lower is better.

    An older edc wrote none: that is the worst.
    """
    validation = row.get("validation")
    if validation is None:
        return math.inf
    acc, nll = float(validation["acc"]), float(validation["calibrated_nll"])
    return -acc if by == "accuracy" else metrics.selection_score(acc, nll)


def teacher_sets(summaries: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Returns which set of teachers each run has, from 0: runs whose teachers measure the same have the same ones."""
    sets: list[list[float]] = []
    found = []
    for summary in summaries:
        nlls = [row["raw"]["nll"] for subject, row in rows_by_subject(summary).items() if subject.role == "teacher"]
        for number, known in enumerate(sets):
            if len(known) == len(nlls) and all(abs(a - b) <= SAME_NLL * a for a, b in zip(known, nlls, strict=True)):
                found.append(number)
                break
        else:
            found.append(len(sets))
            sets.append(nlls)
    return tuple(found)


def seeds_in_words(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what tells each run from the others: its seed, and where runs share one, also its set of teachers."""
    seeds = [str(summary["seed"]) for summary in summaries]
    if len(set(seeds)) == len(seeds):
        return seeds
    return [f"{seed} (teachers {number + 1})" for seed, number in zip(seeds, teacher_sets(summaries), strict=True)]
