"""Requests to stop, turned into something a loop can look at."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["stop_requests"]


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yields a list that SIGINT or SIGTERM put their number into; a second signal acts as usual."""
    received: list[int] = []
    try:
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def remember(number: int, _frame: Any) -> None:
            received.append(number)
            signal.signal(number, previous[signal.Signals(number)])

        for number in previous:
            signal.signal(number, remember)
    except ValueError:  # not in the main thread: nobody can press Ctrl-C on us
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
