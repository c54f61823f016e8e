"""A server under load: the queue against the formula for it, and what is said about rates."""

import numpy as np
import pytest
from tiny_onnx import tiny_images, write_tiny_onnx

from edc.benchmark.backends.contract import OnnxSource
from edc.benchmark.measure.server import (
    ServerPlan,
    ServerPoint,
    capacity,
    latency_bound_ms,
    next_load,
    num_requests_at,
    serve_loads,
)
from edc.benchmark.saved.old import subject_of_label
from edc.benchmark.workers.arrivals import poisson_arrivals, serve_requests
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.benchmark.workers.timing import RowSamples, WarmUp, inputs_in_rotation

SERVICE_NS = 1_000_000


class Virtual:
    """A clock that inferences move by `service_ns`, and waiting moves to where it is to be."""

    def __init__(self, service_ns=SERVICE_NS) -> None:
        self.now, self.service_ns, self.seen = 10**15, service_ns, []

    def clock(self) -> int:
        return self.now

    def infer(self, batch):
        self.seen.append(float(batch.flat[0]))
        self.now += self.service_ns

    def wait_until(self, moment):
        self.now = max(self.now, moment)

    def serve(self, arrivals):
        inputs = inputs_in_rotation(np.arange(16, dtype=np.float32).reshape(16, 1, 1, 1), batch=1)
        return serve_requests(self.infer, inputs, arrivals_ns=arrivals, clock=self.clock, wait_until=self.wait_until)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_mean_wait_is_that_of_pollaczek_and_khinchine(load):
    """M/D/1: Poisson arrivals, one server, fixed service S: the mean wait is load * S / (2 * (1 - load))."""
    arrivals = poisson_arrivals(load * 1e9 / SERVICE_NS, 400_000, seed=0)
    latencies = Virtual().serve(arrivals)
    wait_ns = load * SERVICE_NS / (2 * (1 - load))
    assert latencies.mean() - SERVICE_NS == pytest.approx(wait_ns, rel=0.03)
    assert (latencies == SERVICE_NS).mean() == pytest.approx(1 - load, rel=0.02)  # who finds the server idle


def test_latency_counts_from_the_arrival_whoever_is_served_then():
    machine = Virtual(service_ns=100)
    assert machine.serve(np.array([0, 10, 50, 1000])).tolist() == [100, 190, 250, 100]
    assert machine.seen == [0, 1, 2, 3]


def test_an_overloaded_server_falls_behind_more_and_more():
    latencies = Virtual().serve(poisson_arrivals(2e9 / SERVICE_NS, 2000, seed=0))
    assert latencies[-1] == pytest.approx(1000 * SERVICE_NS, rel=0.1)


def test_arrivals_are_poisson_and_the_seed_fixes_them():
    arrivals = poisson_arrivals(1000.0, 100_000, seed=3)
    gaps = np.diff(arrivals) / 1e9
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(1e-3, rel=0.02)
    assert (gaps < 1e-3).mean() == pytest.approx(1 - np.exp(-1), abs=0.01)
    np.testing.assert_array_equal(arrivals, poisson_arrivals(1000.0, 100_000, seed=3))
    assert (arrivals[:9] != poisson_arrivals(1000.0, 9, seed=4)).any()


def point(rate, p99):
    return ServerPoint(rate, rate, 1000, 1.0, 2.0, p99, None, None)


@pytest.mark.parametrize(
    ("p99s", "between"),
    [
        ([1, 2, 3], (300, None)),
        ([1, 2, 3.1], (200, 300)),
        ([4, 2, 2], (None, 100)),
        ([1, 9, 1], (100, 200)),  # a rate above one that failed is luck
        ([1, None, 9], (100, 300)),
        ([None, 9, 9], (None, 200)),
        ([None], (None, None)),
        ([], (None, None)),
    ],
)
def test_capacity_is_between_the_last_rate_before_the_bound_breaks_and_the_next(p99s, between):
    points = [point(100 * (i + 1), p99) for i, p99 in enumerate(p99s)]
    assert capacity(points[::-1], bound_ms=3.0) == between


def test_loads_close_in_on_where_the_bound_breaks():
    """A server whose p99 leaves the bound at 1370 requests a second, starting from a coarse grid."""
    points = [point(rate, 1 if rate <= 1370 else 9) for rate in (100, 300, 900, 2700)]
    for _ in range(5):
        for load in next_load(points, 1e6, bound_ms=3.0):
            rate = load * 1000  # 1 ms an answer: a load of 1 is 1000 requests a second
            points.append(point(rate, 1 if rate <= 1370 else 9))
    passing, failing = capacity(points, bound_ms=3.0)
    assert passing <= 1370 < failing < 1.1 * passing
    assert len(points) == 8  # and stops then
    assert next_load([point(900, 9)], 1e6, bound_ms=3.0) == pytest.approx((0.3,))  # downwards from the lowest
    assert next_load([point(900, 1)], 1e6, bound_ms=3.0) == ()  # never upwards
    assert next_load([point(900, 9), point(300, None)], 1e6, bound_ms=3.0) == ()  # still fewer requests would say less


def test_bound_is_three_medians_of_the_ensemble():
    samples = RowSamples({0: np.array([1, 2, 99]) * 1_000_000})
    assert latency_bound_ms(Timing(1, samples, WarmUp(3, is_stable=True, run_ns=1), None)) == 6.0


def test_a_slow_network_takes_fewer_requests_instead_of_minutes():
    plan = ServerPlan(seconds_per_point=1.5, least_requests=500, most_seconds=6.0, most_requests=20_000)
    assert num_requests_at(1000, plan) == 1500
    assert num_requests_at(200, plan) == 500
    assert num_requests_at(2, plan) == 12
    assert num_requests_at(1e6, plan) == 20_000


def test_real_workers_are_served_in_turn_and_keep_what_they_measured(tmp_path):
    specs = [
        RowSpec(
            subject_of_label(name), "onnxruntime", OnnxSource((write_tiny_onnx(tmp_path / f"{name}.onnx", seed).path,))
        )
        for seed, name in enumerate(("student", "ensemble, merged"))
    ]
    run_ns = 200_000
    timing = Timing(1, RowSamples({0: np.full(9, run_ns)}), WarmUp(3, is_stable=True, run_ns=run_ns), None)
    plan = ServerPlan(
        loads=(0.2, 0.5), num_refinements=0, num_rounds=3, seconds_per_point=0.2, least_requests=600, most_seconds=1.0
    )
    with WorkerPool(images=tiny_images(16), threads=1) as pool:
        for spec in specs:
            pool.load(spec)
        found = serve_loads(
            pool, dict.fromkeys(specs, timing), [(specs[0], specs[1])], plan=plan, bound_ms=None, seed=0
        )
        lost = serve_loads(
            pool, {specs[0]: timing, specs[1]: NotRun("no")}, [(specs[0], specs[1])], plan=plan, bound_ms=9.0, seed=0
        )
    assert [each.key for each in found] == ["student on onnxruntime", "ensemble, merged on onnxruntime"]
    for each in found:
        assert each.bound_ms == pytest.approx(0.6)
        assert [p.offered_per_second for p in each.points] == pytest.approx([1000, 2500])
        for p in each.points:
            assert p.num_requests == 600
            assert p.achieved_per_second == pytest.approx(p.offered_per_second, rel=0.3)
            assert 0 < p.p50_ms <= p.p90_ms <= p.p99_ms
    assert lost == []
