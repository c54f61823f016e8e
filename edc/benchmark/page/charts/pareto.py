"""The Pareto picture: quality against the latency of a batch, one marker per row, and the rows that no other beats."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edc.benchmark.page.charts.svg import Drawing, Scale, axes, log_scale, scale
from edc.benchmark.page.document import Bench, Series
from edc.benchmark.page.numbers import fixed, interval, milliseconds, signed
from edc.benchmark.saved.document import SavedEstimate, SavedRow

__all__ = ["MEASURES", "Measure", "front", "pareto"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

LETTER_WIDTH, LINE_HEIGHT, NEAR = 7.2, 12.0, 40.0
"""Of the labels, in units of the drawing, on the generous side; one label does for markers so near to each other."""


@dataclass(frozen=True)
class Measure:
    """A measure of quality: `sign` is +1 where more is better."""

    name: str
    axis: str
    sign: int
    value: Callable[[SavedRow], float | None]


def _accuracy(row: SavedRow) -> float | None:
    return None if row.quality is None else 100 * row.quality.raw.acc


def _nll(row: SavedRow) -> float | None:
    return None if row.quality is None else row.quality.raw.nll


def _calibrated_nll(row: SavedRow) -> float | None:
    return None if row.quality is None else row.quality.calibrated_nll


MEASURES = (
    Measure("accuracy", "accuracy, %", 1, _accuracy),
    Measure("NLL", "NLL, nats; lower is better, so the axis is reversed", -1, _nll),
    Measure("cNLL", "calibrated NLL, nats; lower is better, so the axis is reversed", -1, _calibrated_nll),
)


@dataclass(frozen=True)
class _Point:
    row: SavedRow
    median: SavedEstimate
    series: Series
    ms: float
    quality: float

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median in ms; the median itself where a bound is not known."""
        return self.median.low or self.ms, self.median.high or self.ms


@dataclass(frozen=True)
class _Taken:
    """A place where no label can stand any more; of a label also what it says, and of which marker."""

    box: Box
    words: str = ""
    x: float = 0
    y: float = 0


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the numbers of the points (latency, quality) that no other beats, fastest first; more quality is better.

    Of points that are equal in both, the first.
    """
    best, found = -math.inf, []
    for number in sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1], number)):
        if points[number][1] > best:
            best = points[number][1]
            found.append(number)
    return found


def pareto(bench: Bench, *, batch: int, measure: Measure, width: float, height: float) -> Drawing | None:
    """Returns the picture for one batch and measure, or None if no row has both figures."""
    points = [
        _Point(row, row.p50_ms, bench.series(row.key), row.p50_ms.value, quality)
        for row in bench.rows
        if row.batch == batch and row.p50_ms and (quality := measure.value(row)) is not None
    ]
    if not points:
        return None
    drawing = Drawing(
        width, height, f"{measure.name} against median latency at batch {batch}; the table has the figures"
    )
    x = log_scale([ms for point in points for ms in (*point.interval, point.ms)], 52, width - 14, margin=0.09)
    least = 0.5 if measure.sign > 0 else 0.01
    y = scale([point.quality for point in points], height - 42, 40, margin=0.12, least=least)
    if measure.sign < 0:
        y = Scale(y.high, y.low, y.start, y.end)
    upright = Scale(min(y.low, y.high), max(y.low, y.high), 0, 1)
    unit = "ms per image" if batch == 1 else f"ms per batch of {batch}"
    axes(drawing, x, y, x_label=f"median latency, {unit} (logarithmic)", y_label=measure.axis, y_ticks=upright.ticks(5))
    boxes = [(x(point.ms) - 7, y(point.quality) - 7, x(point.ms) + 7, y(point.quality) + 7) for point in points]
    boxes += _sampling_error(drawing, bench, points, y) if measure.sign > 0 else []
    best = front([(point.ms, measure.sign * point.quality) for point in points])
    boxes += _draw_front(drawing, [(x(points[n].ms), y(points[n].quality)) for n in best], right=x.end)
    for point in reversed(points):
        (low, high), at = point.interval, y(point.quality)
        drawing.line((x(low), at), (x(high), at), f"e c{point.series.colour}")
        boxes.append((x(low), at - 2, x(high), at + 2))
    for point in sorted(points, key=lambda point: not bench.is_student(point.row)):  # the large ones below
        drawing.marker(
            (x(point.ms), y(point.quality)),
            point.series.shape,
            point.series.css,
            tip=_tip(point.row),
            size="large" if bench.is_student(point.row) else "medium",
            target=f"row-{bench.number(point.row)}",
        )
    others = [point for n, point in enumerate(points) if n not in best]
    taken = [_Taken(box) for box in boxes]
    _label(drawing, [points[n] for n in best], x, y, taken, css="t best")
    _label(drawing, others, x, y, taken, css="t")
    return drawing


def _draw_front(drawing: Drawing, corners: Sequence[tuple[float, float]], *, right: float) -> list[Box]:
    """Draws the front as steps: from each point on, this quality can be had; the next costs the next one's latency.

    Returns:
        The boxes of its strokes.
    """
    steps = [corners[0]]
    for before, after in pairwise(corners):
        steps += [(after[0], before[1]), after]
    steps.append((right, corners[-1][1]))
    drawing.polyline(steps, "front", tip="Pareto front: no row is both faster and better")
    return [
        (min(x, at) - 1, min(y, height) - 1, max(x, at) + 1, max(y, height) + 1)
        for (x, y), (at, height) in pairwise(steps)
    ]


def _sampling_error(drawing: Drawing, bench: Bench, points: Sequence[_Point], y: Scale) -> list[Box]:
    """Draws how far one accuracy lies from the truth, so that nobody reads a rank out of sampling noise.

    Returns:
        The boxes of what was drawn.
    """
    num_images = bench.document.num_test_images
    if not num_images:
        return []
    share = max(point.quality for point in points) / 100
    half = 100 * 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / num_images)
    pixels = abs(y(half) - y(0))
    words = f"95 % interval of one accuracy on {num_images:,} images: ±{half:.2f}"
    length = LETTER_WIDTH * len(words)
    if 2 * pixels > y.start - y.end - 30:
        drawing.text((58, y.start - 8), words)
        return [(58, y.start - 8 - LINE_HEIGHT, 58 + length, y.start)]
    left, bottom = drawing.width - 24, y.start - 8
    drawing.line((left, bottom), (left, bottom - 2 * pixels), "whisker")
    for at in (bottom, bottom - 2 * pixels):
        drawing.line((left - 4, at), (left + 4, at), "whisker")
    drawing.text((left - 8, bottom), words, anchor="end")
    return [
        (left - 8 - length, bottom - LINE_HEIGHT, left - 8, bottom + 3),
        (left - 4, bottom - 2 * pixels, left + 4, bottom),
    ]


def _label(drawing: Drawing, points: Sequence[_Point], x: Scale, y: Scale, taken: list[_Taken], *, css: str) -> None:
    """Writes the backend beside each marker, in the first free place around it; if there is none, the tooltip does."""
    for point in points:
        words, at, height = point.row.backend, x(point.ms), y(point.quality)
        if any(other.words == words and math.hypot(at - other.x, height - other.y) < NEAR for other in taken):
            continue
        width = LETTER_WIDTH * len(words)
        left, right = min(at - 10, x(point.interval[0]) - 4), max(at + 10, x(point.interval[1]) + 4)
        # Where the text is anchored, and which share of it is left of there.
        places = (
            *((right, height + 4, 0.0), (left, height + 4, 1.0), (at, height - 11, 0.5), (at, height + 19, 0.5)),
            *((at - 4, edge, 0.0) for edge in (height - 11, height + 19)),
            *((at + 4, edge, 1.0) for edge in (height - 11, height + 19)),
        )
        for start, baseline, share in places:
            box = (start - share * width, baseline - LINE_HEIGHT + 3, start + (1 - share) * width, baseline + 3)
            if box[0] < 52 or box[2] > drawing.width - 2 or any(_overlap(box, other.box) for other in taken):
                continue
            anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
            drawing.text((start, baseline), words, css, anchor=anchor)
            taken.append(_Taken(box, words, at, height))
            break


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _tip(row: SavedRow) -> str:
    """Returns the row in a few lines."""
    lines = [
        f"{row.key}, batch {row.batch}" + (f", {row.precision}" if row.precision else ""),
        f"p50 {milliseconds(row.p50_ms)} ms, {fixed(row.images_per_second, 0)} images/s",
    ]
    if row.quality:
        raw, calibrated = row.quality.raw, row.quality.calibrated
        scores = f"accuracy {fixed(raw.acc, 2, scale=100)} %, NLL {fixed(raw.nll, 3)}, ECE {fixed(raw.ece, 3)}"
        lines.append(scores + (f", cNLL {fixed(calibrated.nll, 3)}" if calibrated else ""))
    for against in row.against:
        accuracy = against.accuracy
        by = f"; accuracy {signed(accuracy['difference']['value'], 2, scale=100)} points" if accuracy else ""
        if against.speedup:
            lines.append(f"{interval(against.speedup, 2)} times as fast as {against.baseline}{by}")
    lines += [f"flag: {flag}" for flag in row.flags]
    return "\n".join(lines)
