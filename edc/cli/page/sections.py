"""The sections of a run's page: small charts of what its students have in common with their ensemble."""

from collections.abc import Mapping, Sequence
from typing import Any

from edc.benchmark.page.charts.figure import Figure, Panel
from edc.benchmark.page.document import Series
from edc.cli.page.curves import Curve, Quantity, chart, points_of, series_number

__all__ = ["Lines", "by_student", "sections"]

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
"""The lines of metrics.jsonl of each student."""

SPLITS = {"train": "training images", "extra": "extra images", "validation": "validation images"}
GROUPS = {
    "teachers_kl_moved": "teachers, moved images",
    "teachers_kl_clean": "teachers, clean images",
    "members_kl_moved": "members, moved images",
    "members_kl_clean": "members, clean images",
}
SHARES = {"teachers_disagree_moved": "moved images", "teachers_disagree_clean": "clean images"}
NOT_OBSERVED = "not recorded in this run, whose students were trained by an earlier edc."
KL, PERCENT = Quantity("KL, nats", is_log=True, digits=4), Quantity("images, %", 100, digits=1)


def sections(lines: Lines) -> tuple[Figure, ...]:
    """Returns the sections in their order; one without figures says so."""
    return (_agreement(lines), _kl(lines), _disagreement(lines), _diversity(lines), _training(lines))


def by_student(lines: Lines) -> dict[str, Series]:
    """Returns how each student is drawn where there is a line for each."""
    return {name: series_number(number, name) for number, name in enumerate(lines)}


def _agreement(lines: Lines) -> Figure:
    return Figure(
        "agreement",
        "Agreement with the ensemble",
        "Agreement",
        "Share of images on which the deployed student and the ensemble predict the same class.",
        f"Agreement: {NOT_OBSERVED}",
        panels=_of_splits(lines, "agreement", PERCENT),
        series=tuple(by_student(lines).values()),
        note="No label is used here: a student may agree with the ensemble where both are wrong.",
    )


def _kl(lines: Lines) -> Figure:
    return Figure(
        "kl",
        "Distance from the ensemble",
        "Distance",
        "KL(ensemble || student), the mean over images, on a logarithmic scale; 0 is the ensemble itself.",
        f"Distance: {NOT_OBSERVED}",
        panels=_of_splits(lines, "kl", KL),
        series=tuple(by_student(lines).values()),
    )


def _of_splits(lines: Lines, measure: str, quantity: Quantity) -> tuple[Panel, ...]:
    made = {}
    for split, title in SPLITS.items():
        curves = [
            Curve(series, _observed(lines[name], f"{measure}_{split}")) for name, series in by_student(lines).items()
        ]
        made[title] = chart(curves, quantity, title=title)
    return _panel(made)


def _disagreement(lines: Lines) -> Figure:
    return Figure(
        "disagreement",
        "Where teachers disagree",
        "Disagreement",
        "Share of training images on which not all teachers predict the same class: as they are, and moved by the "
        "student's perturbation.",
        _not_moved("Where teachers disagree", lines),
        panels=_of_students(lines, SHARES, PERCENT),
        series=_series_of(SHARES),
    )


def _diversity(lines: Lines) -> Figure:
    return Figure(
        "diversity",
        "How far apart teachers and members are",
        "Diversity",
        "Mean KL over ordered pairs, on training images: as they are, and moved by the student's perturbation. The "
        "scale is logarithmic.",
        _not_moved("How far apart", lines),
        panels=_of_students(lines, GROUPS, KL),
        series=_series_of(GROUPS),
        note="All members are the same network at the start, so that their KL begins near 0.",
    )


def _of_students(lines: Lines, figures: Mapping[str, str], quantity: Quantity) -> tuple[Panel, ...]:
    """Returns a chart of each student that moves images, or has members."""
    made = {}
    for name, of_student in lines.items():
        series = _series_of(figures)
        curves = [Curve(each, _observed(of_student, key)) for key, each in zip(figures, series, strict=True)]
        has_more = any(_observed(of_student, key) for key in figures if key not in STILL)
        made[name] = chart(curves, quantity, title=name) if has_more else None
    return _panel(made)


STILL = ("teachers_kl_clean", "teachers_disagree_clean")
"""What stays the same all the time; alone it is not worth a chart."""


def _not_moved(what: str, lines: Lines) -> str:
    is_observed = any("observed" in line for of_student in lines.values() for line in of_student)
    return f"{what}: no student of this run moves images." if is_observed else f"{what}: {NOT_OBSERVED}"


def _training(lines: Lines) -> Figure:
    series = by_student(lines)

    def drawn(field: str, quantity: Quantity, *, is_error: bool = False) -> Any:
        curves = [
            Curve(
                each, tuple((at, 1 - value if is_error else value) for at, value in points_of(lines[name], _get(field)))
            )
            for name, each in series.items()
        ]
        return chart(curves, quantity, title=field)

    made = {
        "loss": drawn("loss", Quantity("loss", is_log=True)),
        "error on validation": drawn("validation_acc", Quantity("error, %", 100, is_log=True, digits=2), is_error=True),
    }
    return Figure(
        "training",
        "Training",
        "Training",
        "Losses of students with other temperatures are other sums: compare errors. The scales are logarithmic.",
        "Training: no student has left its metrics.jsonl.",
        panels=_panel(made),
        series=tuple(series.values()),
    )


def _get(field: str) -> Any:
    return lambda line: line.get(field)


def _observed(lines: Sequence[Mapping[str, Any]], figure: str) -> tuple[Any, ...]:
    return points_of(lines, lambda line: line.get("observed", {}).get(figure))


def _series_of(figures: Mapping[str, str]) -> tuple[Series, ...]:
    return tuple(series_number(number, label) for number, label in enumerate(figures.values()))


def _panel(made: Mapping[str, Any]) -> tuple[Panel, ...]:
    drawn = {title: drawing for title, drawing in made.items() if drawing is not None}
    return (Panel((), "", tuple(drawn.values()), titles=tuple(drawn)),) if drawn else ()
