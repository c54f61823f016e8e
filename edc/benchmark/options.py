"""The options of a bench, and how much it measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edc.benchmark.backends import BackendName
from edc.benchmark.measure.server import ServerPlan
from edc.benchmark.workers.timing import TimingPlan

__all__ = ["FULL", "QUICK", "BenchOptions", "BenchPlan"]


@dataclass(frozen=True)
class BenchOptions:
    """The command's options.

    `run` is the run the artifact came from, for the torch rows, which say so if it is not there. `backends` None takes
    every one that is installed, `batches` None takes 1 and the largest that the artifact was checked for.
    """

    run: Path
    data_root: Path | None = None
    backends: Sequence[BackendName] | None = None
    batches: Sequence[int] | None = None
    threads: int = 1
    also: tuple[Path, ...] = ()
    """Other artifacts of the same classes, whose students become rows too."""
    quick: bool = False
    robustness: bool | None = None
    """Quality on corrupted images; None: yes, but not where a quick bench would take long for it."""
    latency_bound_ms: float | None = None
    """For the server's p99; None takes three times the ensemble's median, per backend."""
    compare_with: dict[str, Any] | None = None
    """The document of a saved bench to compare this one with; an error at once if that cannot be done."""
    seed: int = 0
    command: str = ""
    """What was typed, for the record."""

    @property
    def may_lower_batch(self) -> bool:
        """Whether the largest batch may be a smaller one: in a quick bench that was not told which, or to compare."""
        return self.quick and self.batches is None and self.compare_with is None

    @property
    def plan(self) -> "BenchPlan":
        return QUICK if self.quick else FULL


@dataclass(frozen=True)
class BenchPlan:
    """How much is measured of each thing."""

    timing: TimingPlan
    sweep: TimingPlan
    sweep_factor: int
    """From one batch size of the sweep to the next."""
    server: ServerPlan
    quality_images: int | None
    """Test images, drawn; None takes all, which is what figures to be quoted need."""


FULL = BenchPlan(
    timing=TimingPlan(),
    sweep=TimingPlan(seconds_per_row=0.4, num_rounds=8, min_rounds=3, window_ms=15.0, max_windows=12),
    sweep_factor=2,
    server=ServerPlan(),
    quality_images=None,
)
QUICK = BenchPlan(
    timing=TimingPlan(seconds_per_row=0.2, num_rounds=12, min_rounds=8, window_ms=10.0, max_windows=12, settle_ms=1.0),
    sweep=TimingPlan(seconds_per_row=0.05, num_rounds=3, min_rounds=3, window_ms=5.0, max_windows=6, settle_ms=1.0),
    sweep_factor=8,
    server=ServerPlan(loads=(0.2, 0.5, 0.8), num_refinements=1, num_rounds=3, seconds_per_point=0.2, most_seconds=0.8),
    quality_images=2000,
)
