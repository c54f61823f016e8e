"""Larger batches until they gain nothing."""

import numpy as np
import pytest

from edc.benchmark.backends.contract import OnnxSource
from edc.benchmark.measure.sweep import batch_sizes, sweep
from edc.benchmark.saved.old import subject_of_label
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing
from edc.benchmark.workers.timing import RowSamples, TimingPlan, WarmUp


class Machine:
    """Stands for a pool whose rows take `ns_of[row](batch)`: how a real one saturates is not ours to set."""

    def __init__(self, ns_of) -> None:
        self.ns_of, self.asked = ns_of, []

    def time(self, specs, *, batch, plan, seed, with_memory):
        assert not with_memory
        self.asked.append((batch, [spec.subject.label for spec in specs]))
        return {spec: self.timing(self.ns_of[spec.subject.label](batch), batch) for spec in specs}

    def timing(self, ns, batch):
        if ns is None:
            return NotRun("out of memory")
        return Timing(batch, RowSamples({0: np.full(5, int(ns))}), WarmUp(3, is_stable=True, run_ns=1), None)


@pytest.mark.parametrize(
    ("largest", "factor", "sizes"),
    [
        (1, 2, [1]),
        (2, 2, [1, 2]),
        (64, 2, [1, 2, 4, 8, 16, 32, 64]),
        (64, 8, [1, 8, 64]),
        (48, 2, [1, 2, 4, 8, 16, 32, 48]),
    ],
)
def test_sizes_grow_by_a_factor_up_to_the_artifacts_largest(largest, factor, sizes):
    assert batch_sizes(largest, factor=factor) == sizes


def test_a_row_is_swept_until_it_saturates_breaks_or_ends():
    ms = 1_000_000
    machine = Machine(
        {
            "serial": lambda batch: batch * ms,
            "parallel": lambda batch: ms,
            "small": lambda batch: ms if batch < 4 else None,
            "absent": lambda batch: None,
            "four": lambda batch: ms * max(1, batch / 4),
        }
    )
    specs = [RowSpec(subject_of_label(name), "onnxruntime", OnnxSource(())) for name in machine.ns_of]
    found = {
        each.key.split()[0]: each for each in sweep(machine, specs, batches=[1, 2, 4, 8, 16], plan=TimingPlan(), seed=0)
    }
    swept = {name: ([p.batch for p in each.points], each.saturated, each.best_batch) for name, each in found.items()}
    assert swept == {
        "serial": ([1, 2], True, 1),
        "parallel": ([1, 2, 4, 8, 16], False, 16),
        "small": ([1, 2], False, 2),
        "four": ([1, 2, 4, 8], True, 4),
    }
    assert [p.images_per_second for p in found["parallel"].points] == pytest.approx([1e3, 2e3, 4e3, 8e3, 16e3])
    assert machine.asked[-1] == (16, ["parallel"])


def test_batch_sizes_that_were_timed_already_are_not_timed_again():
    ms = 1_000_000
    machine = Machine({"serial": lambda batch: batch * ms, "parallel": lambda batch: ms, "absent": lambda batch: None})
    specs = [RowSpec(subject_of_label(name), "onnxruntime", OnnxSource(())) for name in machine.ns_of]
    serial, parallel, absent = specs
    known = {
        batch: {
            serial: machine.timing(2 * batch * ms, batch),
            parallel: machine.timing(ms, batch),
            absent: NotRun("gone"),
        }
        for batch in (1, 8)
    }
    found = sweep(machine, specs, batches=[1, 4, 8], plan=TimingPlan(), seed=0, timed=known)
    assert machine.asked == [(4, ["serial", "parallel"])]
    points = {each.key: [(point.batch, point.images_per_second) for point in each.points] for each in found}
    assert points == {
        "serial on onnxruntime": [(1, 500.0), (4, 1000.0), (8, 500.0)],
        "parallel on onnxruntime": [(1, 1000.0), (4, 4000.0), (8, 8000.0)],
    }
