"""The messages between a bench and its workers: frozen records, pickled over a pipe."""

from dataclasses import dataclass

from edc.benchmark.backends.contract import Floats, Source, WhatRan
from edc.benchmark.workers.probe import Usage
from edc.benchmark.workers.timing import Samples, TimingPlan, WarmUp

__all__ = [
    "Infer",
    "Load",
    "LoadReport",
    "Refused",
    "Request",
    "RoundReport",
    "ServeRequests",
    "TimeRound",
    "WarmUpReport",
    "WarmUpRow",
]


@dataclass(frozen=True)
class Load:
    """Load `source` under `key` and run it once on the first image; answered by a `LoadReport`."""

    key: str
    source: Source


@dataclass(frozen=True)
class WarmUpRow:
    """Warm `key` up at one batch size; answered by a `WarmUpReport`."""

    key: str
    batch: int
    plan: TimingPlan
    with_memory: bool = True
    """Whether to load the row once more, to see what memory that takes."""


@dataclass(frozen=True)
class TimeRound:
    """Time `num_runs` inferences of `key`; answered by a `RoundReport`."""

    key: str
    batch: int
    first: int
    num_runs: int
    settle_ms: float


@dataclass(frozen=True, eq=False)
class Infer:
    """Run `key` on these images; answered by its outputs (N, K)."""

    key: str
    images: Floats


@dataclass(frozen=True, eq=False)
class ServeRequests:
    """Answer requests of one image each as they arrive; answered by their latencies in nanoseconds (N,)."""

    key: str
    arrivals_ns: Samples


Request = Load | WarmUpRow | TimeRound | Infer | ServeRequests


@dataclass(frozen=True)
class LoadReport:
    """What loading took, and what will run. The library was imported before; `load_ms` does not hold that."""

    what_ran: WhatRan
    file_bytes: int
    load_ms: float
    first_inference_ms: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RoundReport:
    """Nanoseconds of each inference by the host's clock (num_runs,), and of its parts where a GPU tells them."""

    samples: Samples
    parts: dict[str, Samples]
    probe_ns: int
    """How fast the machine itself was, right after: see `probe`."""
    gpu_probe_ns: int | None = None
    """The same of the GPU, where the row ran on one."""
    usage: Usage | None = None
    """What the turn took and waited, and what others used meanwhile; None: the system does not say."""


@dataclass(frozen=True)
class WarmUpReport:
    """How the warm-up went, and by how much loading the row and running it at this batch size raises memory.

    `peak_memory_bytes` is None where nobody asked, or can tell.
    """

    warm_up: WarmUp
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Refused:
    """The request could not be carried out, and why; the worker lives on, unless it says that it has ended."""

    reason: str
    has_ended: bool = False
