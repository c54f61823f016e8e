"""One worker process as its parent sees it: started with its threads set, asked, and noticed when it dies."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

from edc.bench.backends import BackendName
from edc.bench.backends.contract import Floats
from edc.bench.messages import Refused, Request
from edc.bench.worker import serve
from edc.errors import FailedError

__all__ = ["WorkerProcess"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerProcess:
    """A process that runs one backend. `ask` raises `FailedError` with the reason, and `is_alive` tells how bad it is.

    Args:
        images: what the worker times with, (N, C, H, W) in [0, 1].
        limit_s: a worker that does not answer for so long is killed.
    """

    def __init__(self, backend: BackendName, *, threads: int, images: Floats, limit_s: float) -> None:
        self.backend, self.limit_s = backend, limit_s
        context = get_context("spawn")  # a fork would inherit the parent's thread pools, and its imports
        self._connection, other_end = context.Pipe()
        self._process = context.Process(
            target=serve, args=(other_end, backend), kwargs={"threads": threads}, daemon=True
        )
        with _environment(dict.fromkeys(THREAD_VARIABLES, str(threads))):
            self._process.start()
        other_end.close()
        try:
            self._exchange(images, doing="starting")
        except FailedError:
            self.kill()
            raise

    @property
    def is_alive(self) -> bool:
        return not self._connection.closed

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, request: Request, *, doing: str) -> Any:
        """Returns the worker's answer; `doing` completes "died while ..." should it not come."""
        return self._exchange(request, doing=doing)

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

    def _exchange(self, message: object, *, doing: str) -> Any:
        try:
            self._connection.send(message)
            ready = wait([self._connection, self._process.sentinel], timeout=self.limit_s)
            if not ready:
                self.kill()
                raise FailedError(f"the {self.backend} worker gave no answer for {self.limit_s:g} s while {doing}")
            answer = self._connection.recv()
        except (EOFError, ConnectionError):  # it may have answered and died: only a broken pipe is an end
            self.kill()
            raise FailedError(
                f"the {self.backend} worker died while {doing} ({_cause(self._process.exitcode)})"
            ) from None
        if isinstance(answer, Refused):
            raise FailedError(answer.reason)
        return answer


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
