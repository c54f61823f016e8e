"""Requests to stop, as a list that a loop can check.

SIGINT is Ctrl-C. SIGTERM is what SLURM, container runtimes and torchrun send before SIGKILL. SIGUSR1 is what SLURM is
usually told to send some time before the time limit (`--signal=USR1@120`).
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edc.errors import Interrupted

__all__ = ["STOP_SIGNALS", "interrupted_by", "nothing_kept", "stop_at_once", "stop_requests"]

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__
)
"""The signals that ask to stop; Windows has no SIGUSR1."""


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yields a list that each of `STOP_SIGNALS` puts its number into; a second one of a kind acts as usual."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    with _handled(dict.fromkeys(STOP_SIGNALS, remember)):
        yield received


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 raise `Interrupted`, with nothing saved but what was written before.

    SIGINT keeps raising KeyboardInterrupt. `stop_requests` inside the block takes the first of each kind over for as
    long as it lasts; a second one comes here.
    """

    def stop(number: int, _frame: Any) -> None:
        raise Interrupted(number, saved=False)

    with _handled(dict.fromkeys((s for s in STOP_SIGNALS if s != signal.SIGINT), stop)):
        yield


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Marks an `Interrupted` from the block as not saved, because its files are in a folder that is deleted."""
    try:
        yield
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signal_number, saved=False) from None


@contextmanager
def _handled(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Sets these handlers, and puts the previous ones back; outside the main thread, where none may be set, nothing."""
    previous = {number: signal.getsignal(number) for number in handlers}
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except ValueError:  # not in the main thread: no signal is delivered here
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupted_by(stop: Sequence[int]) -> Interrupted:
    """Returns what to raise when everything is saved; without a signal here, it reached another process."""
    return Interrupted(stop[0] if stop else signal.SIGTERM, saved=True)
