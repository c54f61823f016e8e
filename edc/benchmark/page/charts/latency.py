"""Latency at each percentile, and the rounds of a row as a line as small as a word."""

import math
from collections.abc import Mapping, Sequence

from edc.benchmark.page.charts.svg import Drawing, Scale, axes, log_scale
from edc.benchmark.page.document import Bench
from edc.benchmark.page.numbers import fixed, milliseconds
from edc.benchmark.saved.document import SavedRow

__all__ = ["latency_quantiles", "rounds_line"]

PERCENTILES = (0, 50, 75, 90, 95, 99, 100)
PLACE_OF_MAXIMUM = 2.35
"""Of the slowest of all, in the unit of the axis, where p90 is 1 and p99 is 2; it has no place of its own there."""


def place(percentile: float) -> float:
    """Returns a percentile's place on the axis: each further nine takes as much room as the one before."""
    return -math.log10(1 - percentile / 100) if percentile < 100 else PLACE_OF_MAXIMUM


def latency_quantiles(bench: Bench, *, backend: str, batch: int, width: float, height: float) -> Drawing | None:
    """Returns one curve per row: latency against percentile, the tail stretched; None if no row has quantiles."""
    curves = [
        (row, row.latency_quantiles_ms)
        for row in bench.rows
        if (row.backend, row.batch) == (backend, batch) and _is_positive(row.latency_quantiles_ms)
    ]
    curves.sort(key=lambda curve: bench.is_student(curve[0]))  # the student on top
    if not curves:
        return None
    drawing = Drawing(
        width, height, f"latency at each percentile on {backend} at batch {batch}; the table has the figures"
    )
    x = Scale(0, PLACE_OF_MAXIMUM, 52, width - 24)
    values = [value for _, quantiles in curves for value in quantiles or ()]
    y = log_scale(values, height - 42, 40)
    axes(
        drawing,
        x,
        y,
        x_label="percentile of inferences, the tail drawn out",
        y_label=f"latency, ms per batch of {batch} (logarithmic)"
        if batch > 1
        else "latency, ms per image (logarithmic)",
        x_ticks=[place(each) for each in PERCENTILES if width > 500 or each not in {75, 95}],
        y_ticks=y.ticks(6),
        x_format=_percentile_name,
    )
    for each in (50, 90, 99):
        drawing.line((x(place(each)), y.start), (x(place(each)), y.end), "g")
    for row, known in curves:
        quantiles, series = known or (), bench.series(row.key)
        last = len(quantiles) - 1
        points = [(x(place(100 * n / last)), y(value)) for n, value in enumerate(quantiles)]
        drawing.polyline(points, f"s c{series.colour}", dash=series.dash, tip=_tip(row, quantiles), step=3)
        for each in (50, 90, 99, 100):
            at = round(each * last / 100)
            drawing.marker(points[at], series.shape, f"{series.css} q")
    return drawing


def rounds_line(medians: Mapping[int, float], *, width: float = 88, height: float = 20) -> Drawing | None:
    """Returns the medians of the rounds in order: a level line means a quiet machine, a slope means drift.

    The cell's height is always from 0.8 to 1.25 times the median of the rounds, so that rows can be compared; values
    outside are drawn at the edge.
    """
    if len(medians) < 2:
        return None
    numbers = sorted(medians.items())
    values = sorted(value for _, value in numbers)
    middle = values[len(values) // 2]
    if middle <= 0:
        return None
    x = Scale(numbers[0][0], numbers[-1][0], 2, width - 2)
    y = Scale(0.8, 1.25, height - 2, 2, is_log=True)
    spread = f"{len(values)} rounds, medians {milliseconds(values[0])} to {milliseconds(values[-1])} ms"
    drawing = Drawing(width, height, spread)
    drawing.line((2, y(1)), (width - 2, y(1)), "g")
    points = [(x(number), y(min(1.25, max(0.8, value / middle)))) for number, value in numbers]
    drawing.polyline(points, "spark", tip=spread)
    return drawing


def _is_positive(quantiles: Sequence[float] | None) -> bool:
    """Returns whether the curve can be drawn: a clock that went back leaves values that have no logarithm."""
    return bool(quantiles) and len(quantiles or ()) > 1 and min(quantiles or (0,)) > 0


def _percentile_name(at: float) -> str:
    names = {place(each): "max" if each == 100 else "min" if each == 0 else f"p{each}" for each in PERCENTILES}
    return names[at]


def _tip(row: SavedRow, quantiles: Sequence[float]) -> str:
    named = ((50, "p50"), (90, "p90"), (99, "p99"), (100, "slowest"))
    figures = [f"{name} {milliseconds(quantiles[each * (len(quantiles) - 1) // 100])} ms" for each, name in named]
    spread = quantiles[-2] / quantiles[len(quantiles) // 2] if len(quantiles) > 2 else 1.0
    figures.append(f"p99 is {fixed(spread, 2)} times p50")
    return "\n".join([f"{row.key}, batch {row.batch}", f"{row.num_samples:,} samples", *figures])
