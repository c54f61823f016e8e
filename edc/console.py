"""The console for people, and how numbers are written for them."""

import sys

from rich.console import Console

__all__ = ["console", "console_on", "count", "duration"]

WIDTH_OF_A_FILE = 150
"""Columns of a table in a file or a pipe, for which rich would assume 80."""


def console_on(*, stderr: bool) -> Console:
    """Returns a console on stdout or stderr, as wide as the terminal; without one, wide enough for our tables."""
    stream = sys.stderr if stderr else sys.stdout
    # Paths and messages hold square brackets, which must not be read as markup.
    return Console(stderr=stderr, markup=False, width=None if stream.isatty() else WIDTH_OF_A_FILE)


console = console_on(stderr=True)


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
