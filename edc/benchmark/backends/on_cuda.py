"""What torch and engines on a GPU share: copy in, compute, copy out, with the GPU's own clock at each border.

Images come from and outputs go to ordinary host memory, through pinned buffers. `infer` returns when the outputs are
there, so that the host's clock around it measures everything. CUDA events measure the parts. This was never run on a
GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
import torch
from torch import Tensor

from edc.benchmark.backends.contract import Floats, Loaded, Nanoseconds, WhatRan
from edc.deploy.artifact.feed import Fed
from edc.deploy.engine.run import DEVICE
from edc.errors import FailedError, first_line
from edc.system.gpu import without_gpu

__all__ = ["Bind", "CudaLoaded", "EventLog", "captured", "device_is_lost", "gpu_probe_ns", "require_cuda"]

Bind = Callable[[Tensor], Callable[[], Tensor]]
"""Given the tensor of images on the GPU, returns what asks for the outputs (N, K) on torch's current stream."""

PROBE_SIDE, NUM_PROBE_PRODUCTS = 1024, 8
PARTS = ("copy_in", "compute", "copy_out")


def require_cuda(backend: str) -> None:
    """Raises `FailedError` with the reason if torch cannot compute on a GPU here."""
    if found := without_gpu():
        raise FailedError(f"{backend}: {found.reason}")


def device_is_lost() -> bool:
    """Returns whether the GPU refuses everything of this process from now on; a lack of memory is not that."""
    if not torch.cuda.is_initialized() and not torch.cuda.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device=DEVICE).add_(1)
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def gpu_probe_ns() -> int:
    """Returns how long a fixed number of matrix products takes on the GPU, by its own clock."""
    matrix = torch.full((PROBE_SIDE, PROBE_SIDE), 0.5, device=DEVICE)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.mm(matrix, matrix)  # what comes first may set something up
    start.record()
    for _ in range(NUM_PROBE_PRODUCTS):
        torch.mm(matrix, matrix)
    end.record()
    torch.cuda.synchronize()
    elapsed_ms: float = start.elapsed_time(end)
    return round(elapsed_ms * 1e6)


class EventLog:
    """Four events for each of the last runs, made once and used again, and how long the host took to ask."""

    def __init__(self, make_event: Callable[[], torch.cuda.Event], *, capacity: int = 10_000) -> None:
        self._make_event, self._capacity = make_event, capacity
        self._events: list[list[torch.cuda.Event]] = []
        self._enqueue_ns: list[int] = []
        self._next = 0

    def next_run(self) -> list[torch.cuda.Event]:
        """Returns the events to record: before copy in, compute and copy out, and after."""
        if self._next == len(self._events) < self._capacity:
            self._events.append([self._make_event() for _ in range(len(PARTS) + 1)])
            self._enqueue_ns.append(0)
        self._next %= self._capacity
        self._next += 1
        return self._events[self._next - 1]

    def enqueued(self, elapsed_ns: int) -> None:
        """Keeps how long the host took to ask for the run of `next_run`."""
        self._enqueue_ns[self._next - 1] = elapsed_ns

    def of_last(self, num_runs: int) -> dict[str, Nanoseconds]:
        """Returns the parts of the last `num_runs` runs, oldest first, and begins again with the first events."""
        runs = [(self._next - num_runs + run) % len(self._events) for run in range(num_runs)]
        parts = {
            name: [round(self._events[run][i].elapsed_time(self._events[run][i + 1]) * 1e6) for run in runs]
            for i, name in enumerate(PARTS)
        }
        parts["enqueue"] = [self._enqueue_ns[run] for run in runs]
        self._next = 0
        return {name: np.array(values, np.int64) for name, values in parts.items()}


class CudaLoaded(Loaded):
    """Buffers for one batch size at a time; another size needs new ones, and a new CUDA graph if there is one."""

    on_gpu = True

    def __init__(
        self,
        bind: Bind,
        what_ran: WhatRan,
        *,
        file_bytes: int,
        max_batch: int | None = None,
        once_run: Callable[[], None] = lambda: None,
    ) -> None:
        self.what_ran, self.file_bytes, self.max_batch = what_ran, file_bytes, max_batch
        self._bind, self._once_run = bind, once_run
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._log = EventLog(lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        self._shape: tuple[int, ...] = ()

    def infer(self, batch: Fed, /) -> Floats:
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                if batch.shape != self._shape:
                    self._prepare(batch)
                return self._run(batch)
        except (RuntimeError, MemoryError) as error:
            what = f"{self.what_ran.provider} cannot run batch {len(batch)}"
            raise FailedError(f"{what}: {first_line(error)}") from error

    def probe_ns(self) -> int | None:
        return gpu_probe_ns()

    def parts_of_last(self, num_runs: int) -> dict[str, Nanoseconds]:
        return self._log.of_last(num_runs)

    def _prepare(self, batch: Fed) -> None:
        self._shape = ()  # should it fail, the next inference must not find half of it
        images = torch.from_numpy(batch)
        self._host_images = torch.empty_like(images, pin_memory=DEVICE.type == "cuda")
        self._images = torch.zeros_like(images, device=DEVICE)
        self._compute = self._bind(self._images)
        outputs = self._compute()
        self._stream.synchronize()
        self._once_run()
        self._host_outputs = torch.empty(outputs.shape, pin_memory=DEVICE.type == "cuda")
        self._shape = batch.shape

    def _run(self, batch: Fed) -> Floats:
        self._host_images.copy_(torch.from_numpy(batch))
        start, copied_in, computed, copied_out = self._log.next_run()
        start.record()
        self._images.copy_(self._host_images, non_blocking=True)
        copied_in.record()
        before = perf_counter_ns()
        outputs = self._compute()
        self._log.enqueued(perf_counter_ns() - before)
        computed.record()
        self._host_outputs.copy_(outputs, non_blocking=True)
        copied_out.record()
        self._stream.synchronize()
        result: Floats = self._host_outputs.numpy().copy()
        return result


def captured(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Returns `compute` as a CUDA graph on torch's current stream, captured after one plain run, which engines need.

    A graph holds addresses, not references. What it touches (an engine's context, buffers) is kept alive by `compute`,
    so that is kept for as long as the graph.
    """
    stream = torch.cuda.current_stream()
    compute()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = compute()

    return _Replay(graph, outputs, compute)


@dataclass(frozen=True)
class _Replay:
    """A captured graph, the tensor it writes to, and what it was captured from."""

    graph: torch.cuda.CUDAGraph
    outputs: Tensor
    compute: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.outputs
