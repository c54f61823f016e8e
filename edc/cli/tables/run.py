"""Tables for people: of one run, of several seeds, of a cost estimate."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from edc.cli.tables.run_notes import remarks, zero_line
from edc.console import TextRow, count, duration, fitting_table, fixed, left_out_words
from edc.errors import RunError
from edc.runs.choice import Choice
from edc.runs.cost import Cost
from edc.runs.rows import best_teacher, recipe_names, rows_by_subject, seeds_in_words, teacher_sets
from edc.subject import Subject
from edc.train.average import LEAST_STEPS

__all__ = ["COLUMNS", "mean_rows", "print_costs", "print_summaries", "shown_columns"]

COLUMNS = ("acc %", "bal %", "F1 %", "NLL", "ECE", "cNLL", "cECE", "DEE", "params", "runs")
GIVES_WAY = ("cECE", "NLL", "ECE", "params", "runs", "DEE", "F1 %", "bal %")
"""In this order, where the terminal is too narrow for all."""
COST_COLUMNS = ("units a step", "steps", "units", "ms a step", "time")
COST_GIVES_WAY = ("units a step", "ms a step", "steps", "units")
LONG_AVERAGE = 0.2
"""Of the steps of a training: averages over more lost to the network itself, results/student_average.md."""
BY_CLASS = ("bal %", "F1 %")
"""Left out if an older edc did not measure them, or if they say what the accuracy says."""


def print_summaries(summaries: Sequence[dict[str, Any]], *, console: Console) -> None:
    """Prints one row per network; over several runs of one recipe, mean and standard deviation over the seeds.

    If there is no room for all columns, some are left out and named. Says in which form members were trained, and warns
    if the averaged runs differ in it.
    """
    seeds = sorted(summary["seed"] for summary in summaries)
    first = summaries[0]
    data = first["data"]
    training = f"{_numbers(summaries, 'train')} training"
    training += f", {_numbers(summaries, 'extra')} extra" if data.get("extra") else ""
    title = f"{first['name']}: {data['kind']}, {training} and {_numbers(summaries, 'test')} test images, "
    title += f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ±sd over seeds {', '.join(map(str, seeds))}"
    forms = _member_forms(summaries)
    made = mean_rows(summaries)
    columns = shown_columns(made)
    chosen = {summary["deploy"] for summary in summaries}
    rows = [
        TextRow(
            row["label"],
            {column: cell for column, cell in zip(COLUMNS, row["cells"], strict=True) if column in columns},
            "bold" if row["subject"] in [Subject("student", name=name) for name in chosen] else None,
        )
        for row in made
    ]
    table, left_out = fitting_table(title, rows, columns, gives_way=GIVES_WAY, console=console)
    table.caption = "\n".join(filter(None, [_caption(summaries, forms, columns), left_out_words(left_out)]))
    console.print(table)
    for line in remarks(summaries):
        console.print(line, style="bold", highlight=False, soft_wrap=True)
    for name, by_seed in forms.items():
        if len(set(by_seed.values())) > 1:
            found = ", ".join(f"{form} at seed {seed}" for seed, form in by_seed.items())
            console.print(
                f"warning: {name} was trained with members {found}: BatchNorm's statistics differ, so the spread is "
                f"not of the seeds alone. students.{name}.member_form in the recipe fixes one form.",
                highlight=False,
            )


def _caption(summaries: Sequence[dict[str, Any]], forms: dict[str, dict[str, str]], columns: Sequence[str]) -> str:
    lines = ["c: calibrated on validation images; runs: forward passes per image"]
    if "bal %" in columns:
        lines.append("bal: balanced accuracy, the mean recall over classes; F1: its mean over classes")
    if len(summaries) > 1 and summaries[0]["ensemble_size"] > 1:
        lines.append("±sd: over runs; of one teacher, over the teachers of all runs")
    lines += filter(None, [zero_line(summaries)])
    for name, by_seed in forms.items():
        label = Subject("student", name=name).label
        lines.append(f"{label}: trained with {' or '.join(sorted(set(by_seed.values())))} members")
    for name, words in _choices(summaries).items():
        lines.append(f"{Subject('student', name=name).label}: chosen on validation images, {words}")
    seeds: dict[str, list[str]] = {}
    for summary, seed in zip(summaries, seeds_in_words(summaries), strict=True):
        seeds.setdefault(summary["deploy"], []).append(seed)
    if len(seeds) > 1 and all(summary.get("deploy_by") for summary in summaries):
        choices = "; ".join(f"{name} at seed{'s' * (len(of) > 1)} {' and '.join(of)}" for name, of in seeds.items())
        lines.append(f"the best on validation images, and so deployed: {choices}")
    students = {row["name"] for row in summaries[0]["rows"] if row.get("name")}
    if len(summaries) == 1 and len(students) > 1 and summaries[0].get("deploy_by"):
        lines.append(f"the best on validation images, and so deployed: {summaries[0]['deploy']}")
    return "\n".join(lines)


def shown_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the columns of the table: those of classes only where they say what the accuracy does not."""
    cells = {column: [row["cells"][number] for row in rows] for number, column in enumerate(COLUMNS)}
    if not all(cells["bal %"]) or cells["bal %"] == cells["acc %"]:
        return [column for column in COLUMNS if column not in BY_CLASS]
    return list(COLUMNS)


def _by_seed(summaries: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Returns what tells each run from the others, and the run, in the order of the seeds."""
    pairs = zip(seeds_in_words(summaries), summaries, strict=True)
    return sorted(pairs, key=lambda pair: int(pair[1]["seed"]))


def _member_forms(summaries: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Returns the form of the members of each student that has some, by seed."""
    forms: dict[str, dict[str, str]] = {}
    for seed, summary in _by_seed(summaries):
        for subject, row in rows_by_subject(summary).items():
            if subject.role == "student" and subject.name is not None and "member_form" in row:
                forms.setdefault(subject.name, {})[seed] = row["member_form"]
    return forms


def _choices(summaries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns what was chosen of each student that had several candidates; by seed where seeds differ."""
    found: dict[str, dict[str, str]] = {}
    for seed, summary in _by_seed(summaries):
        for name, document in summary.get("chosen", {}).items():
            found.setdefault(name, {})[seed] = Choice.model_validate(document).chosen.label
    return {
        name: next(iter(by_seed.values()))
        if len(set(by_seed.values())) == 1
        else "; ".join(f"seed {seed}: {label}" for seed, label in by_seed.items())
        for name, by_seed in found.items()
    }


def mean_rows(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows to show: the teachers as their mean, every other network by itself; cells are text.

    Each row has its `subject` (None: the teachers), its `label`, which says so of a student that some runs lack, and
    its `cells`.
    """
    names = [recipe_names(summary) for summary in summaries]
    if not frozenset.intersection(*names):
        of_all = ", ".join(sorted(frozenset.union(*names)))
        raise RunError(f"runs of different recipes ({of_all}) cannot be averaged; show them one at a time")
    ensemble_size = summaries[0]["ensemble_size"]
    by_subject = [rows_by_subject(summary) for summary in summaries]
    # Of each set of teachers one run: they are the same in all that share it, and the spread is over them.
    sets = teacher_sets(summaries)
    of_sets = [by_subject[sets.index(number)] for number in range(max(sets) + 1)]
    teachers = [row for of_set in of_sets for subject, row in of_set.items() if subject.role == "teacher"]
    rows: list[dict[str, Any]] = [
        {"subject": None, "label": f"one teacher (mean of {len(teachers)})", "cells": _cells(teachers, "1")}
    ]
    if len(teachers) > 1 and None not in (best := [best_teacher(of_set) for of_set in of_sets]):
        group = [of_set[subject] for of_set, subject in zip(of_sets, best, strict=True) if subject]
        label = "teacher best on validation"
        if best[0] and len(set(best)) == 1:
            label = f"{best[0].label} (best on validation)"
        cells = _cells(group, _dee(group, ensemble_size))
        rows.append({"subject": best[0], "label": label, "cells": cells})
    for subject in dict.fromkeys(subject for of_run in by_subject for subject in of_run):
        if subject.role == "teacher":
            continue
        group = [of_run[subject] for of_run in by_subject if subject in of_run]
        label = f"ensemble of {ensemble_size}" if subject.is_ensemble else subject.label
        if len(group) < len(summaries):
            label += f" ({len(group)} of {len(summaries)} runs)"
        if subject.is_ensemble:
            group = [of_set[subject] for of_set in of_sets]
        rows.append({"subject": subject, "label": label, "cells": _cells(group, _dee(group, ensemble_size))})
    return rows


def _cells(group: Sequence[dict[str, Any]], dee: str) -> list[str]:
    return [
        _spread([100 * row["raw"]["acc"] for row in group], 2),
        *(_spread_if_known([row["raw"].get(name) for row in group]) for name in ("balanced_acc", "macro_f1")),
        _spread([row["raw"]["nll"] for row in group], 3),
        _spread([row["raw"]["ece"] for row in group], 3),
        _spread([row["calibrated"]["nll"] for row in group], 3),
        _spread([row["calibrated"]["ece"] for row in group], 3),
        dee,
        count(round(statistics.fmean(row["parameters"] for row in group))),
        str(group[0]["forwards"]),
    ]


def print_costs(costs: Sequence[Cost], *, console: Console) -> None:
    """Prints what each training of a run costs."""
    rows = []
    for cost in costs:
        cells = (
            str(cost.units_per_step),
            f"{cost.num_steps:,}",
            f"{cost.units:,}",
            f"{1000 * cost.seconds_per_step:.0f}",
            duration(cost.seconds),
        )
        name = cost.name if cost.member_form is None else f"{cost.name} ({cost.member_form} members)"
        rows.append(TextRow(name, dict(zip(COST_COLUMNS, cells, strict=True))))
    total_units = sum(cost.units for cost in costs)
    total = {"units": f"{total_units:,}", "time": duration(sum(cost.seconds for cost in costs))}
    rows.append(TextRow("all", dict.fromkeys(COST_COLUMNS, "") | total, second="all"))
    title = "cost of the run (a unit is one forward pass of one batch)"
    table, left_out = fitting_table(
        title, rows, COST_COLUMNS, gives_way=COST_GIVES_WAY, console=console, names=("training",)
    )
    table.caption = left_out_words(left_out)
    console.print(table)
    for cost in costs:
        if cost.averaged_steps is not None:
            console.print(_average_words(cost), highlight=False)


def _average_words(cost: Cost) -> str:
    """Returns over how much of a training its moving average goes, and what to try where that is too much."""
    assert cost.averaged_steps is not None
    share = cost.averaged_steps / cost.num_steps
    words = f"{cost.name}: ema averages over {cost.averaged_steps:,.0f} steps, {share:.1%} of its {cost.num_steps:,}"
    if share < LONG_AVERAGE or cost.averaged_steps <= LEAST_STEPS:
        return words
    return f"{words}; over {LONG_AVERAGE:.0%} and more, averages were worse than the student. Try ema: auto"


def _numbers(summaries: Sequence[dict[str, Any]], split: str) -> str:
    """Returns how many images a split has, from the fewest to the most where runs differ."""
    numbers = sorted({summary["data"].get(split, 0) for summary in summaries})
    return " to ".join(f"{number:,}" for number in dict.fromkeys((numbers[0], numbers[-1])))


def _spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean, and ± the standard deviation where there are several values."""
    mean = fixed(statistics.fmean(values), digits)
    return mean if len(values) < 2 else f"{mean} ±{fixed(statistics.stdev(values), digits)}"


def _spread_if_known(shares: Sequence[float | None]) -> str:
    known = [100 * share for share in shares if share is not None]
    return _spread(known, 2) if known and len(known) == len(shares) else ""


def _dee(rows: Sequence[dict[str, Any]], ensemble_size: int) -> str:
    bounds = {row.get("dee_bound") for row in rows}
    if bounds == {None}:
        return _spread([row["dee"] for row in rows], 2)
    if len(rows) == 1 or len(bounds) == 1:
        return "<1" if "below" in bounds else f">{ensemble_size}"
    inside = [row["dee"] for row in rows if row.get("dee_bound") is None]
    low = "<1" if "below" in bounds else f"{min(inside):.2f}"
    high = f">{ensemble_size}" if "above" in bounds else f"{max(inside):.2f}"
    return f"{low} to {high}"
