"""A table of the page, before the template writes it."""

from dataclasses import dataclass

from markupsafe import Markup, escape

from edc.benchmark.page.document import Bench, Series
from edc.benchmark.saved.document import SavedRow

__all__ = ["Cell", "Line", "Table", "line_of", "with_breaks", "with_quiet_interval"]

Cell = str | Markup


@dataclass(frozen=True)
class Line:
    """A row of a table. `series` is who is drawn before the first cell; `identity` is what a link leads to."""

    cells: tuple[Cell, ...]
    series: Series | None = None
    is_student: bool = False
    identity: str = ""


@dataclass(frozen=True)
class Table:
    """`groups` are lines under a heading (a backend); columns from `num_words` on hold numbers."""

    name: str
    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    num_words: int = 1
    note: str = ""
    is_open: bool = True


def line_of(bench: Bench, row: SavedRow, *cells: Cell, identity: str = "") -> Line:
    """Returns the line of a row: its subject, then the cells."""
    series = bench.series(row.key)
    return Line((series.name, *cells), series, bench.is_student(row), identity)


def with_breaks(name: str) -> Markup:
    """Returns the name with places to wrap it: after each underscore, as programs write their words."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def with_quiet_interval(cell: Cell) -> Cell:
    """Returns the cell with what is in parentheses at its end set back, so that figures are read first."""
    if isinstance(cell, Markup) or not cell.endswith(")"):
        return cell
    figure, _, rest = cell.partition(" (")
    return Markup('{} <span class="iv">({}</span>').format(figure, rest)
