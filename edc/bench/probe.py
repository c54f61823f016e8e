"""The same small piece of work, timed again and again beside the rows: how fast the machine itself is at the moment.

A virtual machine's neighbours, a second thread on the same core or a lower clock slow everything down by a half and
more, for seconds or minutes, and nothing that the system reports says so. Rows that take turns share such a state, and
their ratios hold; a median in milliseconds does not, nor its comparison with an earlier bench. The probe tells.
"""

import time
from statistics import median

__all__ = ["PROBE_LIMIT", "Probe", "probe_ns"]

PROBE_LIMIT = 0.1
"""Change of the probe from which on a machine is not in the state it was in: states differ by a third and more, a probe
in one state by a few per cent."""
NUM_STEPS = 2000
NUM_REPEATS = 5


def probe_ns() -> int:
    """Returns how long a fixed piece of arithmetic takes, about 0.1 ms: the median of five times."""
    times = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter_ns()
        total = 1
        for step in range(NUM_STEPS):
            total = (total * 5 + step) & 0xFFFF
        times.append(time.perf_counter_ns() - started)
    return int(median(times))


class Probe:
    """The probes of a row's turns at one batch size."""

    def __init__(self) -> None:
        self.all_ns: list[int] = []

    def take(self) -> None:
        self.all_ns.append(probe_ns())

    @property
    def median_ns(self) -> float | None:
        return float(median(self.all_ns)) if self.all_ns else None

    @property
    def flags(self) -> tuple[str, ...]:
        """Says so if the machine was slower in some of the turns than in its best ones."""
        if len(self.all_ns) < 3:
            return ()
        best = sorted(self.all_ns)[len(self.all_ns) // 10]
        slow = sum(ns > (1 + PROBE_LIMIT) * best for ns in self.all_ns)
        if slow <= len(self.all_ns) // 10:
            return ()
        return (f"restless machine: in {slow} of {len(self.all_ns)} rounds it was slower by itself",)
