"""The page's content, section by section: switches, panels, legends and words, ready for the template."""

from collections.abc import Callable, Sequence

from edc.benchmark.page.charts import line_sections
from edc.benchmark.page.charts.calibration import reliability
from edc.benchmark.page.charts.figure import Figure, Panel, Switch, series_of
from edc.benchmark.page.charts.latency import latency_quantiles
from edc.benchmark.page.charts.pareto import MEASURES, pareto
from edc.benchmark.page.charts.svg import Drawing
from edc.benchmark.page.document import Bench, Series

__all__ = ["sections"]

WIDE, NARROW = (1100.0, 440.0), (360.0, 340.0)
"""Drawn twice where one size would be too small to read on a phone."""

ALONE, PAIR = (250.0, 314.0), (172.0, 240.0)
"""Of a reliability diagram, and on a phone, where two are side by side so that they can be compared without a swipe."""


def sections(bench: Bench) -> list[Figure]:
    """Returns the sections with figures, in the order of the page."""
    made: Sequence[Callable[[Bench], Figure]] = (
        _pareto,
        _calibration,
        _latency,
        line_sections.robustness,
        line_sections.throughput,
        line_sections.server,
        line_sections.training,
    )
    return [make(bench) for make in made]


def _panel(choice: tuple[int, ...], caption: str, both: Sequence[Drawing | None], series: tuple[Series, ...]) -> Panel:
    """Returns the panel with the wide and the narrow drawing, or one without drawings that says so."""
    wide, narrow = both
    if wide is None or narrow is None:
        return Panel(choice, f"{caption}: no row ran")
    return Panel(choice, caption, (wide,), (narrow,), series=series)


def _pareto(bench: Bench) -> Figure:
    panels, first = [], bench.verdict and bench.verdict.batch
    for n, batch in enumerate(bench.batches):
        for m, measure in enumerate(MEASURES):
            both = [pareto(bench, batch=batch, measure=measure, width=w, height=h) for w, h in (WIDE, NARROW)]
            shown = [row.key for row in bench.rows if row.batch == batch and row.p50_ms and row.quality]
            caption = f"{measure.name} against latency, batch {batch}"
            panels.append(_panel((n, m), caption, both, series_of(bench, shown)))
    batches = tuple(f"{batch:,}" for batch in bench.batches)
    chosen = bench.batches.index(first) if first in bench.batches else 0
    return Figure(
        "pareto",
        "Quality against latency",
        "Pareto",
        "One marker per network and backend; up and left is better. On the line: rows that no other beats in both.",
        "Quality against latency: no row has both.",
        (Switch("batch", batches, chosen), Switch("quality", tuple(measure.name for measure in MEASURES))),
        tuple(panels) if any(panel.drawings for panel in panels) else (),
        (),
        "Horizontal bars: 99 % intervals of the median. Hollow: 16 bits or fewer.",
        "Hover over a marker or tap it for its row; click, or tap again, to go there.",
    )


def _calibration(bench: Bench) -> Figure:
    keys = [key for key, details in bench.details.items() if details.reliability]
    backend = bench.main_backend(keys)
    shown = bench.protagonists(backend, keys) if backend else []
    panels = []
    for n, kind in enumerate(("raw", "calibrated")):
        bins = {key: (bench.details[key].reliability or {}).get(kind) for key in shown}
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
        "How often a network is right, by its confidence. If a bar ends on the diagonal, that confidence is correct.",
        "Calibration: this bench holds no reliability figures.",
        (),
        tuple(panels),
        (),
        "Hatched: the gap between accuracy and mean confidence (the tick), which ECE adds up. Whiskers: 95 % intervals "
        "(Wilson). Below: images per bin, on a square-root scale.",
    )


def _latency(bench: Bench) -> Figure:
    panels = []
    backends = [
        backend
        for backend in bench.backends
        if any(row.latency_quantiles_ms for row in bench.rows if row.backend == backend)
    ]
    for n, backend in enumerate(backends):
        for m, batch in enumerate(bench.batches):
            both = [
                latency_quantiles(bench, backend=backend, batch=batch, width=w, height=h) for w, h in (WIDE, NARROW)
            ]
            shown = [row.key for row in bench.rows if (row.backend, row.batch) == (backend, batch)]
            panels.append(_panel((n, m), f"{backend}, batch {batch}", both, series_of(bench, shown)))
    main = bench.main_backend(row.key for row in bench.rows)
    first = bench.verdict and bench.verdict.batch
    switches = (
        Switch("backend", tuple(backends), backends.index(main) if main in backends else 0),
        Switch(
            "batch", tuple(f"{b:,}" for b in bench.batches), bench.batches.index(first) if first in bench.batches else 0
        ),
    )
    return Figure(
        "latency",
        "Latency distributions",
        "Latency",
        "A level line means steady latency; where it climbs, some inferences take longer. Outliers are included.",
        "Latency distributions: this bench holds none.",
        switches,
        tuple(panels) if any(panel.drawings for panel in panels) else (),
        (),
        "Markers: p50, p90, p99 and the slowest.",
        "Hover over a line or tap it for its figures.",
    )
