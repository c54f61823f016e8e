"""The picture of what students are worth against what their training cost, as one SVG file that stands alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edc.benchmark.page.charts.svg import SHAPES, Drawing, Scale, axes, log_scale, marker_definitions, scale
from edc.errors import RunError
from edc.evidence.over_seeds import Evidence, EvidenceRow
from edc.evidence.read_runs import Measure
from edc.system.files import write_atomically

__all__ = ["picture", "write_picture"]

WIDTH, HEIGHT, BETWEEN = 460.0, 380.0, 20.0
LETTER, LINE = 6.6, 13.0
"""Width of a letter and height of a line, in units of the drawing."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#666666")
"""Okabe and Ito 2008, which the colour-blind tell apart; from the ninth student on they begin again."""

STYLE = """
svg{background:#fff;font:12px system-ui,sans-serif}
text{fill:#333}.l{font-weight:600}.h{font-weight:600;font-size:14px}
.g{stroke:#e4e4e4;fill:none}.ax{stroke:#777;fill:none}.e{stroke-width:1.5;fill:none}
.ensemble,.teacher{stroke:#333;stroke-width:1.5;fill:none}.teacher{stroke-dasharray:5 4}
.m{stroke:#fff;stroke-width:1}
"""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Panel:
    measure: Measure
    title: str
    factor: float
    """Of the figures; negative where less is better, so that up is better in both panels."""


PANELS = (
    _Panel("acc", "accuracy on test images, %", 100),
    _Panel("calibrated_nll", "calibrated NLL, nats (less is better: upside down)", -1),
)


def write_picture(path: Path, evidence: Evidence, *, name: str) -> None:
    """Writes the picture to `path`, whole or not at all.

    Raises:
        RunError: `path` is not called .svg, or the training of no student has a known cost.
    """
    if path.suffix != ".svg":
        raise RunError(f"--plot: found {path}, expected a file that ends in .svg")
    text = picture(evidence, name=name)
    with write_atomically(path) as temporary:
        temporary.write_text(text)


def picture(evidence: Evidence, *, name: str) -> str:
    """Returns the SVG: a panel for each measure, a marker for each student, a line for ensemble and one teacher."""
    students = [row for row in evidence.rows if row.units and row.subject and row.subject.role == "student"]
    if not students:
        raise RunError(f"--plot: what the training of the students of {', '.join(evidence.runs)} cost is not known")
    seeds = f"seed {evidence.seeds[0]}" if len(evidence.seeds) == 1 else f"{len(evidence.seeds)} runs, mean ±sd"
    drawings = [_panel(panel, evidence, students) for panel in PANELS]
    total = 2 * WIDTH + BETWEEN
    colours = "".join(f".c{n}{{fill:{colour}}}.e.c{n}{{stroke:{colour};fill:none}}" for n, colour in enumerate(COLOURS))
    placed = [
        f'<g transform="translate({number * (WIDTH + BETWEEN):g} 30)">{"".join(drawing.parts)}</g>'
        for number, drawing in enumerate(drawings)
    ]
    rest = Drawing(total, 30, "")
    rest.text((4, 20), f"{name}: quality against training cost ({seeds})", "h")
    height = _legend(rest, students, top=HEIGHT + 40)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:g} {height:g}" width="{total:g}" '
        f'height="{height:g}"><style>{STYLE}{colours}</style><defs>{marker_definitions()}</defs>'
        f'<rect width="{total:g}" height="{height:g}" fill="#fff"/>{"".join([*rest.parts, *placed])}</svg>\n'
    )


def _marker(number: int) -> tuple[str, str]:
    """Returns the shape and the colour of a student: no two of 64 have the same of both."""
    return SHAPES[(number + number // len(COLOURS)) % len(SHAPES)], f"c{number % len(COLOURS)}"


def _legend(drawing: Drawing, students: Sequence[EvidenceRow], *, top: float) -> float:
    """Writes every student beside its marker, in columns, and returns where the drawing ends."""
    width = 30 + LETTER * max(len(row.label) for row in students)
    num_columns = max(1, int((drawing.width - 8) // width))
    for number, row in enumerate(students):
        left, height = 14 + width * (number % num_columns), top + 20 * (number // num_columns)
        shape, colour = _marker(number)
        drawing.marker((left, height), shape, colour, size="large")
        drawing.text((left + 12, height + 4), row.label)
    return top + 20 * math.ceil(len(students) / num_columns)


def _panel(panel: _Panel, evidence: Evidence, students: Sequence[EvidenceRow]) -> Drawing:
    drawing = Drawing(WIDTH, HEIGHT, panel.title)
    lines = {row.label: row for row in evidence.rows if row.label in ("ensemble", "teacher")}
    heights = [bound for row in (*students, *lines.values()) for bound in _bounds(row, panel)]
    x = log_scale([row.units / 1000 for row in students if row.units], 52, WIDTH - 16, margin=0.12)
    up = scale(heights, HEIGHT - 44, 40, margin=0.08)
    y = up if panel.factor > 0 else Scale(-up.low, -up.high, up.start, up.end)
    ticks = Scale(min(y.low, y.high), max(y.low, y.high), 0, 1).ticks(6)
    axes(drawing, x, y, x_label="thousand forward passes (logarithmic)", y_label=panel.title, y_ticks=ticks)
    taken: list[Box] = []
    for label, row in lines.items():
        height = up(panel.factor * row.figures[panel.measure].mean)
        drawing.line((x.start, height), (x.end, height), label)
        words = "ensemble" if label == "ensemble" else "one teacher (mean)"
        drawing.text((x.end, height - 4), words, anchor="end")
        taken += [(x.end - LETTER * len(words), height - 4 - LINE, x.end, height - 4), (x.start, height, x.end, height)]
    points = [(x((row.units or 0) / 1000), up(panel.factor * row.figures[panel.measure].mean)) for row in students]
    taken += [(left - 6, top - 6, left + 6, top + 6) for left, top in points]
    for row, (at, _) in zip(students, points, strict=True):
        low, high = (up(bound) for bound in _bounds(row, panel))
        taken.append((at - 1, high, at + 1, low))
    for number, (row, (at, height)) in enumerate(zip(students, points, strict=True)):
        shape, colour = _marker(number)
        low, high = (up(bound) for bound in _bounds(row, panel))
        drawing.line((at, low), (at, high), f"e {colour}")
        figures = row.figures[panel.measure]
        cost = f"{(row.units or 0) / 1000:.3g} thousand forward passes"
        tip = f"{row.label}: {abs(panel.factor) * figures.mean:.4g}, {cost}"
        drawing.marker((at, height), shape, colour, size="large", tip=tip)
    for row, point in zip(students, points, strict=True):
        _write_beside(drawing, row.label, point, taken)
    return drawing


def _bounds(row: EvidenceRow, panel: _Panel) -> tuple[float, float]:
    """Returns the mean less and plus a standard deviation, in the direction in which more is better."""
    figures = row.figures[panel.measure]
    spread = abs(panel.factor) * (figures.sd or 0.0)
    return panel.factor * figures.mean - spread, panel.factor * figures.mean + spread


def _write_beside(drawing: Drawing, words: str, at: tuple[float, float], taken: list[Box]) -> None:
    """Writes a label in the first free place around its marker; where there is none, the legend tells."""
    (x, y), length = at, LETTER * len(words)
    # Where the text is anchored, and which share of it is left of there.
    places = [(x + 10, y + 4, 0.0), (x - 10, y + 4, 1.0)]
    places += [(x, y + down, share) for down in (-13, 22) for share in (0.5, 0.0, 1.0)]
    for start, baseline, share in places:
        left = start - share * length
        box = (left, baseline - LINE + 3, left + length, baseline + 3)
        is_free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
        if is_free and left >= 50 and box[2] <= WIDTH:
            taken.append(box)
            drawing.text((start, baseline), words, anchor={0.0: "start", 1.0: "end"}.get(share, "middle"))
            return
