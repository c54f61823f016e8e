"""The machine's own speed, timed beside the rows."""

import time

import pytest

from edc.benchmark.workers import probe
from edc.benchmark.workers.probe import Probe, probe_ns


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
