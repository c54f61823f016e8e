"""The sections of small charts of lines: robustness, throughput, load, training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edc.benchmark.page.charts import lines
from edc.benchmark.page.charts.figure import Figure, Panel, Switch, series_of
from edc.benchmark.page.charts.svg import Drawing
from edc.benchmark.page.document import Bench, Series
from edc.benchmark.page.numbers import fixed
from edc.benchmark.page.tables.sweep import capacity

__all__ = ["robustness", "server", "throughput", "training"]


def robustness(bench: Bench) -> Figure:
    keys = [key for key, details in bench.details.items() if details.robustness]
    backend = bench.main_backend(keys)
    shown = bench.protagonists_anywhere(backend, keys) if backend else []
    where = " and ".join(dict.fromkeys(map(bench.backend_of, shown)))
    records = {key: bench.details[key].robustness or () for key in shown}
    corruptions = dict.fromkeys(row["corruption"] for rows in records.values() for row in rows)
    corruptions.pop("none", None)
    panels: list[Panel] = []
    measures: list[str] = []
    for measure in lines.ROBUSTNESS:
        shared = lines.robustness_scale(records, measure)
        if shared is None or not corruptions:
            continue
        drawings = [lines.robustness(records, bench, corruption=c, measure=measure, top_to=shared) for c in corruptions]
        titles = tuple(corruption.replace("_", " ") for corruption in corruptions)
        panels.append(Panel((len(measures),), f"{measure.name}, on {where}", tuple(drawings), titles=titles))
        measures.append(measure.name.partition(",")[0])
    return Figure(
        "robustness",
        "Robustness",
        "Robustness",
        f"{_images(bench, records)}, with corruptions of growing severity.",
        "Robustness: not measured in this bench.",
        (Switch("measure", tuple(measures)),) if measures else (),
        tuple(panels),
        series_of(bench, shown),
        "Severity 0: the original images. Temperatures are those fitted on clean validation images.",
    )


def _images(bench: Bench, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns on how many of the test images it was measured, if that is known."""
    numbers = sorted({row["num_images"] for rows in records.values() for row in rows if row.get("num_images")})
    if not numbers:
        return "Test images"
    words = " to ".join(fixed(number, 0) for number in dict.fromkeys((numbers[0], numbers[-1])))
    total = bench.document.num_test_images
    return f"{words} of the {total:,} test images" if total and total > numbers[-1] else f"{words} test images"


def _by_backend(bench: Bench, entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(bench.backend_of(entry["key"]), []).append(entry)
    return groups


def _small_multiples(
    bench: Bench,
    entries: Sequence[Mapping[str, Any]],
    draw: Callable[[Sequence[Mapping[str, Any]], Bench], Drawing | None],
) -> tuple[tuple[Panel, ...], tuple[Series, ...]]:
    """Returns one panel with one drawing per backend, and the networks in it."""
    groups = _by_backend(bench, entries)
    drawings = {backend: drawing for backend, group in groups.items() if (drawing := draw(group, bench)) is not None}
    panels = (Panel((), "", tuple(drawings.values()), titles=tuple(drawings)),) if drawings else ()
    return panels, series_of(bench, (entry["key"] for entry in entries))


def throughput(bench: Bench) -> Figure:
    panels, series = _small_multiples(bench, bench.document.throughput, lines.throughput)
    lead = "Images per second as batches grow, until a larger batch gains less than 5 %."
    missing = "Throughput against batch size: not measured in this bench."
    return Figure("throughput", "Throughput", "Throughput", lead, missing, panels=panels, series=series)


def server(bench: Bench) -> Figure:
    panels, series = _small_multiples(bench, bench.document.server, lines.server_load)
    groups = _by_backend(bench, bench.document.server)
    beneath = {
        backend: tuple(f"{bench.subject_of(entry['key'])}: {capacity(entry)}" for entry in group)
        for backend, group in groups.items()
    }
    panels = tuple(replace(panel, beneath=tuple(beneath[title] for title in panel.titles)) for panel in panels)
    return Figure(
        "server",
        "Under load",
        "Load",
        "Requests of one image arrive at random times: p99 latency by their rate. Below: how many requests per second "
        "are answered with p99 within the bound.",
        "Latency under load: not measured in this bench.",
        panels=panels,
        series=series,
        note="Rates without a p99 (too few requests, or more than the server could answer) are in the table.",
    )


def training(bench: Bench) -> Figure:
    curves = bench.curves
    identities = bench.document.curve_identities
    teachers = {name: rows for name, rows in curves.items() if identities[name].role == "teacher"}
    students = {name: rows for name, rows in curves.items() if name not in teachers}
    made = {
        "loss of teachers": lines.training(teachers, bench, field="loss", label="loss"),
        "loss of students": lines.training(students, bench, field="loss", label="loss"),
        "error on validation": lines.training(
            curves, bench, field="validation_acc", label="error, %", value=lambda share: 100 * (1 - share)
        ),
    }
    drawn = {title: drawing for title, drawing in made.items() if drawing is not None}
    return Figure(
        "training",
        "Training",
        "Training",
        "Compare errors, not losses: those of students and teachers are different sums. Scales are logarithmic.",
        "Training curves: this bench was made without the run.",
        panels=(Panel((), "", tuple(drawn.values()), titles=tuple(drawn)),) if drawn else (),
        series=(
            *sorted(map(bench.series_of_curve, students), key=lambda each: each.colour),
            *(replace(bench.series_of_curve(name), name="teachers") for name in list(teachers)[:1]),
        ),
    )
