"""Requests to stop, as a list that a loop can check.

SIGINT is Ctrl-C. SIGTERM is what SLURM, container runtimes and torchrun send before SIGKILL. SIGUSR1 is what SLURM is
usually told to send some time before the time limit (`--signal=USR1@120`).
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from edc.errors import Interrupted

__all__ = ["STOP_SIGNALS", "ignore_stops", "interrupted_by", "nothing_kept", "stop_at_once", "stop_requests"]

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__
)
"""The signals that ask to stop; Windows has no SIGUSR1."""
SECONDS_IN_AN_IMPORT, SECONDS_UNTIL_AGAIN = 0.05, 10.0


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
def stop_at_once() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGUSR1 raise `Interrupted`, SIGINT KeyboardInterrupt; nothing more is saved.

    Yields the signals that came. While a module is imported a signal waits, because libraries turn what is raised then
    into errors of their own. Some code swallows what is raised in it (destructors, callbacks), so that a signal comes
    again as long as the block goes on. `stop_requests` inside the block takes the first of each kind over for as
    long as it lasts.
    """
    received: list[int] = []
    timers: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        importing = _is_importing(frame)
        again = threading.Timer(SECONDS_IN_AN_IMPORT if importing else SECONDS_UNTIL_AGAIN, _raise_signal, [number])
        again.daemon = True
        timers.append(again)
        again.start()
        if importing:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Interrupted(number, saved=False)

    with _handled(dict.fromkeys(STOP_SIGNALS, stop)):
        try:
            yield received
        finally:
            for timer in timers:
                timer.cancel()


def ignore_stops() -> None:
    """From now on nothing asks to stop: the work is done, and its exit code decided."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _raise_signal(number: int) -> None:
    """Sends the signal to the main thread, whose waiting it ends; Windows can send one to the process alone."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


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
