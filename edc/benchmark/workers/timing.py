"""The timing loop: warm up until stable, then short rounds of each row in random order, again and again.

Rows measured one after another differ by whatever the machine did in between: its clock, its heat, its neighbours.
Rows that take turns meet the same machine, and their ratio round by round is free of what changes slowly. Every
sample is kept, outliers too; nothing here is an average.

The loop knows no backend: it is given `infer` and a clock in nanoseconds, so that it can be tested without waiting.
"""

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edc.deploy.artifact.feed import Fed

__all__ = [
    "RowSamples",
    "Samples",
    "TimingPlan",
    "WarmUp",
    "drift",
    "flags_of",
    "inputs_in_rotation",
    "interleave",
    "timed_round",
    "timed_runs",
    "warm_up",
]

Samples = NDArray[np.int64]
Clock = Callable[[], int]
Infer = Callable[[Any], object]
Row = TypeVar("Row", bound=Hashable)

NUM_INPUTS = 16
MAX_RUNS = 10_000  # in one window or round, whatever the clock says
MAX_SETTLE_RUNS = 1_000
LEAST_WINDOWS = 3  # of a warm-up
SETTLING_RUNS, SETTLING_S = 2, 0.1  # at the beginning of a round, at least; one run that is as long is enough
DRIFT_LIMIT = 0.05  # change of the median from the first to the last third of the rounds
NOISE_LIMIT = 0.10  # coefficient of variation
JUMP_NS, JUMP_FACTOR = 1e9, 100  # a sample over both, the factor in medians, is no inference


@dataclass(frozen=True)
class TimingPlan:
    """How much to measure. A row leaves when its time is spent, but not before `min_rounds`."""

    seconds_per_row: float = 3.0
    num_rounds: int = 30
    min_rounds: int = 10
    window_ms: float = 30.0
    """Warm-up goes on until three windows of this length agree within `agreement`."""
    agreement: float = 0.05
    max_windows: int = 40
    """Warm-up gives up after the time of so many windows, but not before its third."""
    settle_ms: float = 3.0
    """Untimed runs at the start of each round: after another row's turn, caches are cold and threads asleep."""


@dataclass(frozen=True)
class WarmUp:
    """`run_ns` is the median of the last window; `is_stable` says whether the last three windows agreed."""

    num_runs: int
    is_stable: bool
    run_ns: int


@dataclass(frozen=True, eq=False)
class RowSamples:
    """All samples of one row in nanoseconds, by the round they were taken in; a row may miss rounds."""

    rounds: dict[int, Samples]

    @property
    def all(self) -> Samples:
        return np.concatenate(list(self.rounds.values())) if self.rounds else np.empty(0, np.int64)

    @property
    def medians(self) -> dict[int, float]:
        """The median of each round."""
        return {number: float(np.median(samples)) for number, samples in self.rounds.items()}


def inputs_in_rotation(images: Fed, *, batch: int, num_inputs: int = NUM_INPUTS) -> list[Fed]:
    """Returns `num_inputs` different batches of the images; views of one array, so that large ones cost no memory.

    Where there are too few images for disjoint batches, batches overlap; where there are fewer than needed for
    different ones, the images are repeated.
    """
    stride = max(1, min(batch, (len(images) - batch) // max(num_inputs - 1, 1)))
    needed = batch + stride * (num_inputs - 1)
    if len(images) < needed:
        images = images[np.arange(needed) % len(images)]
    images = np.ascontiguousarray(images)  # type: ignore[assignment]  # in whichever of the two types it is
    return [images[start : start + batch] for start in range(0, needed - batch + 1, stride)]


def timed_runs(
    infer: Infer, inputs: Sequence[Fed], *, first: int, num_runs: int, clock: Clock = perf_counter_ns
) -> Samples:
    """Returns the time of each of `num_runs` inferences; the inputs go round, starting with number `first`."""
    num_inputs = len(inputs)
    ends = [0] * num_runs
    starts = [0] * num_runs
    for run in range(num_runs):
        batch = inputs[(first + run) % num_inputs]
        start = clock()
        infer(batch)
        ends[run] = clock()
        starts[run] = start
    return np.array(ends, np.int64) - np.array(starts, np.int64)


def timed_round(
    infer: Infer,
    inputs: Sequence[Fed],
    *,
    first: int,
    num_runs: int,
    settle_ms: float,
    clock: Clock = perf_counter_ns,
) -> Samples:
    """Returns what `timed_runs` returns, after runs that let the machine settle on this row: two, or one long one."""
    start, settled = clock(), 0
    while settled < MAX_SETTLE_RUNS:
        elapsed_ns = clock() - start
        if settled and elapsed_ns >= (SETTLING_S * 1e9 if settled < SETTLING_RUNS else settle_ms * 1e6):
            break
        infer(inputs[settled % len(inputs)])
        settled += 1
    return timed_runs(infer, inputs, first=first, num_runs=num_runs, clock=clock)


def warm_up(infer: Infer, inputs: Sequence[Fed], *, plan: TimingPlan, clock: Clock = perf_counter_ns) -> WarmUp:
    """Runs until three successive windows agree, or the time for it is over, and says which."""
    medians: list[float] = []
    num_runs = 0
    give_up = clock() + plan.max_windows * plan.window_ms * 1e6
    while len(medians) < LEAST_WINDOWS or (clock() < give_up and len(medians) < plan.max_windows):
        window: list[int] = []
        start = clock()
        # Three runs at least, so that one hiccup does not decide a window, unless the inferences are long themselves.
        while not window or (len(window) < MAX_RUNS and _is_open(len(window), clock() - start, plan.window_ms * 1e6)):
            window += timed_runs(infer, inputs, first=num_runs, num_runs=1, clock=clock).tolist()
            num_runs += 1
        medians.append(median(window))
        last = medians[-LEAST_WINDOWS:]
        if len(last) == LEAST_WINDOWS and max(last) <= (1 + plan.agreement) * min(last):
            return WarmUp(num_runs, is_stable=True, run_ns=max(1, int(last[-1])))
    return WarmUp(num_runs, is_stable=False, run_ns=max(1, int(medians[-1])))


def _is_open(num_runs: int, elapsed_ns: int, window_ns: float) -> bool:
    return elapsed_ns < window_ns or (num_runs < 3 and elapsed_ns < 10 * window_ns)


def interleave(
    rows: Mapping[Row, Callable[[int, int], Samples | None]], *, run_ns: Mapping[Row, int], plan: TimingPlan, seed: int
) -> dict[Row, RowSamples]:
    """Returns the samples of all rows, taken in `plan.num_rounds` rounds, the rows in a new random order in each.

    Args:
        rows: for each row, a function (first, num_runs) that returns that many samples, or None when the row failed
            and shall not be asked again.
        run_ns: how long one inference takes, roughly; it decides how many there are in a round.
    """
    rounds: dict[Row, dict[int, Samples]] = {row: {} for row in rows}
    num_taken, spent_ns, left = dict.fromkeys(rows, 0), dict.fromkeys(rows, 0.0), set(rows)
    order = list(rows)
    rng = random.Random(seed)
    budget_ns = plan.seconds_per_row * 1e9
    for number in range(plan.num_rounds):
        rng.shuffle(order)
        for row in order:
            if row not in left or (spent_ns[row] >= budget_ns and len(rounds[row]) >= plan.min_rounds):
                continue
            # Again in each round: a machine that became slower must not use up a row's time before the others'.
            share_ns = (budget_ns - spent_ns[row]) / (plan.num_rounds - number)
            one_ns = spent_ns[row] / num_taken[row] if spent_ns[row] > 0 else run_ns[row]
            num_runs = max(1, min(MAX_RUNS, int(share_ns / max(one_ns, 1))))
            samples = rows[row](num_taken[row], num_runs)
            if samples is None:
                left.discard(row)
                continue
            rounds[row][number] = samples
            num_taken[row] += len(samples)
            spent_ns[row] += max(0.0, len(samples) * float(np.median(samples)))  # not the sum: a clock may jump
    return {row: RowSamples(taken) for row, taken in rounds.items()}


def flags_of(samples: RowSamples, warm: WarmUp) -> tuple[str, ...]:
    """Returns the flags of this row's figures, in words."""
    flags = [] if warm.is_stable else ["the warm-up did not become stable"]
    values = samples.all
    if not len(values):
        return tuple(flags)
    if (values < 0).any():
        flags.append(f"the clock went back during {int((values < 0).sum())} of {len(values)} samples")
    num_jumps = int((values > max(JUMP_NS, JUMP_FACTOR * float(np.median(values)))).sum())
    if num_jumps:
        flags.append(f"the clock jumped forward, or the machine slept, during {num_jumps} of {len(values)} samples")
    change = drift(samples.medians)
    if abs(change) > DRIFT_LIMIT:
        flags.append(f"drift: the median changed by {change:+.0%} from the first to the last third of the rounds")
    spread = coefficient_of_variation(values)
    if spread > NOISE_LIMIT:
        flags.append(f"noise: the coefficient of variation is {spread:.0%}")
    return tuple(flags)


def drift(medians: Mapping[int, float]) -> float:
    """Returns by which share the median changed from the first to the last third of the rounds; 0 under 3 rounds.

    Args:
        medians: that of each round, by the round's number; what a clock that went back has made of one is left out.
    """
    in_order = [value for _, value in sorted(medians.items()) if value > 0]
    third = len(in_order) // 3
    return median(in_order[-third:]) / median(in_order[:third]) - 1 if third else 0.0


def coefficient_of_variation(samples: Samples) -> float:
    """Returns standard deviation over mean, outliers and all."""
    mean = float(samples.mean())
    return float(samples.std() / mean) if mean > 0 else math.inf
