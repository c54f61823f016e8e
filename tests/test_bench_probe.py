"""The machine's own speed, timed beside the rows."""

import os
import subprocess
import sys
import time

import pytest

from edc.benchmark.judge.statistics import Estimate
from edc.benchmark.workers import probe
from edc.benchmark.workers.probe import Probe, Usage, probe_ns, usage_now


def probed(*times: int) -> Probe:
    found = Probe()
    found.all_ns = list(times)
    return found


def test_probe_is_the_median_of_real_work():
    """Twice the work takes about twice as long, and a single probe a fraction of a millisecond or so."""
    once = min(probe_ns() for _ in range(20))
    assert 5_000 < once < 20_000_000
    before = probe.NUM_PRODUCTS
    try:
        probe.NUM_PRODUCTS = 4 * before
        assert 2.5 < min(probe_ns() for _ in range(20)) / once < 6
    finally:
        probe.NUM_PRODUCTS = before


def test_probe_takes_the_median_so_that_one_interruption_does_not_count(monkeypatch):
    ends = iter([0, 100, 0, 100, 0, 9_000_000, 0, 100, 0, 100])
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ends))
    assert probe_ns() == 100


@pytest.mark.parametrize(
    ("times", "flags"),
    [
        ([100] * 12, ()),
        ([100] * 11 + [150], ()),  # one round of twelve: an accident
        ([100] * 9 + [150] * 3, ("restless machine: in 3 of 12 rounds the machine itself was slower",)),
        ([150] * 10 + [100] * 2, ("restless machine: in 10 of 12 rounds the machine itself was slower",)),
        ([150, 100], ()),
        ([], ()),
    ],
)
def test_a_machine_that_was_slower_in_some_rounds_is_flagged(times, flags):
    assert probed(*times).flags == flags


def test_median_of_the_turns():
    assert probed(3, 1, 2).median_ns == 2.0
    assert Probe().median_ns is None


BESIDE_ANOTHER = """
import os, time
from edc.benchmark.workers.probe import Probe, probe_ns, usage_now
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
def share(seconds):
    probe, before, start = Probe(), usage_now(), time.perf_counter_ns()
    while time.perf_counter_ns() - start < seconds * 1e9:
        probe_ns()
    probe.usages.append(usage_now() - before)
    return probe.waited_share
other = os.fork()
if other == 0:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass
    os._exit(0)
try:
    print(share(0.5))
finally:
    os.kill(other, 9)
"""


@pytest.mark.skipif(usage_now() is None, reason="the system does not say how long a process waits")
def test_what_shares_its_processor_with_another_process_waits_for_half_the_time():
    """Or for longer, where others want that processor, too."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BESIDE_ANOTHER]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert 0.35 < float(found.stdout) < 0.95


def test_waiting_widens_intervals_by_what_it_can_have_changed():
    """A row that waited half of its time is up to twice as fast as it seems, and a ratio with it up to twice off."""
    waited, alone = probed(100, 100, 100), probed(100, 100, 100)
    waited.usages = [Usage(500_000_000, 200_000_000, 900_000_000), Usage(500_000_000, 300_000_000, 20_000_000)]
    alone.usages = [Usage(500_000_000, 400_000_000, 15_000_000)]  # its threads are more than the processors
    assert (waited.factor_of_wait, alone.factor_of_wait) == (pytest.approx(2), 1)
    assert waited.differs_from(alone) == alone.differs_from(waited) == pytest.approx(2)
    assert alone.differs_from(probed(150, 150, 150)) == pytest.approx(1.5)
    assert waited.flags == ("busy machine: the row waited for others 50% of its time, and intervals allow for it",)
    assert alone.flags == ()
    wide = Estimate(10.0, 9.9, 10.1).widened(0.0, confidence=0.975, factor=2.0)
    assert (wide.low, wide.high) == (pytest.approx(5, rel=1e-3), pytest.approx(20, rel=1e-3))
