"""The process in which one backend runs, alone, and answers requests over a pipe.

Nothing heavy is imported before `serve` runs: the number of threads is in the environment by then, and libraries read
it when they are imported.
"""

import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from time import perf_counter_ns

import numpy as np

from edc.benchmark.backends import BackendName, open_backend
from edc.benchmark.backends.contract import Backend, Floats, Loaded, Source, TorchSource
from edc.benchmark.workers.arrivals import serve_requests
from edc.benchmark.workers.probe import Usage, probe_ns, usage_now
from edc.benchmark.workers.protocol import (
    Infer,
    Load,
    LoadReport,
    Refused,
    Request,
    RoundReport,
    ServeRequests,
    TimeRound,
    WarmUpReport,
    WarmUpRow,
)
from edc.benchmark.workers.timing import Samples, inputs_in_rotation, timed_round, warm_up
from edc.deploy.artifact.feed import Fed, as_fed
from edc.deploy.artifact.manifest import Preprocessing
from edc.errors import EdcError, FailedError, first_line
from edc.system.gpu import is_out_of_memory
from edc.system.peak_memory import peak_growth

__all__ = ["serve"]

SPIN_S = 0.01
"""Threads of OpenMP and of thread pools spin for some milliseconds after their work, on a processor of the next row."""

Answer = LoadReport | WarmUpReport | RoundReport | Samples | Floats | Refused


def serve(connection: Connection, backend_name: BackendName, *, threads: int) -> None:
    """Says whether the backend is there, takes the images to time with, then answers requests until the pipe closes.

    A library's error comes back as `Refused`. Anything else is a bug: its traceback goes to stderr and the
    process ends, which the other end notices.
    """
    os.dup2(2, 1)  # libraries that print must not spoil the JSON on the parent's stdout
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    try:
        backend = open_backend(backend_name, threads=threads)
        backend.take_process()
    except EdcError as error:
        connection.send(Refused(str(error)))
        return
    try:
        connection.send(None)
        worker = Worker(backend, connection.recv(), threads=threads)
        while True:
            request: Request = connection.recv()
            answer = worker.answer(request)
            if isinstance(answer, Refused) and backend.is_lost():
                connection.send(replace(answer, has_ended=True))
                return
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the bench is over


class Worker:
    """A backend, what it has loaded, and the images to time with."""

    def __init__(self, backend: Backend, images: Floats, *, threads: int) -> None:
        self.backend, self.images, self.threads = backend, images, threads
        self.loaded: dict[str, Loaded] = {}
        self.sources: dict[str, Source] = {}
        self.inputs: dict[tuple[int, Preprocessing | None], list[Fed]] = {}

    def answer(self, request: Request) -> Answer:
        try:
            match request:
                case Load():
                    return self.load(request)
                case WarmUpRow():
                    return self.warm_up(request)
                case TimeRound():
                    return self.time_round(request)
                case ServeRequests():
                    return self.serve(request)
                case Infer():
                    return self.infer(request)
        except (EdcError, RuntimeError) as error:
            return self.refused(error)

    def refused(self, error: EdcError | RuntimeError) -> Refused:
        """Returns the answer to what failed; a GPU fails with torch's own errors wherever it is asked for something."""
        if isinstance(error, EdcError):
            return Refused(str(error))
        if not is_out_of_memory(error) and not self.backend.is_lost():
            raise error
        return Refused(f"the GPU failed: {first_line(error)}")

    def load(self, request: Load) -> LoadReport:
        self.backend.prepare(request.source)
        image = self.inputs_of(1, request.source)[0]
        if not self.loaded and not self.backend.is_warm:
            # Thrown away: what a library sets up once, at its first inference, is not the first row's own.
            self.backend.load(request.source).infer(image)
        start = perf_counter_ns()
        loaded = self.backend.load(request.source)
        after_load = perf_counter_ns()
        loaded.infer(image)
        after_first = perf_counter_ns()
        self.loaded[request.key], self.sources[request.key] = loaded, request.source
        # What is loaded stays: without this, the collector would walk it all in the middle of a timing.
        gc.collect()
        gc.freeze()
        found = loaded.what_ran.threads
        return LoadReport(
            what_ran=loaded.what_ran,
            flags=() if found == self.threads else (f"threads: {found}, where {self.threads} were asked for",),
            file_bytes=loaded.file_bytes,
            load_ms=(after_load - start) / 1e6,
            first_inference_ms=(after_first - after_load) / 1e6,
        )

    def warm_up(self, request: WarmUpRow) -> WarmUpReport:
        """Warms up; before that, if asked, loads the row a second time, only to measure its memory.

        The timed copy cannot show that: it keeps the memory of the largest batch that it has ever run.
        """
        inputs = self.inputs_of(request.batch, self.sources.get(request.key))
        loaded = self.loaded[request.key]
        if loaded.on_gpu or not request.with_memory:  # on a GPU, host memory is not what a row takes
            return WarmUpReport(warm_up(loaded.infer, inputs, plan=request.plan), peak_memory_bytes=None)
        with peak_growth() as memory:
            fresh = self.backend.load(self.sources[request.key])
            for batch in inputs[:2]:
                fresh.infer(batch)
        del fresh
        result = warm_up(loaded.infer, inputs, plan=request.plan)
        return WarmUpReport(result, memory.peak_bytes)

    def time_round(self, request: TimeRound) -> RoundReport:
        loaded = self.loaded[request.key]
        before = usage_now()
        with nothing_compiled(loaded):
            samples = timed_round(
                loaded.infer,
                self.inputs_of(request.batch, self.sources.get(request.key)),
                first=request.first,
                num_runs=request.num_runs,
                settle_ms=request.settle_ms,
            )
        usage = _usage_since(before)
        report = RoundReport(samples, loaded.parts_of_last(len(samples)), probe_ns(), loaded.probe_ns(), usage)
        time.sleep(SPIN_S)
        return report

    def serve(self, request: ServeRequests) -> Samples:
        loaded, inputs = self.loaded[request.key], self.inputs_of(1, self.sources.get(request.key))
        with nothing_compiled(loaded):
            return serve_requests(loaded.infer, inputs, arrivals_ns=request.arrivals_ns)

    def infer(self, request: Infer) -> Floats:
        """Returns the outputs of all images, asked for in as many batches as the row needs: this is not timed."""
        loaded = self.loaded[request.key]
        size = loaded.max_batch or len(request.images)
        images = as_fed(request.images, feed_of(self.sources.get(request.key)))
        starts = range(0, len(images), size)
        return np.concatenate([loaded.infer(images[start : start + size]) for start in starts])

    def inputs_of(self, batch: int, source: Source | None) -> list[Fed]:
        """Returns the batches to time with, as the source takes them: nothing is converted while it is timed."""
        feed = feed_of(source)
        if (batch, feed) not in self.inputs:
            self.inputs[batch, feed] = inputs_in_rotation(as_fed(self.images, feed), batch=batch)
        return self.inputs[batch, feed]


def _usage_since(before: Usage | None) -> Usage | None:
    now = usage_now()
    return None if before is None or now is None else now - before


def feed_of(source: Source | None) -> Preprocessing | None:
    """Returns the input that a source takes; None: images as they are, which is what networks of a run take."""
    return None if source is None or isinstance(source, TorchSource) else source.feed


@contextmanager
def nothing_compiled(loaded: Loaded) -> Iterator[None]:
    """Raises `FailedError` at the end of the block if something was compiled in it: its times are not inference."""
    before = loaded.num_compilations()
    yield
    if number := loaded.num_compilations() - before:
        raise FailedError(f"{loaded.what_ran.provider}: compiled {number} more graphs while it was timed")
