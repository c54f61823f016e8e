"""The same small piece of work, timed after every turn of a row: how fast the machine itself is at the moment.

A virtual machine's neighbours, a second thread on the same core or a lower clock slow everything down by a third and
more, for seconds or minutes, and the system does not report it. Rows that take turns share such a state, and their
ratios hold; a median in milliseconds does not, nor its comparison with an earlier bench. The probe shows the state. It
runs in the worker, on the thread that just ran the row, and is arithmetic of the same kind: a loop in Python notices
little of a neighbour that keeps the vector units busy, and another process may be on another processor.

Other processes of the same system are not shared alike: one that wants the same processor interrupts an inference that
is longer than a slice of the scheduler each time, and one of 0.3 ms hardly ever. Ratios do not hold then. Linux says
how long a process waited for a processor. A process whose threads are more than the processors waits for itself, too;
so the wait counts as far as others were at work. Intervals are widened by what it can have changed.
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np

from edc.benchmark.backends.contract import Floats

__all__ = ["PROBE_LIMIT", "Probe", "Usage", "probe_ns", "usage_now"]

PROBE_LIMIT = 0.07
"""Change of the probe from which on a machine is not in the state it was in. Where it was tried, it differed by 12 to
25 % between states in which rows differ by 30 to 50 %, and by 1 % within one."""
WAIT_LIMIT = 0.05
"""Share of its turns that a row waited for a processor of others, from which on it is flagged."""
MOST_WAITED = 0.95
TICK_NS = 10_000_000 if sys.platform == "win32" else 1_000_000_000 // os.sysconf("SC_CLK_TCK")
TICKS_IN_DOUBT = 2
"""The system counts in ticks what processes use, and a turn may take two."""
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


@dataclass(frozen=True)
class Usage:
    """Time so far, in nanoseconds: by the clock, that this process's threads waited for a processor (summed), and that
    other processes of the system used one.
    """

    clock_ns: int
    waited_ns: int
    others_ns: int

    def __sub__(self, before: "Usage") -> "Usage":
        return Usage(
            self.clock_ns - before.clock_ns, self.waited_ns - before.waited_ns, self.others_ns - before.others_ns
        )


def usage_now() -> Usage | None:
    """Returns the usage so far; None: only Linux says so."""
    waited = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            waited += int((thread / "schedstat").read_text().split()[1])
        user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split(None, 8)[1:8])
    except (OSError, IndexError, ValueError):  # a thread that ended, or a kernel without these figures
        return None
    busy = (user + nice + system + irq + softirq) * TICK_NS
    return Usage(time.perf_counter_ns(), waited, busy - time.process_time_ns())


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
        self.usages: list[Usage] = []
        """Of each turn, where the system says it."""

    @property
    def waited_share(self) -> float | None:
        """The share of its turns that the row waited for a processor that others had, at most `MOST_WAITED`."""
        clock = sum(usage.clock_ns for usage in self.usages)
        if not clock:
            return None
        waited = sum(usage.waited_ns for usage in self.usages)
        others = sum(usage.others_ns for usage in self.usages) - TICKS_IN_DOUBT * TICK_NS
        return min(MOST_WAITED, max(0, min(waited, others)) / clock)

    @property
    def factor_of_wait(self) -> float:
        """By how much waiting may have made the row's time longer than it is: 1 or more."""
        return 1 / (1 - (self.waited_share or 0.0))

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
        return (f"busy machine: the row waited for others {share:.0%} of its time, and intervals allow for it",)

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
