"""What the students of a run wrote after each epoch, and the small charts of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edc.benchmark.page.charts.svg import SHAPES, Drawing, Scale, axes, log_scale, scale
from edc.benchmark.page.document import DASHES, NUM_COLOURS, Series
from edc.benchmark.page.numbers import fixed
from edc.train.saved.epochs import read_metrics

__all__ = ["Curve", "Quantity", "chart", "epoch_lines", "series_number"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 250, 202, 40, 244, 28, 164


@dataclass(frozen=True)
class Quantity:
    """What the vertical axis shows; `scaled` is logarithmic where all values are positive and `is_log`."""

    label: str
    factor: float = 1.0
    is_log: bool = False
    digits: int = 3


@dataclass(frozen=True)
class Curve:
    """A line of a chart: (epoch, value) pairs; epochs count from 1, values are those of the file."""

    series: Series
    points: tuple[tuple[int, float], ...]


def epoch_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the epochs of a metrics.jsonl, nothing where there is no file."""
    return [{**record, "epoch": int(record["epoch"])} for record in read_metrics(path)]


def series_number(number: int, name: str) -> Series:
    """Returns how the line with this number is drawn: colours and shapes go round out of step."""
    shape = SHAPES[(number + number // NUM_COLOURS) % len(SHAPES)]
    return Series(name, name, number % NUM_COLOURS, shape, DASHES[number % len(DASHES)])


def points_of(lines: Sequence[Mapping[str, Any]], figure: Callable[[Mapping[str, Any]], Any]) -> tuple[Any, ...]:
    """Returns the (epoch, value) pairs of the lines that have the figure."""
    known = ((line["epoch"] + 1, figure(line)) for line in lines)
    return tuple((epoch, float(value)) for epoch, value in known if isinstance(value, int | float))


def chart(curves: Sequence[Curve], quantity: Quantity, *, title: str) -> Drawing | None:
    """Returns the curves against the epoch; None if none of them has a point."""
    curves = [curve for curve in curves if curve.points]
    values = [quantity.factor * value for curve in curves for _, value in curve.points]
    if not values:
        return None
    drawing = Drawing(WIDTH, HEIGHT, f"{quantity.label} against epoch: {title}; the table has the figures")
    last = max(epoch for curve in curves for epoch, _ in curve.points)
    make: Callable[..., Scale] = log_scale if quantity.is_log and min(values) > 0 else scale
    x, y = Scale(1, max(last, 2), LEFT, RIGHT), make(values, BOTTOM, TOP)
    whole = [tick for tick in x.ticks(4) if tick == int(tick)]
    axes(drawing, x, y, x_label="epoch", y_label=quantity.label, x_ticks=whole, y_ticks=y.ticks(5))
    for curve in curves:
        series, (epoch, final) = curve.series, curve.points[-1]
        shown = fixed(quantity.factor * final, quantity.digits)
        tip = f"{series.name}\nepoch {epoch}: {quantity.label} {shown}"
        at = [(x(epoch), y(quantity.factor * value)) for epoch, value in curve.points]
        drawing.polyline(at, f"s c{series.colour}", dash=series.dash, tip=tip)
        drawing.marker(at[-1], series.shape, series.css, tip=tip)
    return drawing
