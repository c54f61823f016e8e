"""How long a bench will take, said before it begins: from one image through each row, and the plan."""

import time
from collections.abc import Mapping, Sequence

from edc.benchmark.measure.quality import float_batches
from edc.benchmark.measure.robustness import levels_for, robustness_specs, robustness_subset
from edc.benchmark.options import BenchOptions
from edc.benchmark.request import BenchRequest
from edc.benchmark.workers.pool import NotRun, RowSpec, WorkerPool
from edc.benchmark.workers.timing import TimingPlan

__all__ = ["forecast_s"]

LEAST_WINDOWS = 3
"""Of a warm-up: see `workers.timing.warm_up`."""


def forecast_s(
    pool: WorkerPool, request: BenchRequest, options: BenchOptions, *, sweep_batches: Sequence[int]
) -> float:
    """Returns about how many seconds the bench will take, by the time of one image through each loaded row.

    More than it takes where large batches cost less an image; less where a machine is busy or a warm-up not stable.
    """
    plan = options.plan
    image_s = {spec: seconds for spec in request.specs if (seconds := _image_s(pool, spec, request)) is not None}
    num_images = sum(
        min(len(images), plan.quality_images or len(images)) for images in (request.data.test, request.data.validation)
    )
    seconds = num_images * sum(image_s.values())
    if options.robustness:
        subset = robustness_subset(request.data.test, quick=options.quick, seed=options.seed)
        num_corrupted = len(subset) * len(levels_for(request.data.image_shape))
        seconds += num_corrupted * sum(image_s[spec] for spec in robustness_specs(list(image_s)))
    timed = ((plan.timing, batch) for batch in request.batches)
    swept = ((plan.sweep, batch) for batch in sweep_batches if batch not in request.batches)
    seconds += sum(_timing_s(image_s, each, batch) for each, batch in (*timed, *swept))
    return seconds + _server_s(image_s, options)


def _image_s(pool: WorkerPool, spec: RowSpec, request: BenchRequest) -> float | None:
    """Returns the time of one image through a row, the least of three; None: it did not run."""
    image = next(float_batches(request.data.test, batch_size=1))
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        if isinstance(pool.predict([spec], [image])[spec], NotRun):
            return None
        seconds.append(time.monotonic() - start)
    return min(seconds)


def _timing_s(image_s: Mapping[RowSpec, float], plan: TimingPlan, batch: int) -> float:
    return sum(
        LEAST_WINDOWS * max(plan.window_ms / 1e3, batch * seconds)
        + max(plan.seconds_per_row, plan.min_rounds * batch * seconds)
        + plan.num_rounds * plan.settle_ms / 1e3
        for seconds in image_s.values()
    )


def _server_s(image_s: Mapping[RowSpec, float], options: BenchOptions) -> float:
    """Returns the time of the server scenario: of the student and the ensemble on each backend."""
    plan, backends = options.plan.server, {spec.backend for spec in image_s}
    num_points = len(plan.loads) + plan.num_refinements
    return 2 * len(backends) * num_points * plan.seconds_per_point
