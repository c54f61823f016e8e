"""A minimum of SVG: scales with round ticks, markers that differ in shape, a drawing that escapes its texts.

Colours are classes (`c0`, `c1`, ...), which the style sheet fills in for light, dark and paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from edc.benchmark.page.numbers import tick

__all__ = ["SHAPES", "Drawing", "Scale", "axes", "log_scale", "marker_definitions", "scale"]

Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus", "pentagon", "cross")
SIZES = {"small": 3.5, "medium": 4.5, "large": 6.5}
"""Radii of markers."""


@dataclass(frozen=True)
class Scale:
    """Maps data from `low` to `high` to pixels from `start` to `end`, in proportion to their logarithms if `is_log`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low) if high != low else 0.5  # upside down, `low` is the larger one
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Returns round numbers inside the scale, at most about `about` of them."""
        if self.is_log and self.high / self.low > 2.5:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found: list[float] = []
            for digits in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
                values = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
                found = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
                if len(found) <= about + 1:
                    return found
            return found[:: math.ceil(len(found) / (about + 1))]
        rough = (self.high - self.low) / max(about, 1)
        power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
        step = next(nice * power for nice in (1, 2, 5, 10) if nice * power >= 0.999 * rough)
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Sequence[float], start: float, end: float, *, margin: float = 0.06, least: float = 0.0) -> Scale:
    """Returns a linear scale that holds the values with a margin on both sides, and is at least `least` long."""
    low, high = min(values), max(values)
    short = max(least - (high - low), 0.0) or (abs(high) * 0.1 + 1e-9 if high == low else 0.0)
    low, high = low - short / 2, high + short / 2
    room = margin * (high - low)
    return Scale(low - room, high + room, start, end)


def log_scale(values: Sequence[float], start: float, end: float, *, margin: float = 0.06) -> Scale:
    """Returns a logarithmic scale that holds the values, all positive, with a margin on both sides."""
    low, high = min(values), max(values)
    if high < 1.2 * low:
        low, high = low / 1.1, high * 1.1
    room = (high / low) ** margin
    return Scale(low / room, high * room, start, end, is_log=True)


def _shape_path(shape: str, x: float, y: float, radius: float) -> str:
    """Returns the path of a marker around (x, y); all shapes have about the same area."""
    if shape == "circle":
        return (
            f"M{x - radius:.1f} {y:.1f}a{radius} {radius} 0 1 0 {2 * radius} 0a{radius} {radius} 0 1 0 {-2 * radius} 0z"
        )
    if shape in {"plus", "cross"}:
        arm, half = 1.2 * radius, 0.42 * radius
        corners = [(arm, half), (half, half), (half, arm), (-half, arm), (-half, half), (-arm, half)]
        points = [*corners, *((-dx, -dy) for dx, dy in corners)]
        if shape == "cross":
            points = [((dx - dy) * math.sqrt(0.5), (dx + dy) * math.sqrt(0.5)) for dx, dy in points]
    else:
        sides, stretch, turn = {
            "square": (4, 1.25, 45),
            "diamond": (4, 1.3, 0),
            "triangle": (3, 1.4, 0),
            "down": (3, 1.4, 180),
            "pentagon": (5, 1.15, 0),
        }[shape]
        angles = [math.radians(turn + 360 * side / sides) for side in range(sides)]
        points = [(stretch * radius * math.sin(angle), -stretch * radius * math.cos(angle)) for angle in angles]
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in points) + "z"


def marker_definitions() -> Markup:
    """Returns the markers, once per page; drawings refer to them."""
    paths = [
        f'<path id="m-{shape}-{name}" d="{_shape_path(shape, 0, 0, radius)}"/>'
        for shape in SHAPES
        for name, radius in SIZES.items()
    ]
    return Markup("".join(paths))


@dataclass
class Drawing:
    """An SVG that grows; `label` is what a screen reader says. Text and tooltips are escaped here and nowhere else."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, css: str) -> None:
        (x1, y1), (x2, y2) = start, end
        self.parts.append(f'<path class="{css}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')

    def rect(self, corner: Point, width: float, height: float, css: str, *, tip: str = "") -> None:
        x, y = corner
        box = f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self.parts.append(f"{box}>{_title(tip)}</rect>" if tip else f"{box}/>")

    def text(self, at: Point, words: str, css: str = "t", *, anchor: str = "start") -> None:
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text class="{css}" x="{at[0]:.1f}" y="{at[1]:.1f}"{where}>{escape(words)}</text>')

    def polyline(self, points: Sequence[Point], css: str, *, dash: str = "", tip: str = "", step: float = 0.05) -> None:
        """Draws a line through the points; those nearer than `step` to the one before are left out, but the last."""
        if not points:
            return
        kept = [points[0]]
        for x, y in points[1:]:
            if abs(x - kept[-1][0]) + abs(y - kept[-1][1]) >= step or (x, y) == points[-1]:
                kept.append((x, y))
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<path class="{css}" d="{path}"{dashes}>{_title(tip)}</path>')

    def marker(self, at: Point, shape: str, css: str, *, tip: str = "", size: str = "small", target: str = "") -> None:
        """Draws a marker of `SHAPES` in one of `SIZES`; `target` is the id of a table row that it leads to."""
        where = f'href="#m-{shape}-{size}" x="{at[0]:.1f}" y="{at[1]:.1f}"'
        marker = f'<use class="m {css}" {where}>{_title(tip)}</use>' if tip else f'<use class="m {css}" {where}/>'
        self.parts.append(f'<a href="#{escape(target)}">{marker}</a>' if target else marker)

    def __html__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}">'
            f"{''.join(self.parts)}</svg>"
        )

    def markup(self) -> Markup:
        return Markup(self.__html__())  # every part was escaped as it came in


def axes(
    drawing: Drawing,
    x: Scale,
    y: Scale,
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
    x_format: Callable[[float], str] = tick,
    y_format: Callable[[float], str] = tick,
) -> None:
    """Draws the grid, the ticks and the labels: that of y stands above its axis, so that no head has to turn."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    for value in y.ticks(5) if y_ticks is None else y_ticks:
        drawing.line((left, y(value)), (right, y(value)), "g")
        drawing.text((left - 6, y(value) + 3.5), y_format(value), anchor="end")
    for value in x.ticks(max(3, round((right - left) / 80))) if x_ticks is None else x_ticks:
        drawing.line((x(value), bottom), (x(value), bottom + 4), "ax")
        drawing.text((x(value), bottom + 16), x_format(value), anchor="middle")
    drawing.line((left, bottom), (right, bottom), "ax")
    if y_label:
        drawing.text((4, top - 10), y_label, "l")
    if x_label:
        drawing.text((right, bottom + 31), x_label, "l", anchor="end")


def _title(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""
