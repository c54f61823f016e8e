"""The roll call for people: its table, and the message about a teacher that is probably fed wrongly."""

from collections.abc import Sequence

from rich.console import Console

from edc.console import TextRow, fitting_table, fixed, left_out_words
from edc.teachers.reading import Answered
from edc.teachers.roll_call.other_readings import Attempt

__all__ = ["better_than_all", "print_roll_call", "what_was_tried"]

MOST_SHOWN = 8
OF_FILES = ("weights", "classes")
COLUMNS = ("acc %", "NLL", "size", "normalised by", *OF_FILES)
WORDS = ("size", "normalised by", *OF_FILES)
GIVES_WAY = ("size", "weights", "classes", "normalised by", "NLL")
"""In this order, where the terminal is too narrow for all."""


def better_than_all(answered: Sequence[Answered], ensemble_acc: float, *, num_images: int, num_apart: int) -> str:
    """Returns that a teacher alone is right on more images than the ensemble that students learn from, if one is.

    Args:
        num_apart: images on which one of the two is right and not the other; by two standard errors of their
            difference it is told from chance.
    """
    best = max(answered, key=lambda one: one.acc)
    if best.acc <= ensemble_acc:
        return ""
    more = round((best.acc - ensemble_acc) * num_images)
    fewer = f"{more} image{'s' * (more != 1)} fewer"
    if more <= 2 * num_apart**0.5:
        return (
            f"teacher {best.member} ({best.name}) alone is right on {100 * best.acc:.2f} % of {num_images:,} "
            f"validation images, the ensemble of {len(answered)} on {100 * ensemble_acc:.2f} %: {fewer} of the "
            f"{num_apart} on which they differ, which may be chance"
        )
    return (
        f"teacher {best.member} ({best.name}) alone is better than the ensemble of {len(answered)}: right on "
        f"{100 * best.acc:.2f} % of {num_images:,} validation images, the ensemble on {100 * ensemble_acc:.2f} % "
        f"({fewer}). Students learn from the ensemble: leave weak teachers out, or serve "
        f"that one (baseline/teacher_{best.member}.onnx in an artifact)"
    )


def print_roll_call(answered: Sequence[Answered], *, num_images: int, are_own: bool, console: Console) -> None:
    """Prints one line per teacher: what it is, how right it is, and how it is fed."""
    rows = []
    for one in answered:
        reading = one.reading
        cells = [f"{100 * one.acc:.2f}", fixed(abs(one.nll), 3), str(reading.input_size or "the data's")]
        cells += [f"{reading.normalisation_of} ({_short(reading.mean)})", reading.weights or "as in the file"]
        by_column = dict(zip(COLUMNS, (*cells, reading.classes), strict=True))
        rows.append(TextRow(f"{one.member}:{one.name}", by_column))
    table, left_out = fitting_table(
        f"teachers on {num_images:,} validation images",
        rows,
        COLUMNS if are_own else COLUMNS[: -len(OF_FILES)],
        gives_way=GIVES_WAY,
        console=console,
        names=("teacher",),
        words=WORDS,
    )
    table.caption = left_out_words(left_out)
    console.print(table, highlight=False)
    for one in answered:
        for note in (*one.reading.notes, *filter(None, [one.few_classes])):
            console.print(f"teacher {one.member}: {note}", highlight=False)


def what_was_tried(one: Answered, all_of_them: Sequence[Answered], tried: Sequence[Attempt], *, field: str) -> str:
    """Returns the message: how right it is, every other reading that was tried, and what to do."""
    best = max(each.acc for each in all_of_them)
    better = [attempt for attempt in tried if attempt.is_clearly_better]
    others = f", the best teacher on {100 * best:.1f} %" if len(all_of_them) > 1 else ""
    lines = [
        f"{field}: {one.name} is right on {100 * one.acc:.1f} % of the validation images{others}; answers at random "
        f"would be on {100 * one.chance:.1f} %. It is read with {one.reading.words}. Read otherwise it is right on:"
    ]
    lines += [f"  {100 * attempt.acc:5.1f} %  {attempt.fields}" for attempt in tried[:MOST_SHOWN]]
    if len(tried) > MOST_SHOWN:
        lines.append(f"  ... and {len(tried) - MOST_SHOWN} more ways, right on no more")
    what = (
        "Set the fields of the line that fits"
        if better
        else "No other reading is clearly better: look at the file itself"
    )
    lines.append(f"  {what}, or go on with it as it is: allow_weak: true.")
    return "\n".join(lines)


def _short(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
