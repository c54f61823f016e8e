"""Where the time of a training step goes: a few real steps of the student under torch's profiler.

`fit` runs them as it always does, in a temporary folder, on a handful of batches; the run's folder and its teachers are
only read. The loop and the loss name their parts with `record_function("edc:...")` ranges. Steps are counted, and the
profiler started and stopped, by torch's own hook after every optimiser step: a measured step lasts from the end of one
"edc:optimizer" range to the end of the next, so the parts and "other" (schedules, progress, Python) add up to it.

Ranges are host time. On a GPU the host only launches kernels; each step there ends with a wait for the GPU, which has a
row for itself. A second column says how long the kernels that a range launched were running.

Processes exchange statistics and gradients inside the parts, partly while these compute. The duration of the exchange,
including the wait for the slowest process, is a separate figure, not one of the parts.
"""

import dataclasses
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, record_function

from edc.data import DataSet, load_training_data
from edc.recipe import Recipe
from edc.runs.distill import require_trainable
from edc.runs.folder import RunFolder
from edc.runs.start import require_teachers_to_start_from
from edc.runs.student import train_student
from edc.runs.trial import few_learned, few_steps
from edc.system.files import write_atomically, write_json
from edc.system.peak_memory import peak_growth
from edc.teachers.ensemble import TeacherEnsemble, are_trained, build_teacher, load_own_teachers, load_teachers
from edc.train.distributed import by_main, one_of_a_machine_first, raised_together

__all__ = ["OperatorTime", "RangeTime", "StepProfile", "profile_step"]

PREFIX = "edc:"
PARTS = ("data", "perturbation", "teachers", "forward", "backward", "optimizer")
GPU_WAIT = "wait for the GPU"
WARMUP_STEPS, MEASURED_STEPS, TOP_OPERATORS = 3, 10, 10
NUM_STEPS = WARMUP_STEPS + MEASURED_STEPS + 1
"""The last one's optimiser range is still open when the profiler stops, so it is not measured."""


@dataclass(frozen=True)
class RangeTime:
    """One part of a step, without the parts inside it; means over the measured steps."""

    name: str
    ms: float
    share: float
    calls: float
    kernels_ms: float | None
    """How long the kernels it launched ran on the GPU; None without one."""


@dataclass(frozen=True)
class OperatorTime:
    """One operator of torch, without the operators it calls: host time, or GPU time where there is one."""

    name: str
    ms: float
    calls: float


@dataclass(frozen=True)
class StepProfile:
    """The parts of one training step of `student`; the shares of `ranges` add up to 1."""

    student: str
    teachers: str
    device: str
    num_processes: int
    batch_size: int
    num_steps: int
    step_ms: float
    ranges: tuple[RangeTime, ...]
    operators: tuple[OperatorTime, ...]
    exchange_ms: float | None
    """How long an exchange between the processes lasted per step, inside the parts; None for one process."""
    peak_memory_bytes: int | None
    """CPU: growth of the process's resident memory before the profiler starts; GPU: highest allocated memory."""
    trace: str


def profile_step(recipe: Recipe, *, folder: Path, teachers_path: Path, accelerator: Accelerator) -> StepProfile:
    """Returns where the time of a step of the recipe's deployed student goes, as the main process saw it.

    Which student is the best is not known before all are trained: with `deploy: best` it is the last one.

    Leaves in `folder`: trace.json.gz (for chrome://tracing or ui.perfetto.dev) and profile.json. Nothing else on disk
    is changed. Teachers that are not all trained yet are replaced by untrained ones: the time is the same.
    """
    name = next(reversed(recipe.students)) if recipe.deploys_best else recipe.deploy
    data = one_of_a_machine_first(lambda: load_training_data(recipe.data), accelerator)
    with raised_together(accelerator):
        require_trainable(recipe, data, accelerator=accelerator)
    read = one_of_a_machine_first(lambda: load_own_teachers(few_steps(recipe), data), accelerator)
    own_teachers = [one.network for one in read]
    require_teachers_to_start_from(recipe, data, own_teachers)
    teachers, kind = _teachers(recipe, data, own_teachers, teachers_path, accelerator)
    batch_size = recipe.training_of(recipe.students[name]).batch_size
    on_gpu = accelerator.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it says on stderr that a machine without a GPU has none
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    profiler = torch.profiler.profile(activities=activities, acc_events=True)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with (
        tempfile.TemporaryDirectory(prefix="edc-profile-") as temporary,
        _steps_recorded_by(profiler, on_gpu=on_gpu) as memory,
    ):
        train_student(
            few_steps(recipe),
            name,
            few_learned(recipe, name, data, NUM_STEPS, num_processes=accelerator.num_processes),
            teachers,
            run=RunFolder(Path(temporary)),
            accelerator=accelerator,
            observed=False,
        )
    trace = folder / "trace.json.gz"

    def write_trace() -> None:
        with write_atomically(trace) as path:
            profiler.export_chrome_trace(str(path))

    by_main(write_trace, accelerator)
    events = list(profiler.events() or [])  # type: ignore[no-untyped-call]
    first, last = _measured_window(events)
    profile = StepProfile(
        student=name,
        teachers=kind,
        device=str(accelerator.device),
        num_processes=accelerator.num_processes,
        batch_size=batch_size,
        num_steps=MEASURED_STEPS,
        step_ms=(last - first) / 1000 / MEASURED_STEPS,
        ranges=_ranges(events, first, last, on_gpu=on_gpu),
        operators=_operators(events, first, last, on_gpu=on_gpu),
        exchange_ms=_exchange_ms(events, first, last) if accelerator.num_processes > 1 else None,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else memory.peak_bytes,
        trace=str(trace),
    )
    by_main(lambda: write_json(folder / "profile.json", dataclasses.asdict(profile)), accelerator)
    return profile


def _teachers(
    recipe: Recipe, data: DataSet, own: list[nn.Module], teachers_path: Path, accelerator: Accelerator
) -> tuple[TeacherEnsemble, str]:
    """Returns the ensemble and what it is: "own", "trained" or "untrained"."""
    trained = by_main(lambda: are_trained(recipe, data, teachers_path=teachers_path), accelerator)
    kind = "own" if own else "trained" if trained else "untrained"
    if kind == "untrained":
        own = [build_teacher(recipe, data, fresh=False) for _ in range(recipe.teachers.size)]
    return load_teachers(recipe, data, teachers_path=teachers_path, accelerator=accelerator, own=own), kind


@contextmanager
def _steps_recorded_by(profiler: Any, *, on_gpu: bool) -> Iterator[Any]:
    """Starts and stops `profiler` around the steps to measure; yields the memory growth of the steps before it."""
    num_done = 0
    before = ExitStack()

    def after_step(*_: Any) -> None:
        nonlocal num_done
        num_done += 1
        if on_gpu:
            with record_function(PREFIX + GPU_WAIT):
                torch.cuda.synchronize()
        if num_done == WARMUP_STEPS - 1:  # its start takes time: one more step is recorded than measured
            before.close()
            profiler.start()
        elif num_done == NUM_STEPS:
            profiler.stop()

    with before:
        growth = before.enter_context(peak_growth())
        hook = register_optimizer_step_post_hook(after_step)
        try:
            yield growth
        finally:
            hook.remove()


def _on_host(event: Any) -> bool:
    return bool(event.device_type.name == "CPU")


def _measured_window(events: Iterable[Any]) -> tuple[float, float]:
    """Returns where the measured steps start and end, in microseconds, both at the end of an optimiser step."""
    ends = sorted(e.time_range.end for e in events if e.name == f"{PREFIX}optimizer" and _on_host(e))
    return ends[0], ends[MEASURED_STEPS]


def _ranges(events: Iterable[Any], first: float, last: float, *, on_gpu: bool) -> tuple[RangeTime, ...]:
    """Returns the parts of a step in the order of their work, and the rest as "other"."""
    host = [e for e in events if _on_host(e)]
    spans = _exclusive_spans(
        (e.time_range.start, e.time_range.end, e.name.removeprefix(PREFIX))
        for e in host
        if e.name.startswith(PREFIX) and first <= e.time_range.start and e.time_range.end <= last
    )
    calls: dict[str, int] = defaultdict(int)
    lengths: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    for name, pieces in spans:
        calls[name] += 1
        lengths[name] += sum(end - start for start, end in pieces)
    if on_gpu:  # not run on a GPU here: by the moment of launch, whichever thread (backward has its own) did it
        owners = sorted((start, end, name) for name, pieces in spans for start, end in pieces)
        for event in host:
            start = event.time_range.start
            if event.kernels and not event.is_user_annotation and first <= start <= last:
                name = next((name for begin, end, name in owners if begin <= start <= end), "other")
                kernels[name] += sum(kernel.duration for kernel in event.kernels)
    lengths["other"] = last - first - sum(lengths.values())
    calls["other"] = MEASURED_STEPS
    names = [*PARTS, *sorted(calls.keys() - {*PARTS, "other"}), "other"]
    return tuple(
        RangeTime(
            name=name,
            ms=lengths[name] / 1000 / MEASURED_STEPS,
            share=lengths[name] / (last - first),
            calls=calls[name] / MEASURED_STEPS,
            kernels_ms=kernels[name] / 1000 / MEASURED_STEPS if on_gpu else None,
        )
        for name in names
        if calls[name]
    )


def _exchange_ms(events: Iterable[Any], first: float, last: float) -> float:
    """Returns for how long of a step at least one exchange was under way, from gloo's threads or NCCL's kernels.

    NCCL: not run here.
    """
    spans = sorted(
        (max(e.time_range.start, first), min(e.time_range.end, last))
        for e in events
        if (e.name.startswith("gloo:") if _on_host(e) else e.name.startswith("nccl"))
    )
    total, until = 0.0, first
    for start, end in spans:
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total / 1000 / MEASURED_STEPS


def _exclusive_spans(ranges: Iterable[tuple[float, float, str]]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Returns each range (start, end, name) as the pieces of it that no range inside it covers.

    Ranges nest or follow one another: all are opened and closed by one thread.
    """
    done: list[tuple[str, list[tuple[float, float]]]] = []
    open_ranges: list[tuple[float, str, list[tuple[float, float]], list[float]]] = []

    def close() -> None:
        end, name, pieces, (since,) = open_ranges.pop()
        done.append((name, [*pieces, (since, end)]))
        if open_ranges:
            open_ranges[-1][3][0] = end

    for start, end, name in sorted(ranges, key=lambda r: (r[0], -r[1])):
        while open_ranges and open_ranges[-1][0] <= start:
            close()
        if open_ranges:
            open_ranges[-1][2].append((open_ranges[-1][3][0], start))
        open_ranges.append((end, name, [], [start]))
    while open_ranges:
        close()
    return done


def _operators(events: Iterable[Any], first: float, last: float, *, on_gpu: bool) -> tuple[OperatorTime, ...]:
    """Returns the operators that took longest in the measured steps."""
    lengths: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        span = event.time_range
        if not _on_host(event) or event.is_user_annotation or not first <= span.start <= last:
            continue
        calls[event.name] += 1
        lengths[event.name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    longest = sorted(lengths, key=lambda name: -lengths[name])[:TOP_OPERATORS]
    return tuple(
        OperatorTime(name, lengths[name] / 1000 / MEASURED_STEPS, calls[name] / MEASURED_STEPS) for name in longest
    )
