"""Reliability diagrams: how often a network is right, by its confidence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edc.benchmark.page.charts.svg import Drawing, Scale, axes
from edc.benchmark.page.document import Series
from edc.benchmark.page.numbers import fixed
from edc.metrics.reliability import ReliabilityBin, ece_of_bins

__all__ = ["ece_of", "reliability", "wilson"]

Bin = Mapping[str, Any]
LEFT, TOP, RIGHT_MARGIN = 40, 26, 4
HISTOGRAM, BELOW = 40, 82
"""Heights: of the histogram, and of all that stands below the diagram, labels included."""


def reliability(bins: Sequence[Bin], series: Series, *, title: str, width: float, height: float) -> Drawing:
    """Returns accuracy against confidence above the share of images in each bin.

    Bars reach to the accuracy, ticks mark the mean confidence; ECE adds up the gaps between them. Whiskers
    are Wilson's 95 % intervals, long where a bin holds few images.
    """
    total = sum(each["count"] for each in bins)
    ece = ece_of(bins)
    drawing = Drawing(width, height, f"{title}: ECE {ece:.3f}" if ece is not None else f"{title}: no images")
    x, y = Scale(0, 1, LEFT, width - RIGHT_MARGIN), Scale(0, 1, height - BELOW, TOP)
    axes(drawing, x, y, x_label="", y_label="accuracy", x_ticks=(), y_ticks=(0, 0.25, 0.5, 0.75, 1), y_format=_percent)
    if ece is not None:
        drawing.text((x.end, TOP - 10), f"ECE {fixed(ece, 3)}", "l strong", anchor="end")
    drawing.line((x(0), y(0)), (x(1), y(1)), "diagonal")
    filled = [each for each in bins if each["count"] and each["accuracy"] is not None]
    for each in filled:
        _draw_bin(drawing, each, x, y, series)
    _histogram(drawing, filled, x, top=y.start + 10, total=total, series=series)
    return drawing


def ece_of(bins: Sequence[Bin]) -> float | None:
    """Returns the expected calibration error of the bins; None without images."""
    fields = ("low", "high", "count", "confidence", "accuracy")
    return ece_of_bins(ReliabilityBin(*(each[field] for field in fields)) for each in bins)


def wilson(share: float, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """Returns the 95 % interval of a share of `count`.

    Source: Wilson 1927.
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _draw_bin(drawing: Drawing, each: Bin, x: Scale, y: Scale, series: Series) -> None:
    left, right = x(each["low"]) + 1, x(each["high"]) - 1
    accuracy, confidence, middle = each["accuracy"], each["confidence"], (left + right) / 2
    side = "too sure" if confidence > accuracy else "not sure enough"
    tip = (
        f"{fixed(each['low'], 2)} to {fixed(each['high'], 2)}: {each['count']:,} images\n"
        f"confidence {fixed(confidence, 1, scale=100)} %, accuracy {fixed(accuracy, 1, scale=100)} %: {side}"
    )
    colour = f"c{series.colour}"
    drawing.rect((left, y(max(accuracy, confidence))), right - left, abs(y(accuracy) - y(confidence)), "gap", tip=tip)
    drawing.rect((left, y(accuracy)), right - left, y(0) - y(accuracy), f"bar {colour}", tip=tip)
    low, high = wilson(accuracy, each["count"])
    drawing.line((middle, y(low)), (middle, y(high)), f"e {colour}")
    drawing.line((left - 1, y(confidence)), (right + 1, y(confidence)), "confidence")


def _histogram(drawing: Drawing, bins: Sequence[Bin], x: Scale, *, top: float, total: int, series: Series) -> None:
    """Draws the share of images in each bin; square roots, so that bins of few images are seen at all."""
    base = top + HISTOGRAM
    largest = max((each["count"] for each in bins), default=1)
    for each in bins:
        height = max(1.0, HISTOGRAM * math.sqrt(each["count"] / largest))
        left, right = x(each["low"]) + 1, x(each["high"]) - 1
        share = f"{each['count']:,} of {total:,} images ({fixed(each['count'] / total, 1, scale=100)} %)"
        drawing.rect((left, base - height), right - left, height, f"bar c{series.colour}", tip=share)
    drawing.line((x.start, base), (x.end, base), "ax")
    if bins:
        drawing.text((LEFT - 6, top + 8), f"{fixed(largest / total, 0, scale=100)} %", anchor="end")
    for value in (0.0, 0.5, 1.0):
        drawing.text((x(value), base + 13), _percent(value), anchor="end" if value == 1 else "middle")
    drawing.text((LEFT + 4, top + 8), "images (√)")
    drawing.text((x.end, base + 27), "confidence", "l", anchor="end")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
