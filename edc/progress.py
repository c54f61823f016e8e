"""The progress of a bench or an export for people: one line per step on stderr, with its time on a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from edc.console import console, duration

__all__ = ["step"]


@contextmanager
def step(doing: str) -> Iterator[None]:
    """Shows `doing` for the block: a spinner on a terminal, a line elsewhere. No bar: it would disturb timings."""
    if not console.is_terminal:
        console.print(doing, highlight=False)
        yield
        return
    start = time.monotonic()
    with console.status(f"{doing} ...", refresh_per_second=1):
        yield
    console.print(f"{doing}: {duration(time.monotonic() - start)}", highlight=False)
