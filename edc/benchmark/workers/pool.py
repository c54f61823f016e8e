"""All workers of a bench, one per backend: load, predict, and time rows that take turns. Only one computes at any time.

A row that cannot run is a result, too: `NotRun` with the reason replaces its report.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from edc.benchmark.backends import ON_GPU, BackendName, computes_in
from edc.benchmark.backends.contract import Floats, Source
from edc.benchmark.keys import row_key
from edc.benchmark.workers.probe import Probe
from edc.benchmark.workers.process import WorkerProcess
from edc.benchmark.workers.protocol import (
    Infer,
    Load,
    LoadReport,
    Request,
    RoundReport,
    ServeRequests,
    TimeRound,
    WarmUpReport,
    WarmUpRow,
)
from edc.benchmark.workers.timing import RowSamples, Samples, TimingPlan, WarmUp, flags_of, interleave
from edc.errors import FailedError
from edc.subject import PrecisionClass, Subject
from edc.system.gpu import SmClock

__all__ = ["NotRun", "RowSpec", "Timing", "WorkerPool"]

MOST_BYTES = 2**23  # of images in one request for predictions


@dataclass(frozen=True)
class RowSpec:
    """A row: a subject, its backend, and where the backend finds it."""

    subject: Subject
    backend: BackendName
    source: Source
    artifact: str | None = None
    """Which artifact it is from, if not the one that is benched."""

    @property
    def key(self) -> str:
        """What the row is called: two rows that differ have two keys, as labels hold no colon."""
        return row_key(self.subject.label, self.backend, self.artifact)

    @property
    def precision(self) -> PrecisionClass:
        """What the row is compared within, beside its backend."""
        return computes_in(self.backend, self.subject.precision)

    @property
    def is_own_ensemble(self) -> bool:
        """Whether it is a form of the ensemble that the benched artifact replaces."""
        return self.subject.is_ensemble and self.artifact is None


@dataclass(frozen=True)
class NotRun:
    """Why a row, or one batch size of it, has no figures."""

    reason: str


@dataclass(frozen=True, eq=False)
class Timing:
    """A row's samples at one batch size. `peak_memory_bytes` is what loading and running it adds to a worker.

    `parts` are the parts of each inference on a GPU: copy_in, compute, copy_out, enqueue. On a CPU: nothing.
    """

    batch: int
    samples: RowSamples
    warm_up: WarmUp
    peak_memory_bytes: int | None
    parts: dict[str, RowSamples] = field(default_factory=dict)
    probe: Probe = field(default_factory=Probe)
    """How fast the machine itself was at each of the row's turns."""

    @property
    def flags(self) -> tuple[str, ...]:
        return (*flags_of(self.samples, self.warm_up), *self.probe.flags)


class WorkerPool:
    """The workers, started when first needed and ended with the `with` block.

    A worker that dies takes the row it was working on with it; the others are loaded again into a new one.

    Args:
        images: real images to time with, (N, C, H, W) in [0, 1]; 16 or more, and best 16 times the largest batch.
        threads: for every backend alike.
        limit_s: how long one request to a worker may take.
    """

    def __init__(self, *, images: Floats, threads: int, limit_s: float = 600.0) -> None:
        self.images, self.threads, self.limit_s = np.ascontiguousarray(images, np.float32), threads, limit_s
        self._workers: dict[BackendName, WorkerProcess] = {}
        self._ready: set[BackendName] = set()
        self._unavailable: dict[BackendName, str] = {}
        self._loaded: list[RowSpec] = []
        self._lost: dict[RowSpec, str] = {}
        self._clock: SmClock | None = None

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            if kind is None:
                worker.close()
            else:
                worker.kill()
        self._workers.clear()

    def start(self, backends: Iterable[BackendName]) -> None:
        """Starts workers that are not there yet, all importing at the same time; not needed, only faster."""
        for backend in backends:
            if backend not in self._workers:
                self._workers[backend] = WorkerProcess(
                    backend, threads=self.threads, images=self.images, limit_s=self.limit_s
                )

    def load(self, spec: RowSpec) -> LoadReport | NotRun:
        """Loads a row into its backend's worker; every row is loaded before it is asked for anything else."""
        answer: LoadReport | NotRun = self._ask(
            spec, Load(spec.key, spec.source), doing=f"loading {spec.subject.label}"
        )
        if isinstance(answer, NotRun):
            self._lost[spec] = answer.reason
        else:
            self._loaded.append(spec)
        return answer

    def predict(self, specs: Sequence[RowSpec], batches: Iterable[Floats]) -> dict[RowSpec, Floats | NotRun]:
        """Returns each row's outputs (N, K) on all images; every batch (n, C, H, W) is read once, for all rows.

        Networks get a batch in pieces of 8 MB at most. 224 images of 224 pixels through eleven rows of small networks
        took 38 s in batches of up to 200, and 16 s in pieces.
        """
        outputs: dict[RowSpec, list[Floats]] = {spec: [] for spec in specs}
        failed: dict[RowSpec, NotRun] = {}
        for images in itertools.chain.from_iterable(map(_pieces, batches)):
            for spec in specs:
                if spec in failed:
                    continue
                answer = self._ask(spec, Infer(spec.key, images), doing=f"predicting with {spec.subject.label}")
                if isinstance(answer, NotRun):
                    failed[spec] = answer
                else:
                    outputs[spec].append(answer)
        return {spec: failed.get(spec) or np.concatenate(outputs[spec]) for spec in specs}

    def time(
        self, specs: Sequence[RowSpec], *, batch: int, plan: TimingPlan, seed: int, with_memory: bool = True
    ) -> dict[RowSpec, Timing | NotRun]:
        """Returns each row's samples at one batch size: all rows are warmed up, then take turns.

        Args:
            with_memory: also load each row once more, for `Timing.peak_memory_bytes`: as long as a short timing.
        """
        failed: dict[RowSpec, NotRun] = {}
        warm: dict[RowSpec, WarmUpReport] = {}
        for spec in specs:
            request = WarmUpRow(spec.key, batch, plan, with_memory=with_memory)
            report = self._ask(spec, request, doing=f"warming up {spec.subject.label}")
            if isinstance(report, NotRun):
                failed[spec] = report
            else:
                warm[spec] = report

        parts: dict[RowSpec, list[dict[str, Samples]]] = {spec: [] for spec in warm}
        probes = {spec: Probe() for spec in warm}

        def round_of(spec: RowSpec) -> Callable[[int, int], Samples | None]:
            def run(first: int, num_runs: int) -> Samples | None:
                round_asked = TimeRound(spec.key, batch, first, num_runs, plan.settle_ms)
                answer: RoundReport | NotRun = self._ask(
                    spec, round_asked, doing=f"timing {spec.subject.label}", look=self._clock_look(spec, probes[spec])
                )
                if isinstance(answer, NotRun):
                    failed[spec] = answer
                    return None
                parts[spec].append(answer.parts)
                probes[spec].all_ns.append(answer.probe_ns)
                if answer.usage is not None:
                    probes[spec].usages.append(answer.usage)
                if answer.gpu_probe_ns is not None:
                    probes[spec].gpu_ns.append(answer.gpu_probe_ns)
                return answer.samples

            return run

        run_ns = {spec: report.warm_up.run_ns for spec, report in warm.items()}
        samples = interleave({spec: round_of(spec) for spec in warm}, run_ns=run_ns, plan=plan, seed=seed)
        return {
            spec: failed.get(spec) or _timing(batch, samples[spec], warm[spec], parts[spec], probes[spec])
            for spec in specs
        }

    def serve(self, spec: RowSpec, arrivals_ns: Samples) -> Samples | NotRun:
        """Returns the latency in nanoseconds of each request of one image that arrives as `arrivals_ns` say, (N,)."""
        answer: Samples | NotRun = self._ask(
            spec, ServeRequests(spec.key, arrivals_ns), doing=f"serving {spec.subject.label}"
        )
        return answer

    def _clock_look(self, spec: RowSpec, probe: Probe) -> Callable[[], None] | None:
        """Returns what notes the GPU's clock while a row of a GPU is timed; this process has nothing else to do."""
        if spec.backend not in ON_GPU:
            return None
        if self._clock is None:
            self._clock = SmClock()
        clock = self._clock
        return lambda: probe.clocks_mhz.extend(clock.now_mhz())

    def _ask(self, spec: RowSpec, request: Request, *, doing: str, look: Callable[[], None] | None = None) -> Any:
        if spec in self._lost:
            return NotRun(self._lost[spec])
        worker = self._worker(spec.backend)
        if worker is None:
            return NotRun(self._unavailable[spec.backend])
        if spec in self._lost:  # it died when it was to be loaded again
            return NotRun(self._lost[spec])
        try:
            return worker.ask(request, doing=doing, look=look)
        except FailedError as error:
            if not worker.is_alive:
                del self._workers[spec.backend]
                self._ready.discard(spec.backend)
                self._lost[spec] = str(error)
            return NotRun(str(error))

    def _worker(self, backend: BackendName) -> WorkerProcess | None:
        """Returns the backend's worker, starting one with all that was loaded if need be; None: it cannot start."""
        while backend not in self._ready and backend not in self._unavailable:
            self.start([backend])
            worker = self._workers[backend]
            try:
                worker.wait_until_ready()
            except FailedError as error:
                self._unavailable[backend] = str(error)
                break
            for spec in self._loaded:
                if spec.backend == backend and spec not in self._lost and worker.is_alive:
                    self._load_again(spec, worker)
            if worker.is_alive:
                self._ready.add(backend)
            else:
                del self._workers[backend]
        return self._workers[backend] if backend in self._ready else None

    def _load_again(self, spec: RowSpec, worker: WorkerProcess) -> None:
        try:
            worker.ask(Load(spec.key, spec.source), doing=f"loading {spec.subject.label} again")
        except FailedError as error:
            self._lost[spec] = str(error)


def _pieces(batch: Floats) -> Iterator[Floats]:
    images = np.ascontiguousarray(batch, np.float32)
    size = max(1, MOST_BYTES // images[0].nbytes)
    return (images[start : start + size] for start in range(0, len(images), size))


def _timing(
    batch: int, samples: RowSamples, warm: WarmUpReport, parts: list[dict[str, Samples]], probe: Probe
) -> Timing:
    """Returns the timing of a row; `parts` are in the order of its rounds."""
    names = dict.fromkeys(name for of_round in parts for name in of_round)
    of_rounds = dict(zip(samples.rounds, parts, strict=True))
    by_name = {name: RowSamples({number: each[name] for number, each in of_rounds.items()}) for name in names}
    return Timing(batch, samples, warm.warm_up, warm.peak_memory_bytes, by_name, probe)
