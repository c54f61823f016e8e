"""A server under load: requests arrive at random, and wait while another one is answered.

Open loop: the next request does not wait for the last answer, as it would if one client asked again and again. Its
latency counts from when it was to arrive, so the queue that a slow answer leaves behind is in the figures.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from edc.benchmark.workers.timing import Clock, Infer, Samples
from edc.deploy.artifact.feed import Fed

__all__ = ["poisson_arrivals", "serve_requests"]

SLEEP_MARGIN_NS = 2_000_000
"""The end of a wait is spun: sleeping is late by up to a millisecond."""


def poisson_arrivals(rate_per_second: float, num_requests: int, *, seed: int) -> Samples:
    """Returns when requests arrive (N,), in nanoseconds from the start: gaps are exponential with mean 1 / rate."""
    gaps = np.random.default_rng(seed).exponential(1e9 / rate_per_second, size=num_requests)
    arrivals: Samples = np.cumsum(gaps).astype(np.int64)
    return arrivals


def serve_requests(
    infer: Infer,
    inputs: Sequence[Fed],
    *,
    arrivals_ns: Samples,
    clock: Clock = time.perf_counter_ns,
    wait_until: Callable[[int], None] | None = None,
) -> Samples:
    """Returns each request's latency in nanoseconds: from its arrival to its answer, the wait in the queue included.

    One request at a time, first come first served, which is why a loop is all the queue there needs to be.

    Args:
        arrivals_ns: ascending, from the start; what `poisson_arrivals` returns.
        wait_until: blocks until the clock shows at least so much; default: sleeps, then spins.
    """
    wait = wait_until or _wait_until
    latencies = [0] * len(arrivals_ns)
    num_inputs = len(inputs)
    start = clock()
    for request, arrival in enumerate(arrivals_ns.tolist()):
        wait(start + arrival)
        infer(inputs[request % num_inputs])
        latencies[request] = clock() - start - arrival
    return np.array(latencies, np.int64)


def _wait_until(moment_ns: int) -> None:
    while (left := moment_ns - time.perf_counter_ns()) > 0:
        if left > SLEEP_MARGIN_NS:
            time.sleep((left - SLEEP_MARGIN_NS) / 1e9)
