"""What a step of LatentBE + TDiv-SDiv costs: edc's forms against the official order of work, taking turns.

    python benchmarks/step_cost.py --network wrn16x2 --size 32 --batch 128 --precision fp32,bf16
    python benchmarks/step_cost.py --network torchvision/resnet18 --size 224 --batch 64 --classes 1000
    python benchmarks/step_cost.py --network wrn16x2 --members 1,2,4,8 --forms joint,sequential

The sides are those of step_sides.py. Each has a process of its own, or one side's freed memory would serve another. In
each round each side has a turn, in random order, while the others wait. In a turn for time one step warms up and one is
timed; a ratio is the median over rounds of the ratio of their times, with its smallest and largest. In a turn for
memory one step sets up, and the peak is how far the process's resident memory rises above what is left then, over three
more.

--keep-memory says whose processes keep the memory that a step has freed within a turn: edc's (the default: `edc
distill` and `edc teach` do so), or all of them. `joint_giving_back` and `sequential_giving_back` are edc's forms
without that.

Where TorchUncertainty is installed, its layers are a side, too. In an environment of its own:
pip install -e . torch-uncertainty lightning

Results go to --output, a JSON line a configuration; those that are there already are printed, not measured again.
"""

import argparse
import json
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from step_sides import FORMS, OURS, step_of

from edc.system.machine import cpu_name
from edc.system.memory import freed_memory_kept, give_back_freed_memory
from edc.system.peak_memory import peak_growth

GIVING_BACK = "_giving_back"


def main() -> None:
    arguments = parsed()
    for precision in arguments.precision:
        for size in arguments.size:
            for num_members in arguments.members:
                chosen = [form for form in arguments.forms if form != "official_bf16_factors" or precision == "bf16"]
                for measured in arguments.measure:
                    measure_once(
                        arguments, chosen, measured=measured, precision=precision, size=size, num_members=num_members
                    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn16x2")
    parser.add_argument("--size", type=integers, default=[32], help="pixels of a side")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--members", type=integers, default=[4])
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32", "bf16"])
    parser.add_argument("--forms", type=lambda text: text.split(","), help=f"some of {', '.join(FORMS)}; default: all")
    parser.add_argument("--measure", type=lambda text: text.split(","), default=["time", "memory"])
    parser.add_argument("--rounds", type=int, default=5, help="for time")
    parser.add_argument("--memory-rounds", type=int, default=3)
    parser.add_argument("--keep-memory", choices=["edc", "all", "none"], default="edc")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("step_cost.jsonl"))
    arguments = parser.parse_args()
    installed = [form for form in FORMS if form != "torch_uncertainty" or find_spec("torch_uncertainty")]
    arguments.forms = arguments.forms or installed
    unknown = {form.removesuffix(GIVING_BACK) for form in arguments.forms} - set(installed)
    if unknown:
        parser.error(f"--forms: found {', '.join(sorted(unknown))}, expected some of {', '.join(installed)}")
    return arguments


def integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def measure_once(
    arguments: argparse.Namespace, forms: list[str], *, measured: str, precision: str, size: int, num_members: int
) -> None:
    """Measures one configuration unless its line is there, appends and prints it."""
    work = {
        "network": arguments.network,
        "classes": arguments.classes,
        "size": size,
        "batch": arguments.batch,
        "members": num_members,
        "precision": precision,
    }
    configuration = work | {
        "threads": arguments.threads,
        "keep_memory": arguments.keep_memory,
        "forms": forms,
        "measured": measured,
        "rounds": arguments.rounds if measured == "time" else arguments.memory_rounds,
    }
    lines = arguments.output.read_text().splitlines() if arguments.output.is_file() else []
    for kept in map(json.loads, lines):
        if kept["configuration"] == configuration:
            print_result(kept)
            return
    started = time.time()
    with sides_running(forms, work, arguments) as sides:
        turns = interleaved(sides, measured, rounds=configuration["rounds"])
    libraries = ("torch", "torch-uncertainty") if "torch_uncertainty" in forms else ("torch",)
    result = {
        "configuration": configuration,
        "machine": cpu_name(),
        "versions": {name: version(name) for name in libraries} | {"libc": " ".join(platform.libc_ver())},
        "date": time.strftime("%Y-%m-%d"),
        "took_seconds": round(time.time() - started),
    }
    for quantity in ("seconds", "page_faults") if measured == "time" else ("peak_bytes",):
        result[quantity] = {form: [turn[quantity] for turn in of_form] for form, of_form in turns.items()}
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
        keep = keep and not form.endswith(GIVING_BACK)
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
    step = step_of(form.removesuffix(GIVING_BACK), **work)
    while True:
        measure = turn_for_memory if parent.recv() == "memory" else turn_for_time
        with freed_memory_kept() if keep else nullcontext():
            step()  # sets up what is set up once, and takes the memory that a step needs
            answer = measure(step)
        give_back_freed_memory()
        parent.send(answer)


def turn_for_time(step: Callable[[], None]) -> dict[str, float]:
    faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    step()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults}


def turn_for_memory(step: Callable[[], None]) -> dict[str, float | None]:
    with peak_growth() as memory:
        for _ in range(3):  # a heap that is kept may still grow in the second
            step()
    return {"peak_bytes": memory.peak_bytes}


def interleaved(sides: dict[str, Connection], measured: str, *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Returns each side's turns."""
    turns: dict[str, list[dict[str, Any]]] = {form: [] for form in sides}
    order, rng = list(sides), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for form in order:
            sides[form].send(measured)
            try:
                turns[form].append(sides[form].recv())
            except EOFError:
                raise SystemExit(
                    f"{form}: its process died; what it said is above, or it took too much memory"
                ) from None
    return turns


def print_result(result: dict[str, Any]) -> None:
    """Prints a table whose ratios are against each side that is not edc's, or against the first one."""
    configuration = result["configuration"]
    is_time = configuration["measured"] == "time"
    figures, unit = (result["seconds"], 1) if is_time else (result["peak_bytes"], 1e6)
    baselines = [form for form in figures if form.removesuffix(GIVING_BACK) not in OURS] or list(figures)[:1]
    print(json.dumps(configuration), f"({result['date']}, {result['took_seconds']} s)")
    quantities = ("s a step", "page faults") if is_time else ("peak MB",)
    headings = ["form", *quantities, *(f"{'times as fast as' if is_time else 'of'} {form}" for form in baselines)]
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|")
    for form, values in figures.items():
        if None in values:
            continue  # nobody can tell here
        cells = [form, spread([value / unit for value in values], digits=3 if is_time else 0)]
        if is_time:
            cells.append(f"{statistics.median(result['page_faults'][form]):.0f}")
        for baseline in baselines:
            pairs = zip(figures[baseline], values, strict=True)
            cells.append(spread([a / b if is_time else b / a for a, b in pairs], digits=2))
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def spread(values: list[float], *, digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
