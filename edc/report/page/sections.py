"""What stands on the page, section by section: switches, panels, legends and words, ready for the template."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from edc.report.page import lines
from edc.report.page.calibration import reliability
from edc.report.page.document import Bench, Series, base_name, key_of
from edc.report.page.latency import latency_quantiles
from edc.report.page.pareto import MEASURES, pareto
from edc.report.page.svg import Drawing

__all__ = ["Figure", "Panel", "Switch", "legend_mark", "sections"]

WIDE, NARROW = (1100.0, 440.0), (360.0, 340.0)
"""Drawn twice where one size would be too small to read on a phone."""

ALONE, PAIR = (250.0, 314.0), (172.0, 240.0)
"""Of a reliability diagram, and on a phone, where two stand side by side: a comparison that takes a swipe is none."""


@dataclass(frozen=True)
class Panel:
    """Drawings to be seen together, for one choice of every switch; `narrow` replaces them on a phone, in pairs."""

    choice: tuple[int, ...]
    caption: str
    drawings: tuple[Drawing, ...] = ()
    narrow: tuple[Drawing, ...] = ()
    titles: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    """For a legend of its own, where panels show different networks."""


@dataclass(frozen=True)
class Switch:
    """Radio buttons: `options` to choose from, the first of them chosen unless `chosen` says otherwise."""

    name: str
    options: tuple[str, ...]
    chosen: int = 0


@dataclass(frozen=True)
class Figure:
    """A section with drawings; where `panels` is empty, `missing` says so in a line."""

    name: str
    title: str
    short: str
    """For the navigation."""
    lead: str
    missing: str
    switches: tuple[Switch, ...] = ()
    panels: tuple[Panel, ...] = ()
    series: tuple[Series, ...] = ()
    note: str = ""
    hint: str = ""
    """What to do with the pointer: not on paper."""

    @property
    def rules(self) -> Markup:
        """The style rules that show the panel of the chosen buttons; no script needed."""
        rules = []
        for panel in self.panels if self.switches else ():
            checked = "".join(f":has(#{self.name}-{n}-{at}:checked)" for n, at in enumerate(panel.choice))
            rules.append(f"#{self.name}{checked} .panel-{'-'.join(map(str, panel.choice))}{{display:block}}")
        return Markup("".join(rules))  # numbers and the names of sections, none of it from the document


def sections(bench: Bench) -> list[Figure]:
    """Returns the sections with figures, in the order of the page."""
    made: Sequence[Callable[[Bench], Figure]] = (
        _pareto,
        _calibration,
        _latency,
        _robustness,
        _throughput,
        _server,
        _training,
    )
    return [make(bench) for make in made]


def legend_mark(series: Series) -> Markup:
    """Returns the sample of line and marker that stands in legends and tables."""
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    return Markup(  # shapes and dashes are ours
        f'<svg class="mark" viewBox="0 0 26 14" aria-hidden="true"><path class="s c{series.colour}" d="M0 7H26"{dash}/>'
        f'<use class="m {series.css}" href="#m-{series.shape}-small" x="13" y="7"/></svg>'
    )


def _series_of(bench: Bench, keys: Iterable[str]) -> tuple[Series, ...]:
    """Returns the networks of the keys, the student first, each once and filled; the last says what hollow is."""
    series = [bench.series(key) for key in keys]
    filled = {base_name(each.name): replace(each, name=base_name(each.name), is_hollow=False) for each in series}
    hollow = [replace(each, name="hollow: 16 bits or fewer") for each in series if each.is_hollow]
    return (*sorted(filled.values(), key=lambda each: each.colour != 0), *hollow[:1])


def _panel(choice: tuple[int, ...], caption: str, both: Sequence[Drawing | None], series: tuple[Series, ...]) -> Panel:
    """Returns the panel with the wide and the narrow drawing, or one without drawings that says so."""
    wide, narrow = both
    if wide is None or narrow is None:
        return Panel(choice, f"{caption}: no row ran")
    return Panel(choice, caption, (wide,), (narrow,), series=series)


def _pareto(bench: Bench) -> Figure:
    panels, first = [], (bench.verdict or {}).get("batch")
    for n, batch in enumerate(bench.batches):
        for m, measure in enumerate(MEASURES):
            both = [pareto(bench, batch=batch, measure=measure, width=w, height=h) for w, h in (WIDE, NARROW)]
            shown = [key_of(r) for r in bench.rows if r["batch"] == batch and r.get("p50_ms") and r.get("quality")]
            caption = f"{measure.name} against latency, batch {batch}"
            panels.append(_panel((n, m), caption, both, _series_of(bench, shown)))
    batches = tuple(f"{batch:,}" for batch in bench.batches)
    chosen = bench.batches.index(first) if first in bench.batches else 0
    return Figure(
        "pareto",
        "Quality against latency",
        "Pareto",
        "A marker a network and backend; up and left is better. On the line: what no other row beats in both.",
        "Quality against latency: no row has both.",
        (Switch("batch", batches, chosen), Switch("quality", tuple(measure.name for measure in MEASURES))),
        tuple(panels) if any(panel.drawings for panel in panels) else (),
        (),
        "Horizontal bars: 99 % intervals of the median. Hollow: 16 bits or fewer.",
        "Hover over a marker or tap it for its row; click, or tap again, to go there.",
    )


def _calibration(bench: Bench) -> Figure:
    keys = [key for key, details in bench.details.items() if details.get("reliability")]
    backend = bench.main_backend(keys)
    shown = bench.protagonists(backend, keys) if backend else []
    panels = []
    for n, kind in enumerate(("raw", "calibrated")):
        bins = {key: (bench.details[key]["reliability"] or {}).get(kind) for key in shown}
        known = {key: each for key, each in bins.items() if each}
        caption = "as they are" if kind == "raw" else "after one temperature fitted on validation"
        wide, narrow = (
            tuple(
                reliability(each, bench.series(key), title=f"{key}, {kind}", width=width, height=height)
                for key, each in known.items()
            )
            for width, height in (ALONE, PAIR)
        )
        if known:
            titles = tuple(bench.subject_of(key) for key in known)
            panels.append(Panel((n,), f"{caption}, on {backend}", wide, narrow, titles))
    return Figure(
        "calibration",
        "Calibration",
        "Calibration",
        "How often a network is right among the images on which it is so sure: bars on the diagonal can be believed.",
        "Calibration: this bench holds no reliability figures.",
        (),
        tuple(panels),
        (),
        "Hatched: between accuracy and mean confidence (the tick), which is what ECE adds up. Whiskers: 95 % intervals "
        "(Wilson). Below: images a bin, on a square-root scale.",
    )


def _latency(bench: Bench) -> Figure:
    panels = []
    backends = [
        backend
        for backend in bench.backends
        if any(row.get("latency_quantiles_ms") for row in bench.rows if row["backend"] == backend)
    ]
    for n, backend in enumerate(backends):
        for m, batch in enumerate(bench.batches):
            both = [
                latency_quantiles(bench, backend=backend, batch=batch, width=w, height=h) for w, h in (WIDE, NARROW)
            ]
            shown = [key_of(row) for row in bench.rows if (row["backend"], row["batch"]) == (backend, batch)]
            panels.append(_panel((n, m), f"{backend}, batch {batch}", both, _series_of(bench, shown)))
    main = bench.main_backend(key_of(row) for row in bench.rows)
    first = (bench.verdict or {}).get("batch")
    switches = (
        Switch("backend", tuple(backends), backends.index(main) if main in backends else 0),
        Switch(
            "batch", tuple(f"{b:,}" for b in bench.batches), bench.batches.index(first) if first in bench.batches else 0
        ),
    )
    return Figure(
        "latency",
        "Latency, all of it",
        "Latency",
        "A level line is a steady network; where it climbs, some inferences wait. Every sample counts, outliers too.",
        "Latency distributions: this bench holds none.",
        switches,
        tuple(panels) if any(panel.drawings for panel in panels) else (),
        (),
        "Markers: p50, p90, p99 and the slowest.",
        "Hover over a line or tap it for its figures.",
    )


def _robustness(bench: Bench) -> Figure:
    keys = [key for key, details in bench.details.items() if details.get("robustness")]
    backend = bench.main_backend(keys)
    shown = bench.protagonists(backend, keys) if backend else []
    records = {key: bench.details[key]["robustness"] for key in shown}
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
        panels.append(Panel((len(measures),), f"{measure.name}, on {backend}", tuple(drawings), titles=titles))
        measures.append(measure.name.partition(",")[0])
    return Figure(
        "robustness",
        "Robustness",
        "Robustness",
        "The same test images, damaged more and more.",
        "Robustness: not measured in this bench.",
        (Switch("measure", tuple(measures)),) if measures else (),
        tuple(panels),
        _series_of(bench, shown),
        "Severity 0 is the images as they are. Temperatures are those fitted on clean validation images.",
    )


def _by_backend(bench: Bench, entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(bench.backend_of(entry["key"]), []).append(entry)
    return groups


def _small_multiples(
    bench: Bench, part: str, draw: Callable[[Sequence[Mapping[str, Any]], Bench], Drawing | None]
) -> tuple[tuple[Panel, ...], tuple[Series, ...]]:
    """Returns one panel with a drawing a backend, and who is in it."""
    entries = bench.document.get(part) or []
    groups = _by_backend(bench, entries)
    drawings = {backend: drawing for backend, group in groups.items() if (drawing := draw(group, bench)) is not None}
    panels = (Panel((), "", tuple(drawings.values()), titles=tuple(drawings)),) if drawings else ()
    return panels, _series_of(bench, (entry["key"] for entry in entries))


def _throughput(bench: Bench) -> Figure:
    panels, series = _small_multiples(bench, "throughput", lines.throughput)
    lead = "Images per second as batches grow, until a larger batch gains less than 5 %."
    missing = "Throughput against batch size: not measured in this bench."
    return Figure("throughput", "Throughput", "Throughput", lead, missing, panels=panels, series=series)


def _server(bench: Bench) -> Figure:
    panels, series = _small_multiples(bench, "server", lines.server_load)
    return Figure(
        "server",
        "Under load",
        "Load",
        "Requests of one image at random times: how long the slowest hundredth waits as they come faster.",
        "Latency under load: not measured in this bench.",
        panels=panels,
        series=series,
        note="Rates without a p99 (too few requests, or more than the server could answer) are in the table.",
    )


def _training(bench: Bench) -> Figure:
    curves = bench.curves
    teachers = {name: rows for name, rows in curves.items() if name.startswith("teacher")}
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
        "Losses of students and teachers are different sums and do not compare; errors do. Scales are logarithmic.",
        "Training curves: the run was not at hand when this bench was made.",
        panels=(Panel((), "", tuple(drawn.values()), titles=tuple(drawn)),) if drawn else (),
        series=(
            *_series_of(bench, students),
            *(replace(bench.series(name), name="teachers") for name in list(teachers)[:1]),
        ),
    )
