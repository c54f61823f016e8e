"""A server at several loads: latency against the offered rate, and the highest rate that keeps it under a bound."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edc.bench.arrivals import poisson_arrivals
from edc.bench.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.bench.statistics import Estimate, quantile
from edc.bench.timing import RowSamples, Samples
from edc.seeding import derive_seed

__all__ = ["BOUND_FACTOR", "ServerLoad", "ServerPlan", "ServerPoint", "highest_rate", "latency_bound_ms", "serve_loads"]

BOUND_FACTOR = 3.0
"""Times the median of the ensemble's best form; one bound for all rows of a backend, because users of a service wait
for an answer, whatever network gives it. At three, an ensemble alone on its server can be half busy."""


@dataclass(frozen=True)
class ServerPlan:
    """Which loads, as shares of what a row can answer when it never waits, and for how long."""

    loads: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9)
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
    """A row's points, and the highest of their rates up to which p99 stays under the bound; None: not one does."""

    key: str
    bound_ms: float
    points: tuple[ServerPoint, ...]
    highest_rate_per_second: float | None


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
    turns = [(spec, load, number) for spec in services for load in plan.loads for number in range(plan.num_rounds)]
    random.Random(seed).shuffle(turns)
    taken: dict[tuple[RowSpec, float], dict[int, tuple[Samples, float]]] = {}
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
            taken.setdefault((spec, load), {})[number] = latencies[num_warm_up:], seconds
    found = []
    for spec, service_ns in services.items():
        points = tuple(
            _point(load * 1e9 / service_ns, taken[spec, load]) for load in plan.loads if (spec, load) in taken
        )
        found.append(ServerLoad(spec.key, bounds[spec], points, highest_rate(points, bound_ms=bounds[spec])))
    return found


def num_requests_at(rate_per_second: float, plan: ServerPlan) -> int:
    """Returns how many requests a point takes, over all its rounds."""
    wanted = max(rate_per_second * plan.seconds_per_point, plan.least_requests)
    return int(min(wanted, rate_per_second * plan.most_seconds, plan.most_requests))


def highest_rate(points: Sequence[ServerPoint], *, bound_ms: float) -> float | None:
    """Returns the highest offered rate, of those measured, up to which every p99 is known and within the bound."""
    highest = None
    for point in sorted(points, key=lambda point: point.offered_per_second):
        if point.p99_ms is None or point.p99_ms > bound_ms:
            break
        highest = point.offered_per_second
    return highest


def _point(rate: float, rounds: Mapping[int, tuple[Samples, float]]) -> ServerPoint:
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
