"""A server at several loads: latency against the offered rate, and the highest rate that keeps it under a bound."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edc.benchmark.judge.statistics import Estimate, quantile
from edc.benchmark.workers.arrivals import poisson_arrivals
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.benchmark.workers.timing import RowSamples, Samples
from edc.seeding import derive_seed

__all__ = [
    "BOUND_FACTOR",
    "ServerLoad",
    "ServerPlan",
    "ServerPoint",
    "capacity",
    "latency_bound_ms",
    "next_load",
    "num_requests_at",
    "serve_loads",
]

FINE_ENOUGH = 1.1
_Rounds = dict[int, tuple[Samples, float]]
"""By round: the latency of each request in nanoseconds, and how long they took together in seconds."""

BOUND_FACTOR = 3.0
"""Times the median of the ensemble's best form. All rows of a backend have one bound, because users wait for an answer
whatever network gives it. At three, if all inferences take equally long, an ensemble alone on its server can be a third
busy before one answer in a hundred is late."""


@dataclass(frozen=True)
class ServerPlan:
    """Which loads, as shares of what a row can answer when it never waits, and for how long."""

    loads: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    num_refinements: int = 3
    """Further loads of each row, between the highest that stays under the bound and the lowest that does not."""
    num_rounds: int = 5
    """Of each row and load, in turn with the others; each begins with an empty queue."""
    seconds_per_point: float = 1.5
    least_requests: int = 500
    """A point takes longer if it needs to for so many (a p99 takes 459), up to `most_seconds`."""
    most_seconds: float = 6.0
    most_requests: int = 20_000
    warm_up: float = 0.2
    """Share of each round's requests that come first and do not count: the queue has to fill up as far as it does."""


@dataclass(frozen=True)
class ServerPoint:
    """Latencies at one offered rate, in milliseconds; None where there were too few requests for the quantile."""

    offered_per_second: float
    achieved_per_second: float
    num_requests: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p99_low_ms: float | None
    p99_high_ms: float | None


@dataclass(frozen=True)
class ServerLoad:
    """A row's points, and between which rates its p99 leaves the bound.

    `highest_rate_per_second` is the highest measured up to which p99 stays under it (None: not even at the lowest),
    `lowest_failing_rate_per_second` the next one, at which it does not (None: it does at all of them).
    """

    key: str
    bound_ms: float
    points: tuple[ServerPoint, ...]
    highest_rate_per_second: float | None
    lowest_failing_rate_per_second: float | None


def latency_bound_ms(ensemble: Timing) -> float:
    """Returns the bound for all rows of a backend, from the timing of the ensemble's best form at batch 1."""
    return BOUND_FACTOR * float(np.median(ensemble.samples.all)) / 1e6


def serve_loads(
    pool: WorkerPool,
    timings: Mapping[RowSpec, Timing | NotRun],
    pairs: Sequence[tuple[RowSpec, RowSpec]],
    *,
    plan: ServerPlan,
    bound_ms: float | None,
    seed: int,
) -> list[ServerLoad]:
    """Returns how each pair of (student, ensemble's best form) of a backend does as a server, rows taking turns.

    Args:
        timings: at batch 1, which is what a request is.
        bound_ms: for the p99; None takes `latency_bound_ms` of each pair's ensemble.
    """
    bounds = {
        spec: bound_ms or latency_bound_ms(ensemble_timing)
        for pair in pairs
        for spec in pair
        if isinstance(ensemble_timing := timings[pair[1]], Timing)
    }
    services = {
        spec: float(np.median(timing.samples.all))
        for spec in bounds
        if isinstance(timing := timings[spec], Timing) and len(timing.samples.all)
    }
    taken: dict[RowSpec, dict[float, _Rounds]] = {spec: {} for spec in services}
    loads: dict[RowSpec, tuple[float, ...]] = dict.fromkeys(services, plan.loads)
    for _ in range(1 + plan.num_refinements):
        for spec, of_spec in _serve(pool, services, loads, plan=plan, seed=seed).items():
            taken[spec] |= of_spec
        loads = {
            spec: next_load(_points(taken[spec], service_ns), service_ns, bound_ms=bounds[spec])
            for spec, service_ns in services.items()
        }
    found = []
    for spec, service_ns in services.items():
        points = _points(taken[spec], service_ns)
        found.append(ServerLoad(spec.key, bounds[spec], points, *capacity(points, bound_ms=bounds[spec])))
    return found


def _serve(
    pool: WorkerPool,
    services: Mapping[RowSpec, float],
    loads: Mapping[RowSpec, tuple[float, ...]],
    *,
    plan: ServerPlan,
    seed: int,
) -> dict[RowSpec, dict[float, _Rounds]]:
    """Returns the latencies of every row at its loads, all rounds in one random order."""
    turns = [(spec, load, number) for spec in services for load in loads[spec] for number in range(plan.num_rounds)]
    random.Random(seed).shuffle(turns)
    taken: dict[RowSpec, dict[float, _Rounds]] = {spec: {} for spec in services}
    for spec, load, number in turns:
        rate = load * 1e9 / services[spec]
        num_requests = max(2, num_requests_at(rate, plan) // plan.num_rounds)
        num_warm_up = int(plan.warm_up * num_requests)
        arrivals = poisson_arrivals(
            rate, num_requests + num_warm_up, seed=derive_seed(seed, spec.key, repr(load), number)
        )
        latencies = pool.serve(spec, arrivals)
        if not isinstance(latencies, NotRun):
            seconds = float(arrivals[-1] + latencies[-1] - arrivals[num_warm_up]) / 1e9
            taken[spec].setdefault(load, {})[number] = latencies[num_warm_up:], seconds
    return taken


def next_load(points: Sequence[ServerPoint], service_ns: float, *, bound_ms: float) -> tuple[float, ...]:
    """Returns the load to try next, in the middle (by ratio) of where the bound is crossed; none if that is known.

    Below the lowest that was tried, a third of it, unless that one had too few requests for a p99 already; above the
    highest, none: a server is not run closer to its limit.
    """
    passing, failing = capacity(points, bound_ms=bound_ms)
    if failing is None or any(point.p99_ms is None for point in points):
        return ()
    if passing is not None and failing / passing < FINE_ENOUGH:
        return ()
    rate = failing / 3 if passing is None else math.sqrt(passing * failing)
    return (rate * service_ns / 1e9,)


def num_requests_at(rate_per_second: float, plan: ServerPlan) -> int:
    """Returns how many requests a point takes, over all its rounds."""
    wanted = max(rate_per_second * plan.seconds_per_point, plan.least_requests)
    return int(min(wanted, rate_per_second * plan.most_seconds, plan.most_requests))


def capacity(points: Sequence[ServerPoint], *, bound_ms: float) -> tuple[float | None, float | None]:
    """Returns the highest offered rate up to which every p99 is within the bound, and the next one, whose p99 is not.

    Rates with too few requests for a p99 are left out.
    """
    highest = None
    for point in sorted(points, key=lambda point: point.offered_per_second):
        if point.p99_ms is None:
            continue
        if point.p99_ms > bound_ms:
            return highest, point.offered_per_second
        highest = point.offered_per_second
    return highest, None


def _points(rounds_by_load: Mapping[float, _Rounds], service_ns: float) -> tuple[ServerPoint, ...]:
    return tuple(_point(load * 1e9 / service_ns, rounds) for load, rounds in sorted(rounds_by_load.items()))


def _point(rate: float, rounds: _Rounds) -> ServerPoint:
    samples = RowSamples({number: latencies for number, (latencies, _) in rounds.items()})
    seconds = sum(seconds for _, seconds in rounds.values())
    p50, p90, p99 = (quantile(samples, q) for q in (0.5, 0.9, 0.99))
    return ServerPoint(
        offered_per_second=rate,
        achieved_per_second=len(samples.all) / seconds,
        num_requests=len(samples.all),
        p50_ms=_ms(p50),
        p90_ms=_ms(p90),
        p99_ms=_ms(p99),
        p99_low_ms=_bound_ms(p99, "low"),
        p99_high_ms=_bound_ms(p99, "high"),
    )


def _ms(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value / 1e6


def _bound_ms(estimate: Estimate | None, side: str) -> float | None:
    bound = None if estimate is None else getattr(estimate, side)
    return None if bound is None else float(bound) / 1e6
