"""What a step of LatentBE + TDiv-SDiv costs: edc's forms against the official order of work, taking turns.

    python benchmarks/step_cost.py --network wrn16x2 --size 32 --batch 128 --precision fp32,bf16
    python benchmarks/step_cost.py --network torchvision/resnet18 --size 224 --batch 64 --classes 1000
    python benchmarks/step_cost.py --network wrn16x2 --members 1,2,4,8 --forms joint,sequential

The sides are those of step_sides.py. Each has a process of its own, or one side's freed memory would serve another. In
each round each side has a turn, in random order, while the others wait: a step to warm up and a step that is timed. A
ratio is the median over rounds of the ratio of their times, with its smallest and largest. Peak memory is how far the
process's resident memory rises above what networks and images take, in a step apart.

--keep-memory says whose processes keep the memory that a step has freed: edc's (the default: `edc distill` and `edc
teach` do so), or all of them. Between turns everybody gives it back.

Where TorchUncertainty is installed, its layers are a side, too. In an environment of its own:
pip install -e . torch-uncertainty lightning

Results go to --output, a JSON line a configuration; those that are there already are printed, not measured
again.
"""

import argparse
import json
import random
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from step_sides import FORMS, OURS, step_of

import edc
from edc.bench.memory import peak_growth
from edc.host_memory import freed_memory_kept
from edc.machine import cpu_name


def main() -> None:
    arguments = parsed()
    forms = [form for form in arguments.forms if form != "torch_uncertainty" or find_spec("torch_uncertainty")]
    for precision in arguments.precision:
        for size in arguments.size:
            for num_members in arguments.members:
                chosen = [form for form in forms if form != "official_bf16_factors" or precision == "bf16"]
                measure_once(arguments, chosen, precision=precision, size=size, num_members=num_members)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn16x2")
    parser.add_argument("--size", type=integers, default=[32], help="pixels of a side")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--members", type=integers, default=[4])
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32", "bf16"])
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep-memory", choices=["edc", "all", "none"], default="edc")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("step_cost.jsonl"))
    return parser.parse_args()


def integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def measure_once(
    arguments: argparse.Namespace, forms: list[str], *, precision: str, size: int, num_members: int
) -> None:
    """Measures one configuration unless its line is there, appends and prints it."""
    configuration = {
        "network": arguments.network,
        "size": size,
        "batch": arguments.batch,
        "members": num_members,
        "precision": precision,
        "threads": arguments.threads,
        "keep_memory": arguments.keep_memory,
        "forms": forms,
        "rounds": arguments.rounds,
    }
    lines = arguments.output.read_text().splitlines() if arguments.output.is_file() else []
    for kept in map(json.loads, lines):
        if kept["configuration"] == configuration:
            print_result(kept)
            return
    started = time.time()
    work = {key: configuration[key] for key in ("network", "size", "batch", "members", "precision")}
    with sides_running(forms, work | {"classes": arguments.classes}, arguments) as sides:
        memory = {form: asked(side, "memory") for form, side in sides.items()}
        turns = interleaved(sides, rounds=arguments.rounds)
    times = {form: [turn["seconds"] for turn in of_form] for form, of_form in turns.items()}
    result = {
        "configuration": configuration,
        "machine": cpu_name(),
        "versions": {"edc": edc.__version__, "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": times,
        "page_faults": {form: [turn["page_faults"] for turn in of_form] for form, of_form in turns.items()},
        "peak_bytes": memory,
        "took_seconds": round(time.time() - started),
    }
    with arguments.output.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print_result(result)


@contextmanager
def sides_running(
    forms: list[str], work: dict[str, Any], arguments: argparse.Namespace
) -> Iterator[dict[str, Connection]]:
    """Yields a pipe to the process of each form, ready to take turns."""
    context, sides, processes = get_context("spawn"), {}, []
    for form in forms:
        keep = arguments.keep_memory == "all" or (arguments.keep_memory == "edc" and form in OURS)
        sides[form], other_end = context.Pipe()
        serving = {"form": form, "work": work, "threads": arguments.threads, "keep": keep}
        processes.append(context.Process(target=serve, args=(other_end,), kwargs=serving, daemon=True))
        processes[-1].start()
        other_end.close()
    try:
        yield sides
    finally:
        for process in processes:
            process.kill()
            process.join()


def serve(parent: Connection, *, form: str, work: dict[str, Any], threads: int, keep: bool) -> None:
    """Runs one side, a turn whenever the parent asks for one."""
    torch.set_num_threads(threads)
    step = step_of(form, **work)
    while True:
        what = parent.recv()
        with freed_memory_kept() if keep else nullcontext():
            step()  # sets up what is set up once, and takes the memory that a step needs
            if what == "memory":
                with peak_growth() as memory:
                    step()
                answer: Any = memory.peak_bytes
            else:
                faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
                step()
                seconds = time.perf_counter() - started
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
                answer = {"seconds": seconds, "page_faults": faults}
        parent.send(answer)


def asked(side: Connection, what: str) -> Any:
    side.send(what)
    return side.recv()


def interleaved(sides: dict[str, Connection], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Returns each side's turns."""
    turns: dict[str, list[dict[str, float]]] = {form: [] for form in sides}
    order, rng = list(sides), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for form in order:
            turns[form].append(asked(sides[form], "turn"))
    return turns


def print_result(result: dict[str, Any]) -> None:
    """Prints a table whose ratios are against each side that is not edc's, or against the first one."""
    configuration, times, memory = result["configuration"], result["seconds"], result["peak_bytes"]
    baselines = [form for form in times if form not in OURS] or list(times)[:1]
    print(json.dumps(configuration), f"({result['date']}, {result['took_seconds']} s)")
    print("| form | s a step | page faults | peak MB |" + "".join(f" {b}: times as fast, memory |" for b in baselines))
    print("|---" * (4 + len(baselines)) + "|")
    for form, seconds in times.items():
        faults, megabytes = statistics.median(result["page_faults"][form]), (memory[form] or 0) / 1e6
        cells = [form, f"{statistics.median(seconds):.3f}", f"{faults:.0f}", f"{megabytes:.0f}" if megabytes else ""]
        for baseline in baselines:
            ratios = [a / b for a, b in zip(times[baseline], seconds, strict=True)]
            share = f", {memory[form] / memory[baseline]:.2f}" if megabytes else ""
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}){share}")
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


if __name__ == "__main__":
    main()
