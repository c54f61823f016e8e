"""Does `edc bench --compare` find a row that became 10 % slower, and is it silent when nothing changed?

    python benchmarks/planted_slowdown.py export/digits --folder planted [--tries 20] [--percent 10] [--row KEY]

A try is two quick benches, each with `--compare` against the undisturbed one before it: one in which the row's every
inference is followed by a busy wait of so many per cent of its own time, at every batch size, and one without. Both are
`edc bench` itself; only their worker processes differ, which read this file too (as multiprocessing's `__mp_main__`)
and wrap the row after it is loaded. Benches are kept in the folder and the command goes on where it stopped.

Besides the tries themselves, every planted bench is compared with every undisturbed one, and those with each other:
many more pairs, minutes apart instead of seconds, though no longer independent.

Run it on a quiet machine. Prints markdown for results/bench_checks.md; the figures are in <folder>/planted.json.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

PLANT = "PLANTED_SLOWDOWN"
"""Read by this file alone: the row's key and the share, as JSON."""


def slow_down_row(key: str, factor: float) -> None:
    """Makes this process's worker take `factor` of the time for the row `key`."""
    from edc.benchmark.workers import worker

    class Slowed:
        """What was loaded, slower; all but `infer` is its own."""

        def __init__(self, loaded: Any, cost_ns: float) -> None:
            self.loaded, self.cost_ns = loaded, cost_ns

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loaded, name)

        def infer(self, batch: Any) -> Any:
            start = perf_counter_ns()
            result = self.loaded.infer(batch)
            until = start + (perf_counter_ns() - start) * factor - self.cost_ns
            while perf_counter_ns() < until:
                pass
            return result

    class Nothing:
        def infer(self, batch: Any) -> Any:
            return batch

    def cost_of_wrapping() -> float:
        """Returns how much longer an inference takes for being wrapped, so that this is not planted as well."""
        bare, wrapped = Nothing(), Slowed(Nothing(), 1e9)  # a cost so large that it never waits
        times: dict[Any, list[int]] = {bare: [], wrapped: []}
        for _ in range(2000):
            for each, taken in times.items():
                start = perf_counter_ns()
                each.infer(None)
                taken.append(perf_counter_ns() - start)
        return median(times[wrapped]) - median(times[bare])

    load = worker.Worker.load

    def load_slowed(self: Any, request: Any) -> Any:
        report = load(self, request)
        if request.key == key:
            self.loaded[key] = Slowed(self.loaded[key], cost_of_wrapping())
        return report

    worker.Worker.load = load_slowed  # type: ignore[method-assign]


def main() -> None:
    from quick_benches import bench_into, parse

    from edc.benchmark.regression.saved_bench import load_saved

    options = parse(
        __doc__,
        ("--tries", {"type": int, "default": 20}),
        ("--percent", {"type": float, "default": 10.0}),
        ("--row", {"help": "as in bench.json, 'student on onnxruntime'; default: the deployed student's first"}),
        ("--fail-on", {"default": "5%"}),
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    before = options.folder / "plain00.json"
    if not before.is_file():
        bench_into(before, options)
    row = options.row or student_of(load_saved(before))
    for number in range(1, options.tries + 1):
        for kind in ("plain", "slow"):
            path = options.folder / f"{kind}{number:02}.json"
            if path.is_file():
                continue
            print(f"{number} of {options.tries}: {kind}", file=sys.stderr, flush=True)
            if kind == "slow":
                os.environ[PLANT] = json.dumps([row, 1 + options.percent / 100])
            command = (sys.executable, str(Path(__file__).resolve()), "--as-edc")
            bench_into(path, options, "--compare", str(before), "--fail-on", options.fail_on, command=command)
            os.environ.pop(PLANT, None)
        before = options.folder / f"plain{number:02}.json"
    evaluate(options, row)


def student_of(document: dict[str, Any]) -> str:
    """Returns the key of the deployed student's first row."""
    from edc.benchmark.saved.document import whole_bench
    from edc.subject import Subject

    bench = whole_bench(document, name="before")
    return next(row.key for row in bench.rows if row.identity == Subject("student", name=bench.deploy))


def evaluate(options: Any, row: str) -> None:
    """Counts the tries as `edc bench --compare` judged them, then all pairs."""
    from quick_benches import machine, write

    from edc.benchmark.regression.compare import compare, parse_fail_on
    from edc.benchmark.regression.saved_bench import load_saved

    fail_on = parse_fail_on(options.fail_on)
    numbers = range(1, options.tries + 1)
    plain = [load_saved(options.folder / f"plain{number:02}.json") for number in range(options.tries + 1)]
    slow = [load_saved(options.folder / f"slow{number:02}.json") for number in numbers]
    tries = {
        "slow": [document["comparison"] for document in slow],
        "plain": [document["comparison"] for document in plain[1:]],
    }
    pairs = {
        "slow": [compare(new, old, fail_on=fail_on).to_json() for new, old in itertools.product(slow, plain)],
        "plain": [compare(new, old, fail_on=fail_on).to_json() for new, old in itertools.permutations(plain, 2)],
    }
    result: dict[str, Any] = {
        "machine": machine(plain[0]),
        "row": row,
        "percent": options.percent,
        "fail_on": fail_on,
        "flagged": sum(bool(document["environment"].get("flags")) for document in plain + slow),
        "benches": len(plain) + len(slow),
    }
    for name, comparisons in (("tries", tries), ("pairs", pairs)):
        result[name] = {kind: rates(found, row) for kind, found in comparisons.items()}
    write(options.folder / "planted.json", result)
    show(result)


def rates(comparisons: list[dict[str, Any]], row: str) -> dict[str, Any]:
    """Returns how often the row was found (at any, and at each batch), and how often another one was reported."""
    by_batch: dict[str, int] = {}
    changes: dict[str, list[float]] = {}
    found = others = failed = 0
    for comparison in comparisons:
        worse = [change for change in comparison["changes"] if change["verdict"] == "worse"]
        found += any(change["key"] == row for change in worse)
        others += any(change["key"] != row for change in worse)
        failed += comparison["exit_code"]
        for change in comparison["changes"]:
            if change["key"] == row and change["figure"] == "p50_ms" and change["change"]:
                batch = str(change["batch"])
                by_batch[batch] = by_batch.get(batch, 0) + (change["verdict"] == "worse")
                changes.setdefault(batch, []).append(change["change"]["value"])
    return {
        "total": len(comparisons),
        "exit_1": failed,
        "row_named": found,
        "another_row_named": others,
        "row_named_by_batch": by_batch,
        "median_change_by_batch": {batch: median(values) - 1 for batch, values in changes.items()},
    }


def show(result: dict[str, Any]) -> None:
    from quick_benches import share, table

    print(f"{result['row']}, {result['benches']} benches, {result['machine']}")
    print(f"--fail-on {result['fail_on']:.0%}\n")
    cells = []
    for name in ("tries", "pairs"):
        for kind, percent in (("slow", result["percent"]), ("plain", 0.0)):
            figures = result[name][kind]
            measured = figures["median_change_by_batch"]
            cells.append(
                [
                    "one after the other" if name == "tries" else "all pairs",
                    f"{percent:g} %",
                    ", ".join(f"{value:+.1%} at batch {batch}" for batch, value in measured.items()),
                    *(
                        share(figures[count], figures["total"])
                        for count in ("exit_1", "row_named", "another_row_named")
                    ),
                ]
            )
    print(table(["benches", "planted", "median change", "exit code 1", "the row named", "another row named"], cells))
    if result["flagged"]:
        print(
            f"\n{result['flagged']} of {result['benches']} benches began on a busy machine: these figures do not count"
        )


if PLANT in os.environ and __name__ == "__mp_main__":
    slow_down_row(*json.loads(os.environ[PLANT]))
if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-edc"]:
        from edc.cli.main import main as edc

        sys.argv = ["edc", *sys.argv[2:]]
        edc()
    else:
        main()
