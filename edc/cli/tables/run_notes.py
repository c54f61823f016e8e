"""What is said below the table of runs: few classes, the zero line, a teacher above its ensemble, a failed fold, a
calibration on hardly any mistake."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edc import metrics
from edc.runs.rows import best_teacher, has_temperature, rows_by_subject, seeds_in_words
from edc.subject import Subject

__all__ = [
    "beaten_by_a_teacher",
    "below_their_members",
    "below_their_start",
    "few_classes",
    "hardly_calibrated",
    "remarks",
    "zero_line",
]

LEAST_OF_MEMBERS = 0.9
"""Share of its unfolded members' accuracy below which a fold is named; it costs tenths of a point where all is well."""
FEW_WRONG = 5
"""Wrong answers to validation images below which a temperature is named: its relative error is about 1 / sqrt(them)."""


def remarks(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what a reader of the table has to know of its networks, one sentence each."""
    of_students = (*below_their_start(summaries), *below_their_members(summaries))
    return [*few_classes(summaries), *beaten_by_a_teacher(summaries), *of_students, *hardly_calibrated(summaries)]


def zero_line(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Returns what always saying the most frequent class is right on; "" if an older edc did not write it."""
    majority = summaries[0]["data"].get("majority")
    return "" if majority is None else f"always `{majority['class']}`: acc {100 * majority['share']:.2f} %"


def few_classes(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each network that predicts one or few classes of the test images, or leaves one out."""
    found = []
    for summary, rows, at_seed in _named_by_seed(summaries):
        for subject, row in rows.items():
            known = row.get("by_class")
            words = known and metrics.in_words(known["images"], known["predicted"], summary["data"]["classes"])
            if words:
                found.append(f"{subject.label}{at_seed}: {words}")
    return found


def beaten_by_a_teacher(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each run with a teacher that is right on more validation images than its ensemble."""
    found = []
    for _, rows, at_seed in _named_by_seed(summaries):
        best, ensemble = best_teacher(rows), rows.get(Subject("ensemble"))
        if best is None or ensemble is None or ensemble.get("validation") is None:
            continue
        of_best, of_ensemble = (100 * row["validation"]["acc"] for row in (rows[best], ensemble))
        if of_best > of_ensemble:
            found.append(
                f"{best.label}{at_seed}: right on {of_best:.2f} % of the validation images, its ensemble on "
                f"{of_ensemble:.2f} %"
            )
    return list(dict.fromkeys(found))


def below_their_start(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each student that is right on fewer validation images than the teacher it started from."""
    found = []
    for _, rows, at_seed in _named_by_seed(summaries):
        for subject, row in rows.items():
            member = row.get("started_from_teacher")
            teacher = None if member is None else Subject("teacher", member=member)
            if teacher not in rows or any(one.get("validation") is None for one in (row, rows[teacher])):
                continue
            now, then = (100 * one["validation"]["acc"] for one in (row, rows[teacher]))
            if now < then:
                found.append(
                    f"{subject.label}{at_seed}: right on {now:.2f} % of the validation images, {teacher.label}, from "
                    f"whose weights it started, on {then:.2f} %: more epochs, or a lower training.learning_rate"
                )
    return found


def below_their_members(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each student whose fold is right on far fewer validation images than its members are."""
    found = []
    for summary, rows, at_seed in _named_by_seed(summaries):
        for subject, row in rows.items():
            members = rows.get(Subject("members", subject.name)) if subject.role == "student" else None
            if members is None or any(one.get("validation") is None for one in (row, members)):
                continue
            folded, unfolded = (one["validation"]["acc"] for one in (row, members))
            chance = 2 * (unfolded * (1 - unfolded) / summary["data"]["validation"]) ** 0.5
            if folded < min(LEAST_OF_MEMBERS * unfolded, unfolded - chance):
                found.append(
                    f"{subject.label}{at_seed}: right on {100 * folded:.2f} % of the validation images, its members "
                    f"before the fold on {100 * unfolded:.2f} %: they may have drifted apart; a lower "
                    "training.factor_rate (default 1; then 0.25) may keep them together"
                )
    return found


def hardly_calibrated(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each run in which networks are calibrated by hardly any wrong answer, or by none."""
    found = []
    for summary, rows, at_seed in _named_by_seed(summaries):
        num_images = summary["data"]["validation"]
        none, hardly = [], []
        for subject, row in rows.items():
            if row.get("validation") is None:
                continue
            wrong = round((1 - row["validation"]["acc"]) * num_images)
            if wrong == 0 and not has_temperature(row):
                none.append(subject.label)
            elif wrong < FEW_WRONG:
                hardly.append(subject.label)
        images = f"{num_images:,} validation images{at_seed}"
        if none:
            why = "which say nothing of how sure it may be: not calibrated"
            found.append(f"{', '.join(none)}: right on all {images}, {why}")
        if hardly:
            found.append(f"{', '.join(hardly)}: wrong on fewer than {FEW_WRONG} of {images}: calibrated by these alone")
    return found


def _named_by_seed(
    summaries: Sequence[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], dict[Subject, dict[str, Any]], str]]:
    """Yields each run, its rows, and what names its seed where there are several runs."""
    for summary, seed in zip(summaries, seeds_in_words(summaries), strict=True):
        yield summary, rows_by_subject(summary), f", seed {seed}" if len(summaries) > 1 else ""
