"""One worker process as its parent sees it: started with its threads set, asked, and checked for its death."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from time import monotonic
from typing import Any

from edc.benchmark.backends import BackendName
from edc.benchmark.backends.contract import Floats
from edc.benchmark.workers.protocol import Refused, Request
from edc.benchmark.workers.worker import serve
from edc.errors import FailedError

__all__ = ["WorkerProcess"]

SECONDS_BETWEEN_LOOKS = 0.05
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerProcess:
    """A process that runs one backend. `ask` raises `FailedError` with the reason, and `is_alive` tells how bad it is.

    Making one only starts it, so that several can import their libraries at the same time.

    Args:
        images: what the worker times with, (N, C, H, W) in [0, 1].
        limit_s: a worker that does not answer for so long is killed.
    """

    def __init__(self, backend: BackendName, *, threads: int, images: Floats, limit_s: float) -> None:
        self.backend, self.limit_s = backend, limit_s
        self._images, self._is_ready = images, False
        context = get_context("spawn")  # a fork would inherit the parent's thread pools, and its imports
        self._connection, other_end = context.Pipe()
        self._process = context.Process(
            target=serve, args=(other_end, backend), kwargs={"threads": threads}, daemon=True
        )
        with _environment(dict.fromkeys(THREAD_VARIABLES, str(threads))):
            self._process.start()
        other_end.close()

    @property
    def is_alive(self) -> bool:
        return not self._connection.closed

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, request: Request, *, doing: str, look: Callable[[], None] | None = None) -> Any:
        """Returns the worker's answer; `doing` completes "died while ..." should it not come.

        Args:
            look: called again and again until the answer is there.
        """
        self.wait_until_ready()
        return self._exchange(request, doing=doing, look=look)

    def wait_until_ready(self) -> None:
        """Waits until the backend is imported; a backend that is absent ends the worker with `FailedError`."""
        if self._is_ready:
            return
        try:
            self._receive(doing="starting")
            self._connection.send(self._images)
        except (FailedError, ConnectionError) as error:
            self.kill()
            raise FailedError(str(error)) from None
        self._is_ready = True

    def close(self) -> None:
        """Ends the worker by closing its pipe, and by force if that does not help."""
        if self.is_alive:
            self._connection.close()
            self._process.join(timeout=5)
        self.kill()

    def kill(self) -> None:
        """Ends the worker at once."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _exchange(self, message: Request, *, doing: str, look: Callable[[], None] | None) -> Any:
        try:
            self._connection.send(message)
        except ConnectionError:
            raise self._death(doing) from None
        return self._receive(doing=doing, look=look)

    def _receive(self, *, doing: str, look: Callable[[], None] | None = None) -> Any:
        until = monotonic() + self.limit_s
        while not wait(
            [self._connection, self._process.sentinel], timeout=SECONDS_BETWEEN_LOOKS if look else self.limit_s
        ):
            if look and monotonic() < until:
                look()
                continue
            self.kill()
            raise FailedError(f"the {self.backend} worker gave no answer for {self.limit_s:g} s while {doing}")
        try:
            answer = self._connection.recv()  # also from a worker that has answered and ended
        except (EOFError, ConnectionError):
            raise self._death(doing) from None
        if isinstance(answer, Refused) and answer.has_ended:
            self.kill()
            raise FailedError(f"{answer.reason}; the GPU fails all later calls of that process, so it was ended")
        if isinstance(answer, Refused):
            raise FailedError(answer.reason)
        return answer

    def _death(self, doing: str) -> FailedError:
        self._process.join(timeout=5)  # the pipe breaks before the exit code is there
        self.kill()
        return FailedError(f"the {self.backend} worker died while {doing} ({_cause(self._process.exitcode)})")


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}; what it said is on stderr"
    name = signal.Signals(-exit_code).name
    return f"{name}; the system kills a process that needs more memory than there is" if name == "SIGKILL" else name


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the block: what a child starts with, before it imports anything."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
