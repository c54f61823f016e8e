"""How long a bench will take, said before it begins; and what a quick one leaves out because of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edc.benchmark.measure.quality import float_batches
from edc.benchmark.measure.robustness import levels_for, robustness_specs, robustness_subset
from edc.benchmark.measure.server import num_requests_at
from edc.benchmark.measure.sweep import batch_sizes
from edc.benchmark.options import BenchOptions, BenchPlan
from edc.benchmark.request import BenchRequest
from edc.benchmark.workers.pool import NotRun, RowSpec, WorkerPool
from edc.benchmark.workers.timing import LEAST_WINDOWS, SETTLING_RUNS, SETTLING_S, TimingPlan
from edc.console import duration

__all__ = ["Forecast", "forecast"]

QUICK_QUALITY_S, QUICK_ROBUSTNESS_S, QUICK_TIMING_S, QUICK_SERVER_S = 12.0, 10.0, 10.0, 10.0
"""What each may take of a quick bench, which is to be under a minute."""
LEAST_QUALITY_IMAGES = 100
SMALL_BATCH = 16
"""Enough that the way of images to a worker counts little."""


@dataclass(frozen=True)
class Forecast:
    """`seconds` is about what the bench will take. A quick one takes fewer images where they would take too long."""

    seconds: float
    quality_images: int | None
    """Of the test images and of the validation images; None: all."""
    robustness: bool
    """Whether quality on corrupted images is measured."""
    batches: tuple[int, ...]
    """The batch sizes that are timed."""
    largest_batch: int
    """The last one of the sweep."""
    server: bool
    """Whether rows are measured as servers."""
    notes: tuple[str, ...]
    """What a quick bench leaves out, for people."""


def forecast(pool: WorkerPool, request: BenchRequest, options: BenchOptions) -> Forecast:
    """Returns how long the bench will take, by the time of one image through each loaded row.

    It takes less where large batches cost less an image, and more where the machine is busy.
    """
    plan = options.plan
    image_s = {spec: seconds for spec in request.specs if (seconds := _image_s(pool, spec, request)) is not None}
    robustness_s = _robustness_s(image_s, request, options)
    robustness = options.robustness
    if robustness is None:
        robustness = not options.quick or robustness_s <= QUICK_ROBUSTNESS_S
    all_rows_s = sum(image_s.values())
    most = plan.quality_images
    splits = (request.data.test, request.data.validation)
    notes = []
    if most is not None and 2 * most * all_rows_s > QUICK_QUALITY_S:
        most = max(LEAST_QUALITY_IMAGES, int(QUICK_QUALITY_S / 2 / all_rows_s))
        if any(len(images) > most for images in splits):
            notes.append(f"--quick: quality is measured on {most:,} drawn images of each split")
    if options.robustness is None and not robustness:
        notes.append(
            f"--quick: corrupted images are left out, they would take about {duration(robustness_s)}; --robustness "
            "takes them"
        )
    batches, largest = request.batches, request.max_batch
    while options.may_lower_batch and largest > 1 and _all_timing_s(image_s, batches, largest, plan) > QUICK_TIMING_S:
        largest //= 2
        batches = tuple(sorted({1, largest}))
    if largest < request.max_batch:
        notes.append(
            f"--quick: the largest batch is {largest}; {request.max_batch} would take about "
            f"{duration(_all_timing_s(image_s, request.batches, request.max_batch, plan))}, --batch names it"
        )
    server_s = _server_s(image_s, options)
    server = not options.quick or server_s <= QUICK_SERVER_S
    if not server:
        notes.append(f"--quick: load on a server is left out, it would take about {duration(server_s)}")
    seconds = all_rows_s * sum(min(len(images), most or len(images)) for images in splits)
    seconds += robustness_s if robustness else 0.0
    seconds += _all_timing_s(image_s, batches, largest, plan)
    seconds += server_s if server else 0.0
    return Forecast(seconds, most, robustness, batches, largest, server, tuple(notes))


def _image_s(pool: WorkerPool, spec: RowSpec, request: BenchRequest) -> float | None:
    """Returns the time of one image of a small batch through a row, the least of three; None: it did not run."""
    images = next(float_batches(request.data.test, batch_size=min(SMALL_BATCH, request.max_batch)))
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        if isinstance(pool.predict([spec], [images])[spec], NotRun):
            return None
        seconds.append((time.monotonic() - start) / len(images))
    return min(seconds)


def _robustness_s(image_s: Mapping[RowSpec, float], request: BenchRequest, options: BenchOptions) -> float:
    subset = robustness_subset(request.data.test, quick=options.quick, seed=options.seed)
    num_images = len(subset) * len(levels_for(request.data.image_shape))
    return num_images * sum(image_s[spec] for spec in robustness_specs(list(image_s)))


def _all_timing_s(image_s: Mapping[RowSpec, float], batches: Sequence[int], largest: int, plan: BenchPlan) -> float:
    """Returns the time of the timing of `batches`, and of the sweep up to `largest`."""
    swept = set(batch_sizes(largest, factor=plan.sweep_factor)) - set(batches)
    timed = sum(_timing_s(image_s, plan.timing, batch) for batch in batches)
    return timed + sum(_timing_s(image_s, plan.sweep, batch) for batch in swept)


def _timing_s(image_s: Mapping[RowSpec, float], plan: TimingPlan, batch: int) -> float:
    return sum(_row_s(plan, batch * seconds) for seconds in image_s.values())


def _row_s(plan: TimingPlan, run_s: float) -> float:
    """Returns the time of a row whose inference takes `run_s`: its warm-up, and its rounds with what settles them."""
    num_rounds = plan.num_rounds if plan.num_rounds * run_s <= plan.seconds_per_row else plan.min_rounds
    settling_s = max(plan.settle_ms / 1e3, run_s if run_s > SETTLING_S else SETTLING_RUNS * run_s)
    warm_up = LEAST_WINDOWS * max(plan.window_ms / 1e3, run_s) + SETTLING_RUNS * run_s  # and its memory
    return warm_up + max(plan.seconds_per_row, num_rounds * run_s) + num_rounds * settling_s


def _server_s(image_s: Mapping[RowSpec, float], options: BenchOptions) -> float:
    """Returns the time of the server scenario, of the student and of the ensemble on each backend.

    Requests to a network that takes long are far apart, and as many are needed.
    """
    plan, seconds = options.plan.server, 0.0
    loads = (*plan.loads, *plan.loads[:1] * plan.num_refinements)
    for backend in {spec.backend for spec in image_s}:
        of_backend = [one for spec, one in image_s.items() if spec.backend == backend]
        for service_s in (min(of_backend), max(of_backend)):
            rates = [load / service_s for load in loads]
            seconds += (1 + plan.warm_up) * sum(num_requests_at(rate, plan) / rate for rate in rates)
    return seconds
