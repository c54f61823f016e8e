"""Does the bench's own machinery cost anything? Its timing against a loop written by hand, over the same session.

    python benchmarks/bench_loop.py [FILE.onnx] [--batch 1] [--threads 1] [--seconds 10] [--rounds 60]

Four rows take turns in random order. In this process: the loop by hand, and `edc.benchmark.workers.timing` around the
backend's `infer`. In a worker process, as `edc bench` has it: the loop by hand, and the worker's own row; it is this
file that adds the loop to the worker (multiprocessing reads it as `__mp_main__`). Each pair runs one session and
meets the same inputs. Prints each p50 and the median ratio to the loop by hand in the same process, paired by round,
with its interval. The bound to hold is 3 %. Run it on a quiet machine; without a file it makes a tiny ResNet. Prints
markdown for results/bench_checks.md.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edc.benchmark.backends.contract import Floats, Loaded, OnnxSource
from edc.benchmark.backends.onnxruntime_cpu import OnnxRuntimeCpu
from edc.benchmark.environment import environment_now
from edc.benchmark.judge.statistics import median_ratio, quantile
from edc.benchmark.workers.process import WorkerProcess
from edc.benchmark.workers.protocol import Load, TimeRound
from edc.benchmark.workers.timing import (
    RowSamples,
    Samples,
    TimingPlan,
    inputs_in_rotation,
    interleave,
    timed_round,
    warm_up,
)
from edc.deploy.onnx.session import ort_session

BOUND = 0.03
BY_HAND = "by hand"


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or small_resnet(Path(folder) / "small.onnx")
        compare(path, options)


def compare(path: Path, options: argparse.Namespace) -> None:
    plan = TimingPlan(seconds_per_row=options.seconds, num_rounds=options.rounds)
    session = ort_session(path, threads=options.threads)
    loaded = OnnxRuntimeCpu(threads=options.threads).load(OnnxSource((path,)))
    loaded._run = session.run  # the very same session
    shape = tuple(size if isinstance(size, int) else 8 for size in session.get_inputs()[0].shape[1:])
    images = np.random.default_rng(0).random((16 * options.batch, *shape), dtype=np.float32)
    inputs = inputs_in_rotation(images, batch=options.batch)
    worker = WorkerProcess("onnxruntime", threads=options.threads, images=images, limit_s=600)
    worker.ask(Load("row", OnnxSource((path,))), doing="loading")

    def in_worker(key: str, first: int, num_runs: int) -> Samples:
        answer = worker.ask(TimeRound(key, options.batch, first, num_runs, plan.settle_ms), doing="timing")
        return getattr(answer, "samples", answer)  # type: ignore[no-any-return]

    rows: dict[str, Callable[[int, int], Samples | None]] = {
        BY_HAND: partial(by_hand, session, inputs, settle_ms=plan.settle_ms),
        "timing loop": partial(by_edc, loaded, inputs, settle_ms=plan.settle_ms),
        f"worker, {BY_HAND}": partial(in_worker, BY_HAND),
        "worker, its row": partial(in_worker, "row"),
    }
    run_ns = warm_up(loaded.infer, inputs, plan=plan).run_ns
    samples = interleave(rows, run_ns=dict.fromkeys(rows, run_ns), plan=plan, seed=0)
    worker.close()

    machine = environment_now(threads=options.threads)
    print(f"{path.name}, batch {options.batch}, {options.threads} threads, {machine.cpu}, {machine.started}")
    print(*machine.flags, sep="\n", end="\n\n")
    print("| row | p50 us | samples | costs | interval | under 3 % |\n| --- | --- | --- | --- | --- | --- |")
    for name, taken in samples.items():
        show(name, taken, samples[f"worker, {BY_HAND}" if name.startswith("worker") else BY_HAND])


def show(name: str, taken: RowSamples, baseline: RowSamples) -> None:
    """Prints a line; the bound holds if the whole interval is within it."""
    p50, ratio = quantile(taken, 0.5), median_ratio(baseline, taken, seed=0)
    if p50 is None or ratio is None or ratio.low is None or ratio.high is None:
        print(f"| {name} | too few samples; give it more --seconds or --rounds |")
        return
    cost, low, high = (1 / value - 1 for value in (ratio.value, ratio.high, ratio.low))
    inside, outside = max(-low, high) < BOUND, low > BOUND or high < -BOUND
    verdict = "" if taken is baseline else "holds" if inside else "OVER" if outside else "undecided"
    figures = [f"{p50.value / 1e3:.2f}", f"{len(taken.all)}", f"{cost:+.2%}", f"{low:+.2%} to {high:+.2%}", verdict]
    print(f"| {name} | {' | '.join(figures)} |")


def by_hand(session: Any, inputs: list[Floats], first: int, num_runs: int, *, settle_ms: float) -> Samples:
    """What somebody writes who wants to know how long a session takes."""
    end = time.perf_counter() + settle_ms / 1e3
    name = session.get_inputs()[0].name
    while time.perf_counter() < end:
        session.run(None, {name: inputs[0]})
    samples = []
    for i in range(first, first + num_runs):
        batch = inputs[i % len(inputs)]
        start = time.perf_counter_ns()
        session.run(None, {name: batch})
        samples.append(time.perf_counter_ns() - start)
    return np.array(samples)


def by_edc(loaded: Loaded, inputs: list[Floats], first: int, num_runs: int, *, settle_ms: float) -> Samples:
    return timed_round(loaded.infer, inputs, first=first, num_runs=num_runs, settle_ms=settle_ms)


def add_loop_to_worker() -> None:
    """Gives this process's worker a second row over the session of the first: the loop by hand."""
    from edc.benchmark.workers import worker

    time_round = worker.Worker.time_round

    def either(self: Any, request: TimeRound) -> Any:
        if request.key != BY_HAND:
            return time_round(self, request)
        session = self.loaded["row"]._run.__self__
        inputs = self.inputs_of(request.batch)
        return by_hand(session, inputs, request.first, request.num_runs, settle_ms=request.settle_ms)

    worker.Worker.time_round = either  # type: ignore[method-assign]


def small_resnet(path: Path) -> Path:
    """Writes the network of recipes/digits.yaml, untrained: the shortest inference that anybody will time."""
    from edc.deploy.fuse import fuse_batchnorm
    from edc.deploy.onnx.from_network import onnx_from_network
    from edc.networks import build_network
    from edc.recipe import NetworkSection

    shape = (1, 8, 8)
    network = build_network(NetworkSection(name="wrn10x1"), num_classes=10, image_shape=shape, mean=(0.3,), std=(0.4,))
    fused = fuse_batchnorm(network.eval(), input_shape=shape).network
    onnx_from_network(fused, path, input_shape=shape, class_names=[str(k) for k in range(10)], metadata={})
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--rounds", type=int, default=60)
    return parser.parse_args()


if __name__ == "__mp_main__":
    add_loop_to_worker()
if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
