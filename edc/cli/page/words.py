"""What a run's page says in words: figures, and nothing that they do not show."""

from collections.abc import Mapping
from typing import Any

from edc.benchmark.page.numbers import MISSING, fixed
from edc.benchmark.page.tables.by_class import class_tables
from edc.benchmark.page.tables.table import Line, Table
from edc.cli.page.sections import Lines, by_student
from edc.cli.tables.run import COLUMNS as COLUMNS_SHOWN
from edc.cli.tables.run import mean_rows, shown_columns
from edc.cli.tables.run_notes import remarks, zero_line
from edc.runs.documents.by_class import SavedByClass
from edc.runs.rows import rows_by_subject
from edc.runs.why.observer import NUM_IMAGES
from edc.subject import Subject

__all__ = ["classes", "last_figures", "note_on_samples", "notes", "quality", "sentences", "subtitle"]

COLUMNS = {
    "agreement_train": ("agree, training %", 100, 1),
    "agreement_extra": ("agree, extra %", 100, 1),
    "agreement_validation": ("agree, validation %", 100, 1),
    "kl_train": ("KL, training", 1, 4),
    "kl_extra": ("KL, extra", 1, 4),
    "kl_validation": ("KL, validation", 1, 4),
    "teachers_disagree_clean": ("teachers disagree, clean %", 100, 1),
    "teachers_disagree_moved": ("moved %", 100, 1),
    "teachers_kl_clean": ("teachers' KL, clean", 1, 4),
    "teachers_kl_moved": ("moved", 1, 4),
    "members_kl_clean": ("members' KL, clean", 1, 4),
    "members_kl_moved": ("moved", 1, 4),
}
Observed = Mapping[str, float]
NOTE = "KL in nats. Figures of all epochs: students/NAME/metrics.jsonl in the run's folder, and TensorBoard."


def subtitle(summary: Mapping[str, Any]) -> str:
    """Returns what the run is of, in a line."""
    data = summary["data"]
    extra = f", {data['extra']:,} extra" if data.get("extra") else ""
    images = f"{data['train']:,} training{extra}, {data['validation']:,} validation and {data['test']:,} test images"
    return f"{data['kind']}: {images}; {summary['ensemble_size']} teachers; seed {summary['seed']}"


def sentences(lines: Lines) -> list[str]:
    """Returns what the last figures of each student are, one sentence for each."""
    found = []
    for name, (epoch, figures) in _last(lines).items():
        words = f"{name}, epoch {epoch}: predicts the ensemble's class on {_percent(figures, 'agreement_train')} of "
        words += f"training and {_percent(figures, 'agreement_validation')} of validation images"
        if "teachers_disagree_moved" in figures:
            words += f"; teachers disagree on {_percent(figures, 'teachers_disagree_moved')} of moved and "
            words += f"{_percent(figures, 'teachers_disagree_clean')} of clean ones"
        found.append(words + ".")
    return found


def note_on_samples(summary: Mapping[str, Any]) -> str:
    """Returns on how many images the figures are, and how exact a share of them is."""
    smallest = min(NUM_IMAGES, summary["data"]["train"], summary["data"]["validation"])
    error = 100 * (0.9 * 0.1 / smallest) ** 0.5
    return (
        f"Of each split {NUM_IMAGES} images at most, drawn once, the same for all students, epochs and seeds, without "
        f"augmentation. One standard error of a share of 90 % is up to {error:.1f} points; differences between epochs "
        "and students are more exact, because the images are the same. Epochs are left out where looking would take "
        "more than a few per cent of the training."
    )


def last_figures(lines: Lines) -> Table:
    """Returns the figures of the last epoch that was looked at, one line for each student."""
    last, series = _last(lines), by_student(lines)
    known = [key for key in COLUMNS if any(key in figures for _, figures in last.values())]
    rows = []
    for name, (epoch, figures) in last.items():
        cells = [
            fixed(figures[key], COLUMNS[key][2], scale=COLUMNS[key][1]) if key in figures else MISSING for key in known
        ]
        rows.append(Line((name, str(epoch), *cells), series[name]))
    columns = ("student", "epoch", *(COLUMNS[key][0] for key in known))
    return Table("observed", "The last epoch that was looked at", columns, (("", tuple(rows)),), note=NOTE)


def quality(summary: dict[str, Any]) -> list[Table]:
    """Returns the table of all networks of the run on test images, as `edc show` prints it."""
    rows = mean_rows([summary])
    shown = shown_columns(rows)
    lines = tuple(
        Line(
            (row["label"], *(cell for column, cell in zip(COLUMNS_SHOWN, row["cells"], strict=True) if column in shown))
        )
        for row in rows
    )
    note = zero_line([summary])
    return [Table("quality", "Quality on test images", ("network", *shown), (("", lines),), note=note and f"{note}.")]


def classes(summary: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of classes of the deployed student and the ensemble; none for a run of an older edc."""
    rows = rows_by_subject(dict(summary))
    shown = (Subject("student", name=summary["deploy"]), Subject("ensemble"))
    known = {subject.label: rows[subject]["by_class"] for subject in shown if "by_class" in rows.get(subject, {})}
    names = summary["data"].get("classes", ())
    return class_tables(names, {label: SavedByClass.model_validate(each) for label, each in known.items()})


def notes(summary: dict[str, Any]) -> list[str]:
    """Returns what a reader of the page has to know of the networks, one sentence each."""
    return [f"{line}." for line in remarks([summary])]


def _last(lines: Lines) -> dict[str, tuple[int, Observed]]:
    """Returns the last epoch that was looked at of each student, counted from 1, and its figures."""
    observed = {name: [line for line in each if line.get("observed")] for name, each in lines.items()}
    return {name: (each[-1]["epoch"] + 1, each[-1]["observed"]) for name, each in observed.items() if each}


def _percent(figures: Observed, key: str) -> str:
    return f"{fixed(figures.get(key), 1, scale=100)} %"
