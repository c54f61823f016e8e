"""Does a quick bench on a busy machine say so, and do its wider intervals hold what a quiet one measures?

    python benchmarks/busy_machine.py export/digits --folder busy [--tries 5] [--load 4]

A try is two quick benches one after the other: one undisturbed, and one beside as many processes as `--load` says,
which compute all the time. Benches are kept in the folder, and the command goes on where it stopped. A busy bench holds
the quiet ones if its 95 % interval of a speed-up has the median of theirs in it.

Begin on a quiet machine. Prints markdown for results/bench_checks.md.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

from quick_benches import benches, machine, parse, share, table

SPIN = "while True: pass"


def main() -> None:
    options = parse(
        __doc__,
        ("--tries", {"type": int, "default": 5}),
        ("--load", {"type": int, "default": 4, "help": "processes that compute beside a busy bench"}),
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    quiet, busy = [], []
    for number in range(options.tries):
        quiet += benches([f"quiet{number}"], options)
        with spinning(options.load):
            busy += benches([f"busy{number}"], options)
    columns = ["speed-up", "quiet x", "quiet interval", "busy x", "busy interval", "hold the quiet median", "said so"]
    print(f"{machine(quiet[0])}; {options.load} processes beside a busy bench\n")
    print(table(columns, [line_of(key, batch, quiet, busy) for key, batch in compared(quiet[0])]))


@contextlib.contextmanager
def spinning(number: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compared(document: dict[str, Any]) -> list[tuple[str, int]]:
    return [(row["key"], row["batch"]) for row in document["rows"] if speedup_of(row)]


def speedup_of(row: dict[str, Any]) -> dict[str, float] | None:
    """Returns its speed-up over the best form of the ensemble on its backend, with its interval."""
    return next((each["speedup"] for each in row["against"] if each["basis"] == "ensemble"), None)


def line_of(key: str, batch: int, quiet: list[dict[str, Any]], busy: list[dict[str, Any]]) -> list[str]:
    """Returns a row's line: its speed-up in quiet and in busy benches, and how often a busy one held the quiet ones."""
    rows = [[row_of(document, key, batch) for document in documents] for documents in (quiet, busy)]
    found = [[speedup for row in of_kind if (speedup := speedup_of(row))] for of_kind in rows]
    wanted = median(speedup["value"] for speedup in found[0])
    holds = sum(speedup["low"] <= wanted <= speedup["high"] for speedup in found[1])
    flagged = sum(any("machine" in flag for flag in row["flags"]) for row in rows[1])
    cells = [f"{key} at batch {batch}"]
    for speedups in found:
        values = sorted(speedup["value"] for speedup in speedups)
        widths = [speedup["high"] / speedup["low"] for speedup in speedups]
        cells += [f"{values[0]:.3g} to {values[-1]:.3g}", f"a factor of {median(widths):.2f}"]
    return [*cells, share(holds, len(busy)), f"{flagged} of {len(busy)}"]


def row_of(document: dict[str, Any], key: str, batch: int) -> dict[str, Any]:
    (row,) = [row for row in document["rows"] if (row["key"], row["batch"]) == (key, batch)]
    return row


if __name__ == "__main__":
    main()
