"""Tables that fit their terminal: columns give way in a stated order, names never do."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["TextRow", "fitting_table"]

NAMES = 30
"""Characters that a column of names has at least; longer names are continued below."""


@dataclass(frozen=True)
class TextRow:
    """A row: its name, its cells by column, and whether it stands out."""

    name: str
    cells: dict[str, str]
    is_bold: bool = False


def fitting_table(
    title: str, rows: Sequence[TextRow], columns: Sequence[str], *, gives_way: Sequence[str], console: Console
) -> tuple[Table, list[str]]:
    """Returns a table of the columns that the console has room for, and the names of those left out.

    Args:
        gives_way: columns in the order in which they are left out; the others stay.
    """
    left_out: list[str] = []
    unlimited = console.options.update(max_width=10_000)
    for column in [None, *(column for column in gives_way if column in columns)]:
        left_out += [column] if column else []
        table = _table(title, rows, [column for column in columns if column not in left_out])
        if console.measure(table, options=unlimited).maximum <= console.width:
            break
    return table, [column for column in columns if column in left_out]


def _table(title: str, rows: Sequence[TextRow], columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    longest = max((len(row.name) for row in rows), default=0)
    table.add_column("network", overflow="fold", min_width=min(longest, NAMES))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *(row.cells[column] for column in columns), style="bold" if row.is_bold else None)
    return table
