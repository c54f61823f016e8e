"""The table of `edc doctor`."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edc.system.doctor import Check

__all__ = ["print_checks"]

STYLES = {"ok": "green", "note": "yellow", "missing": "dim", "slow": "yellow", "broken": "bold red"}


def print_checks(checks: Sequence[Check], *, console: Console) -> None:
    """Prints one row per check; below a problem stands the fix."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what", "found, and what to do"):
        table.add_column(column)
    for check in checks:
        found = check.found if check.status == "ok" or not check.fix else f"{check.found}\n-> {check.fix}"
        table.add_row(Text(check.status, style=STYLES[check.status]), check.name, found)
    console.print(table)
