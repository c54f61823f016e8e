"""The same small piece of work, timed after every turn of a row: how fast the machine itself is at the moment.

A virtual machine's neighbours, a second thread on the same core or a lower clock slow everything down by a third and
more, for seconds or minutes, and the system does not report it. Rows that take turns share such a state, and their
ratios hold; a median in milliseconds does not, nor its comparison with an earlier bench. The probe shows the state. It
runs in the worker, on the thread that just ran the row, and is arithmetic of the same kind: a loop in Python notices
little of a neighbour that keeps the vector units busy, and another process may be on another processor.

Other processes of the same system are not shared alike: one that wants the same processor interrupts an inference that
is longer than a slice of the scheduler each time, and one of 0.3 ms hardly ever. Ratios do not hold then. Linux says
how long a process waited for a processor, and intervals are widened by what that can have changed.
"""

import math
import time
from functools import cache
from pathlib import Path
from statistics import fmean, median

import numpy as np

from edc.benchmark.backends.contract import Floats

__all__ = ["MOST_WAITED", "PROBE_LIMIT", "Probe", "probe_ns", "waited_ns"]

PROBE_LIMIT = 0.07
"""Change of the probe from which on a machine is not in the state it was in. Where it was tried, it differed by 12 to
25 % between states in which rows differ by 30 to 50 %, and by 1 % within one."""
WAIT_LIMIT = 0.02
"""Share of its turns that a row waited for a processor, from which on it is flagged."""
MOST_WAITED = 0.95
SIDE = 64
NUM_PRODUCTS = 12
NUM_REPEATS = 5


def probe_ns() -> int:
    """Returns how long a fixed number of small matrix products takes, about 0.1 ms: the median of five times."""
    matrix, product = _matrices()
    times = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter_ns()
        for _ in range(NUM_PRODUCTS):
            np.dot(matrix, matrix, out=product)
        times.append(time.perf_counter_ns() - started)
    return int(median(times))


def waited_ns() -> int | None:
    """Returns how long this process's threads have waited for a processor so far, summed; None: only Linux says so."""
    waited = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            waited += int((thread / "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # a thread that ended, or a kernel without these figures
        return None
    return waited


@cache
def _matrices() -> tuple[Floats, Floats]:
    return np.full((SIDE, SIDE), 0.5, np.float32), np.empty((SIDE, SIDE), np.float32)


class Probe:
    """The probes of a row's turns at one batch size."""

    def __init__(self) -> None:
        self.all_ns: list[int] = []
        self.gpu_ns: list[int] = []
        """The same of the GPU, where a row ran on one."""
        self.clocks_mhz: list[float] = []
        """The clock rates of the GPU's processors, sampled while the row was timed."""
        self.waited: list[float] = []
        """The share of each turn that the row waited for a processor, at most `MOST_WAITED`."""

    @property
    def waited_share(self) -> float | None:
        return fmean(self.waited) if self.waited else None

    @property
    def factor_of_wait(self) -> float:
        """By how much waiting may have made the row's time longer than it is: 1 or more."""
        return 1 / (1 - min(self.waited_share or 0.0, MOST_WAITED))

    def differs_from(self, other: "Probe") -> float:
        """Returns by which factor the machine itself may have treated two rows differently: 1 or more."""
        speeds = [probe.median_ns for probe in (self, other)]
        of_machine = 1.0 if None in speeds else math.exp(abs(math.log(speeds[0] / speeds[1])))  # type: ignore[operator]
        return max(self.factor_of_wait, other.factor_of_wait) * of_machine

    @property
    def median_ns(self) -> float | None:
        return float(median(self.all_ns)) if self.all_ns else None

    @property
    def flags(self) -> tuple[str, ...]:
        """Says so if machine or GPU were slower in some of the turns than in their best ones."""
        of_machine = (*_restless(self.all_ns, "machine"), *_restless(self.gpu_ns, "GPU"))
        return (*of_machine, *self._clock_flags, *self._wait_flags)

    @property
    def _wait_flags(self) -> tuple[str, ...]:
        share = self.waited_share
        if share is None or share <= WAIT_LIMIT:
            return ()
        return (f"busy machine: the row waited for a processor {share:.0%} of its time, and intervals allow for it",)

    @property
    def _clock_flags(self) -> tuple[str, ...]:
        low, high = min(self.clocks_mhz, default=0), max(self.clocks_mhz, default=0)
        if high <= (1 + PROBE_LIMIT) * low:
            return ()
        return (f"GPU clock: between {low:.0f} and {high:.0f} MHz while this row was timed",)


def _restless(all_ns: list[int], what: str) -> tuple[str, ...]:
    if len(all_ns) < 3:
        return ()
    best = sorted(all_ns)[len(all_ns) // 10]
    slow = sum(ns > (1 + PROBE_LIMIT) * best for ns in all_ns)
    if slow <= len(all_ns) // 10:
        return ()
    return (f"restless {what}: in {slow} of {len(all_ns)} rounds the {what} itself was slower",)
