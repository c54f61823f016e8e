"""The console for people, and how numbers and tables are written for them.

Tables fit their terminal: columns give way in a stated order, names never do.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "TextRow",
    "console",
    "console_on",
    "count",
    "duration",
    "fitting_table",
    "fixed",
    "has_room",
    "left_out_words",
]

WIDTH_OF_A_FILE = 150
"""Columns of a table in a file or a pipe, for which rich would assume 80."""
MOST_FIXED = 1e5
"""From where on a number has an exponent in a table."""
NAMES = 30
"""Characters that a column of names has at least; longer names are continued below."""
WORDS = 22
"""Characters that a column of words has at most; longer words are continued below."""


def console_on(*, stderr: bool) -> Console:
    """Returns a console on stdout or stderr, as wide as the terminal; without one, wide enough for our tables."""
    stream = sys.stderr if stderr else sys.stdout
    # Paths and messages hold square brackets, which must not be read as markup.
    return Console(stderr=stderr, markup=False, width=None if stream.isatty() else WIDTH_OF_A_FILE)


console = console_on(stderr=True)


def fixed(value: float, digits: int) -> str:
    """Returns the number with so many decimals; a huge one, like a diverged NLL, in scientific form."""
    return f"{value:.{digits}f}" if abs(value) < MOST_FIXED else f"{value:.2e}"


def count(number: int) -> str:
    """Returns a number of parameters for people: 950, 78.0 k, 11.7 M."""
    for divisor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= divisor:
            return f"{number / divisor:.1f}{unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Returns a time for people: 42 s, 3.5 min, 2.1 h, 5.0 days."""
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} s" if unit == "s" else f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


@dataclass(frozen=True)
class TextRow:
    """A row: its name, its cells by column, its style, and the second part of its name, if rows have one."""

    name: str
    cells: dict[str, str]
    style: str | None = None
    second: str = ""


def fitting_table(
    title: str,
    rows: Sequence[TextRow],
    columns: Sequence[str],
    *,
    gives_way: Sequence[str],
    console: Console,
    names: Sequence[str] = ("network",),
    words: Sequence[str] = (),
) -> tuple[Table, list[str]]:
    """Returns a table of the columns that the console has room for, and the names of those left out.

    Args:
        gives_way: columns in the order in which they are left out; the others stay.
        names: the headings of names; a line divides rows whose second parts differ.
        words: columns that hold words, on the left of their column and continued below.
    """
    table = _table(title, rows, columns, names, words)
    if _fits(table, console):
        return table, []
    left_out: list[str] = []
    for column in [None, *(column for column in gives_way if column in columns)]:
        left_out += [column] if column else []
        shown = [column for column in columns if column not in left_out]
        if _fits(_table(title, rows, shown, names, words, most=NAMES), console):
            break
    # Without a limit, names get all the room that the columns leave.
    return _table(title, rows, shown, names, words, is_narrow=True), [each for each in columns if each in left_out]


def has_room(
    rows: Sequence[TextRow], columns: Sequence[str], *, console: Console, names: Sequence[str] = ("network",)
) -> bool:
    """Returns whether the console has room for a table of all columns, with names as they are."""
    return _fits(_table("", rows, columns, names, ()), console)


def _fits(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return console.measure(table, options=unlimited).maximum <= console.width


def left_out_words(left_out: Sequence[str]) -> str:
    """Returns the line below a table that says what it has no room for."""
    return f"left out for want of room: {', '.join(left_out)}" if left_out else ""


def _table(
    title: str,
    rows: Sequence[TextRow],
    columns: Sequence[str],
    names: Sequence[str],
    words: Sequence[str],
    *,
    is_narrow: bool = False,
    most: int | None = None,
) -> Table:
    """Returns the table.

    Args:
        is_narrow: the second parts of names are headings above their rows.
        most: characters of a column of names, if they have a limit; the table is then narrow.
    """
    is_narrow = is_narrow or most is not None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    parts = 1 if is_narrow else len(names)
    for part, heading in enumerate(names[:parts]):
        longest = max((len((row.name, row.second)[part]) for row in rows), default=0)
        table.add_column(heading, overflow="fold", min_width=min(longest, NAMES), max_width=most)
    for column in columns:
        if column in words:
            table.add_column(column, overflow="fold", max_width=WORDS)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    before = None if is_narrow and len(names) > 1 else rows[0].second if rows else ""
    for row in rows:
        if row.second != before:
            before = row.second
            table.add_section()
            if is_narrow and len(names) > 1:
                table.add_row(Text(row.second, style="italic"))
        cells = ((row.name, row.second)[:parts]) + tuple(row.cells[each] for each in columns)
        table.add_row(*map(Text, cells), style=row.style)  # names may hold square brackets, which are no markup
    return table
