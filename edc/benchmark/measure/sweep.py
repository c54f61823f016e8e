"""Offline throughput: growing batches, until a larger one gains nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edc.benchmark.judge.statistics import has_saturated, images_per_second
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.benchmark.workers.timing import TimingPlan

__all__ = ["Throughput", "ThroughputPoint", "batch_sizes", "sweep"]


@dataclass(frozen=True)
class ThroughputPoint:
    """Images per second at one batch size, outliers included."""

    batch: int
    images_per_second: float


@dataclass(frozen=True)
class Throughput:
    """A row's sweep. `saturated`: the last batch gained under 5 %, so larger ones were not tried."""

    key: str
    points: tuple[ThroughputPoint, ...]
    saturated: bool

    @property
    def best_batch(self) -> int:
        return max(self.points, key=lambda point: point.images_per_second).batch


def batch_sizes(largest: int, *, factor: int = 2) -> list[int]:
    """Returns 1, `factor`, `factor`^2, ... and `largest` itself."""
    sizes = [1]
    while sizes[-1] * factor < largest:
        sizes.append(sizes[-1] * factor)
    return sizes if largest == 1 else [*sizes, largest]


def sweep(
    pool: WorkerPool,
    specs: Sequence[RowSpec],
    *,
    batches: Sequence[int],
    plan: TimingPlan,
    seed: int,
    timed: Mapping[int, Mapping[RowSpec, Timing | NotRun]] | None = None,
) -> list[Throughput]:
    """Returns the throughput of every row that ran; rows of one batch size take turns, as in every timing here.

    A row leaves when it has saturated, or when a batch size does not run (out of memory, for example); it keeps its
    figures.

    Args:
        timed: what is known already of some batch sizes; they are not measured again.
    """
    points: dict[RowSpec, list[ThroughputPoint]] = {spec: [] for spec in specs}
    saturated: set[RowSpec] = set()
    left = list(specs)
    for batch in batches:
        known = timed[batch] if timed and batch in timed else None
        if known is None:
            known = pool.time(left, batch=batch, plan=plan, seed=seed, with_memory=False) if left else {}
        for spec, timing in [(spec, known[spec]) for spec in left]:
            rate = None if isinstance(timing, NotRun) else images_per_second(timing.samples.all, batch=batch)
            if rate is None:
                left.remove(spec)
                continue
            points[spec].append(ThroughputPoint(batch, rate))
            if has_saturated([point.images_per_second for point in points[spec]]):
                saturated.add(spec)
                left.remove(spec)
    return [Throughput(spec.key, tuple(points[spec]), spec in saturated) for spec in specs if points[spec]]
