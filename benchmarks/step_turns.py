"""CPU time of a training step of this checkout and of an older one, in turns.

    git worktree add ../old f9fd97b~1
    python benchmarks/step_turns.py ../old --output step_turns.json

Each side has a process of its own, one thread, and a turn in each round while the other waits: `joint` and `sequential`
are a step of LatentBE + TDiv-SDiv with four members, without the optimizer; `crop` is crop and flip of a batch, as
often as takes a while. CPU time, because other programs may run on the machine. The ratio is the median of rounds,
with its smallest and largest.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
WORK = {"joint": 16, "sequential": 32, "crop": 128}
"""Images of a batch."""
CROPS = 50


def work_of(kind: str, network: str) -> Callable[[], Any]:
    """Returns what one turn does, with the edc that is found first."""
    import torch

    from edc.data.batches import crop_and_flip
    from edc.method.batch_ensemble import to_batch_ensemble
    from edc.method.step import Batch, StudentStep
    from edc.networks import build_network
    from edc.recipe import NetworkSection

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, draws = WORK[kind], torch.Generator().manual_seed(1)
    if kind == "crop":
        pixels = torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8)
        return lambda: [crop_and_flip(pixels, padding=4, flip=True, generator=draws) for _ in range(CROPS)]
    common: dict[str, Any] = {"num_classes": 10, "image_shape": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    nets = [build_network(NetworkSection(name=network), **common) for _ in range(5)]
    nets = [net.to(memory_format=torch.channels_last) for net in nets]
    student = to_batch_ensemble(nets[0], 4).train()
    teachers = [net.eval().requires_grad_(False) for net in nets[1:]]
    step = StudentStep(teachers, perturbation="tdiv_sdiv", form=kind)  # type: ignore[arg-type]
    images = torch.rand(rows, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (rows,))

    def take() -> None:
        student.zero_grad(set_to_none=True)
        for loss in step.losses(student, student, Batch(images, labels, draws, slice(0, rows), rows)):
            loss.backward()

    return take


def serve(kind: str, network: str) -> None:
    """Takes a turn for each line on stdin; writes its CPU seconds, and the most memory so far."""
    take = work_of(kind, network)
    take()
    print(flush=True)
    for _ in sys.stdin:
        before = time.process_time()
        take()
        taken = time.process_time() - before
        print(json.dumps([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)


def in_turns(old: Path, kind: str, network: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(old), "--serve", kind, "--network", network]
    sides = {"before": old.resolve(), "after": HERE}
    running: dict[str, Any] = {}
    for side, checkout in sides.items():
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        running[side] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running[side].stdout.readline()
    found: dict[str, Any] = {side: {"cpu_s": [], "peak_bytes": 0} for side in sides}
    for number in range(rounds):
        for side in [*sides][:: 1 if number % 2 else -1]:
            running[side].stdin.write("\n")
            running[side].stdin.flush()
            taken, found[side]["peak_bytes"] = json.loads(running[side].stdout.readline())
            found[side]["cpu_s"].append(taken)
    for process in running.values():
        process.stdin.close()
        process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="another checkout")
    parser.add_argument("--network", default="wrn16x2")
    parser.add_argument("--work", default=",".join(WORK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", choices=WORK, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.network)
        return
    rows: dict[str, Any] = {}
    print("| work, batch | CPU time after / before | before, ms | after, ms |\n|---|---|---|---|")
    for kind in arguments.work.split(","):
        found = rows[f"{kind}, batch {WORK[kind]}"] = in_turns(arguments.old, kind, arguments.network, arguments.rounds)
        before, after = found["before"]["cpu_s"], found["after"]["cpu_s"]
        ratios = sorted(b / a for a, b in zip(before, after, strict=True))
        of_one = 1000 / (CROPS if kind == "crop" else 1)
        middles = " | ".join(f"{statistics.median(times) * of_one:.1f}" for times in (before, after))
        middle = statistics.median(ratios)
        print(f"| {kind}, {WORK[kind]} | {middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) | {middles} |", flush=True)
    if arguments.output:
        commits = {
            side: subprocess.check_output(["git", "-C", place, "rev-parse", "--short", "HEAD"], text=True).strip()
            for side, place in (("before", arguments.old), ("after", HERE))
        }
        from edc.system.machine import cpu_name

        about = {"commits": commits, "machine": cpu_name(), "date": time.strftime("%Y-%m-%d")}
        arguments.output.write_text(json.dumps(about | {"network": arguments.network, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
