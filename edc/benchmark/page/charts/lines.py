"""Small charts of lines: robustness, throughput, server load, training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edc.benchmark.page.charts.svg import Drawing, Scale, axes, log_scale, scale
from edc.benchmark.page.document import Bench, Series
from edc.benchmark.page.numbers import fixed, milliseconds, tick

__all__ = ["ROBUSTNESS", "RobustnessMeasure", "robustness", "robustness_scale", "server_load", "throughput", "training"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 250, 202, 40, 244, 28, 164
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class RobustnessMeasure:
    """A column of the robustness records."""

    field: str
    name: str
    scale: float = 1

    def values(self, record: Figures) -> list[float]:
        """Returns the figure of a record, with the bounds of its interval if it has one; nothing without a figure."""
        found = record.get(self.field)
        known = [found.get(name) for name in ("value", "low", "high")] if isinstance(found, Mapping) else [found]
        return [self.scale * value for value in known if value is not None]


ROBUSTNESS = (
    RobustnessMeasure("acc", "accuracy, %", 100),
    RobustnessMeasure("nll", "NLL, nats"),
    RobustnessMeasure("ece", "ECE"),
    RobustnessMeasure("brier", "Brier score"),
    RobustnessMeasure("calibrated_nll", "calibrated NLL"),
    RobustnessMeasure("calibrated_ece", "calibrated ECE"),
    RobustnessMeasure("agreement", "agreement with the ensemble, %", 100),
    RobustnessMeasure("acc_difference", "against the ensemble, points of accuracy", 100),
)


def robustness(
    records: Mapping[str, Sequence[Figures]],
    bench: Bench,
    *,
    corruption: str,
    measure: RobustnessMeasure,
    top_to: Scale,
) -> Drawing:
    """Returns a measure against the severity of one corruption; severity 0 is the original images.

    Args:
        records: by key, as `details` has them.
        top_to: the scale of all corruptions of this measure, so that they compare.
    """
    drawing = Drawing(WIDTH, HEIGHT, f"{measure.name} against severity of {corruption}; the table has the figures")
    lines = {key: _by_severity(rows, corruption, measure) for key, rows in records.items()}
    severities = sorted({severity for line in lines.values() for severity, _ in line})
    x, y = Scale(0, max([*severities, 1]), LEFT, RIGHT), top_to
    axes(drawing, x, y, x_label="severity", y_label="", x_ticks=severities, y_ticks=y.ticks(6))
    for key, line in sorted(lines.items(), key=lambda item: bench.is_drawn_last(item[0])):
        series = bench.series(key)
        tip = [f"{key}, {corruption}", *(f"severity {at}: {measure.name} {fixed(v[0], 3)}" for at, v in line)]
        for at, (_, *bounds) in line:
            if len(bounds) == 2:
                drawing.line((x(at), y(bounds[0])), (x(at), y(bounds[1])), f"e c{series.colour}")
        _line(drawing, [(x(at), y(values[0])) for at, values in line], series, tip)
    return drawing


def robustness_scale(records: Mapping[str, Sequence[Figures]], measure: RobustnessMeasure) -> Scale | None:
    """Returns the scale that all corruptions of a measure share, or None if there are no figures."""
    values = [value for rows in records.values() for row in rows for value in measure.values(row)]
    return scale(values, BOTTOM, TOP) if values else None


def throughput(entries: Sequence[Figures], bench: Bench) -> Drawing | None:
    """Returns images per second against the batch size, both logarithmic, one line per network of one backend."""
    points = {entry["key"]: [p for p in entry.get("points") or [] if p.get("images_per_second")] for entry in entries}
    rates = [point["images_per_second"] for line in points.values() for point in line]
    if not rates:
        return None
    drawing = Drawing(WIDTH, HEIGHT, "images per second against batch size; the table has the figures")
    batches = sorted({point["batch"] for line in points.values() for point in line})
    x, y = log_scale(batches, LEFT, RIGHT), log_scale(rates, BOTTOM, TOP)
    shown = batches if len(batches) <= 8 else batches[::2]
    axes(
        drawing, x, y, x_label="batch", y_label="images per second", x_ticks=shown, y_ticks=y.ticks(5), y_format=_short
    )
    for entry in sorted(entries, key=lambda entry: bench.is_drawn_last(entry["key"])):
        line = points[entry["key"]]
        rates_of = (f"batch {p['batch']}: {fixed(p['images_per_second'], 0)} images/s" for p in line)
        series = bench.series(entry["key"])
        _line(drawing, [(x(p["batch"]), y(p["images_per_second"])) for p in line], series, [entry["key"], *rates_of])
    return drawing


def server_load(entries: Sequence[Figures], bench: Bench) -> Drawing | None:
    """Returns p99 latency against the rate at which requests arrive, with the bound that decides, for one backend."""
    points = {entry["key"]: [p for p in entry.get("points") or [] if p.get("p99_ms")] for entry in entries}
    flat = [point for line in points.values() for point in line]
    if not flat:
        return None
    drawing = Drawing(WIDTH, HEIGHT, "p99 latency against offered rate; the table has the figures")
    bounds = sorted({entry["bound_ms"] for entry in entries if entry.get("bound_ms")})
    x = log_scale([point["offered_per_second"] for point in flat], LEFT, RIGHT)
    y = log_scale([*(point["p99_ms"] for point in flat), *bounds], BOTTOM, TOP)
    x_label, y_label = "requests per second, offered", "p99 latency, ms"
    axes(drawing, x, y, x_label=x_label, y_label=y_label, x_ticks=x.ticks(4), y_ticks=y.ticks(5), x_format=_short)
    for bound in bounds:
        drawing.line((LEFT, y(bound)), (RIGHT, y(bound)), "bound")
        drawing.text((LEFT + 4, y(bound) - 4), f"bound {tick(bound)} ms")
    for entry in sorted(entries, key=lambda entry: bench.is_drawn_last(entry["key"])):
        line = points[entry["key"]]
        series = bench.series(entry["key"])
        waits = (f"{fixed(p['offered_per_second'], 0)}/s offered: p99 {milliseconds(p['p99_ms'])} ms" for p in line)
        _line(drawing, [(x(p["offered_per_second"]), y(p["p99_ms"])) for p in line], series, [entry["key"], *waits])
    return drawing


def training(
    curves: Mapping[str, Sequence[Figures]],
    bench: Bench,
    *,
    field: str,
    label: str,
    value: Callable[[float], float] = float,
) -> Drawing | None:
    """Returns a column of the training records against the epoch, one line per network; None without any figure.

    Logarithmic where all values are positive, so that the end of training, where curves flatten, is seen.
    """
    lines = {
        name: [(row["epoch"] + 1, value(row[field])) for row in rows if row.get(field) is not None]
        for name, rows in curves.items()
    }
    identities = bench.document.curve_identities
    values = [each for line in lines.values() for _, each in line]
    if not values:
        return None
    last = max(epoch for line in lines.values() for epoch, _ in line)
    make: Callable[..., Scale] = log_scale if min(values) > 0 else scale
    x, y = Scale(1, max(last, 2), LEFT, RIGHT), make(values, BOTTOM, TOP)
    drawing = Drawing(WIDTH, HEIGHT, f"{label} of {', '.join(lines)} against epoch")
    axes(
        drawing,
        x,
        y,
        x_label="epoch",
        y_label=label,
        x_ticks=[t for t in x.ticks(4) if t == int(t)],
        y_ticks=y.ticks(5),
    )
    for name, line in sorted(lines.items(), key=lambda item: identities[item[0]] == bench.deployed):
        if not line:
            continue
        series, (epoch, final) = bench.series_of_curve(name), line[-1]
        tip = f"{name}\nepoch {epoch}: {label} {fixed(final, 3)}"
        css = f"s thin c{series.colour}" if identities[name].role == "teacher" else f"s c{series.colour}"
        points = [(x(at), y(height)) for at, height in line]
        drawing.polyline(points, css, dash=series.dash, tip=tip)
        drawing.marker(points[-1], series.shape, series.css, tip=tip)
    return drawing


def _line(drawing: Drawing, points: Sequence[tuple[float, float]], series: Series, tip: Sequence[str]) -> None:
    """Draws a line with a marker at every point; `tip` has its name and one line per point."""
    drawing.polyline(points, f"s c{series.colour}", dash=series.dash, tip="\n".join(tip))
    for point in points:
        drawing.marker(point, series.shape, f"{series.css} q")


def _by_severity(rows: Sequence[Figures], corruption: str, measure: RobustnessMeasure) -> list[tuple[int, list[float]]]:
    """Returns (severity, value and bounds) of a corruption; the images as they are begin every line."""
    found = {
        row["severity"]: values
        for row in rows
        if row["corruption"] in {"none", corruption} and (values := measure.values(row))
    }
    return sorted(found.items())


def _short(value: float) -> str:
    """Returns a rate in few letters: 500, 2k, 1.5M."""
    for divisor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= divisor:
            return f"{value / divisor:g}{unit}"
    return f"{value:g}"
