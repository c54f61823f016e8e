"""Do two benches of one artifact disagree by less than their intervals say, 19 times in 20?

    python benchmarks/bench_repeat.py export/digits --folder repeats [--benches 20] [--batch 1,64]

Runs quick benches one after another, keeps every bench.json in the folder, and goes on where it stopped. Then takes
all pairs of benches and counts, for each row, how often two medians, or two speed-ups over the ensemble, differ by more
than the 95 % interval of their ratio, made from the two intervals that were saved; and how often `--compare` would have
reported something. "sd, all benches" and "sd by interval" say what benches differ by and what an interval stands for:
where the first is much larger, MEDIAN_SPREAD or RATIO_SPREAD in edc/bench/statistics.py is too small for this machine.
"Quiet pairs" are those of two rows during which the machine was in one and the same state, by the probe that edc times
beside every row and not by the rows themselves. Pairs share benches, so the rates' intervals are too narrow.

Run it on a quiet machine. Prints markdown for results/bench_checks.md; the figures are in <folder>/repeat.json.
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quick_benches import benches, machine, parse, share, table, write
from scipy.stats import norm

from edc.benchmark.judge.statistics import MEDIAN_SPREAD, RATIO_SPREAD
from edc.benchmark.regression.compare import P50_CONFIDENCE, compare, ratio_interval
from edc.benchmark.saved.document import SavedEstimate
from edc.benchmark.workers.probe import PROBE_LIMIT

Z = float(norm.ppf(0.975))
SPEEDUP_BOUNDS = 0.975
"""Confidence of each bound of a speed-up's 95 % interval."""


def main() -> None:
    options = parse(
        __doc__,
        ("--benches", {"type": int, "default": 20}),
        ("--fail-on", {"type": float, "default": 0.05, "help": "a share"}),
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    found = benches([f"bench{number:02}" for number in range(options.benches)], options)
    figures = [figure for kind in ("p50", "speed-up") for figure in rows_of(found, kind)]
    reported = sum(
        compare(new, old, fail_on=options.fail_on).exit_code for new, old in itertools.permutations(found, 2)
    )
    num_pairs = len(found) * (len(found) - 1)
    result = {
        "machine": machine(found[0]),
        "benches": len(found),
        "median_spread": MEDIAN_SPREAD,
        "ratio_spread": RATIO_SPREAD,
        "fail_on": options.fail_on,
        "rows": figures,
        "compare_reported": {"count": reported, "pairs": num_pairs},
        "flags": [document["environment"].get("flags") for document in found],
    }
    write(options.folder / "repeat.json", result)
    show(result)


def rows_of(found: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """Yields a record for each row: how often pairs of benches disagree, and by how much benches differ at all."""
    bounds = P50_CONFIDENCE if kind == "p50" else SPEEDUP_BOUNDS
    for name, measured in estimates_of(found, kind).items():
        estimates = [each.estimate for each in measured]
        pairs = list(itertools.combinations(measured, 2))
        if not pairs:
            continue
        quiet = [(a, b) for a, b in pairs if is_quiet(a, b)]
        logs = [math.log(estimate.value) for estimate in estimates]
        within = [(math.log(e.high / e.low) / 2 / norm.ppf(bounds)) ** 2 for e in estimates if e.low and e.high]
        yield {
            "kind": kind,
            "row": name,
            "median": statistics.median(estimate.value for estimate in estimates),
            "sd": statistics.stdev(logs),
            "within": math.sqrt(statistics.mean(within)) if within else None,
            "pairs": len(pairs),
            "disagree": sum(disagrees(a.estimate, b.estimate, bounds) for a, b in pairs),
            "quiet_pairs": len(quiet),
            "quiet_disagree": sum(disagrees(a.estimate, b.estimate, bounds) for a, b in quiet),
        }


@dataclass(frozen=True)
class Measured:
    """A figure of one bench, and what the machine did meanwhile."""

    estimate: SavedEstimate
    probe_us: float
    is_restless: bool


def is_quiet(a: Measured, b: Measured) -> bool:
    """Returns whether the machine was in one state, the same for both."""
    same = abs(math.log(a.probe_us / b.probe_us)) <= PROBE_LIMIT
    return same and not a.is_restless and not b.is_restless


def estimates_of(found: list[dict[str, Any]], kind: str) -> dict[str, list[Measured]]:
    """Returns each row's figures over all benches that have one."""
    estimates: dict[str, list[Measured]] = {}
    for document in found:
        for row in document["rows"]:
            name = f"{row['subject']} on {row['backend']} at batch {row['batch']}"
            if kind == "p50":
                values = [(name, row["p50_ms"])]
            else:  # named by its baseline: which form of the ensemble is best can change from bench to bench
                values = [(f"{name} against {a['baseline']}", a["speedup"]) for a in row["against"]]
            for label, value in values:
                if value is not None:
                    restless = any(flag.startswith("restless") for flag in row["flags"])
                    measured = Measured(SavedEstimate.model_validate(value), row["probe_us"], restless)
                    estimates.setdefault(label, []).append(measured)
    return estimates


def disagrees(a: SavedEstimate, b: SavedEstimate, bounds: float) -> bool:
    """Returns whether the 95 % interval of the ratio excludes 1; a missing bound excludes nothing."""
    ratio = ratio_interval(a, b, z=Z, of_bounds=bounds)
    return (ratio.low is not None and ratio.low > 1) or (ratio.high is not None and ratio.high < 1)


def show(result: dict[str, Any]) -> None:
    print(f"{result['benches']} benches, {result['machine']}\n")
    for kind, unit in (("p50", "ms"), ("speed-up", "x")):
        rows = [row for row in result["rows"] if row["kind"] == kind]
        cells = [
            [
                row["row"],
                f"{row['median']:.4g}",
                *("-" if row[name] is None else f"{row[name]:.2%}" for name in ("sd", "within")),
                f"{row['disagree'] / row['pairs']:.1%}",
                f"{row['quiet_disagree']} of {row['quiet_pairs']}",
            ]
            for row in rows
        ]
        headings = [kind, unit, "sd, all benches", "sd by interval", "pairs apart", "quiet pairs apart"]
        print(table(headings, cells))
        total = sum(row["pairs"] for row in rows)
        quiet = sum(row["quiet_pairs"] for row in rows)
        print(f"\n{kind}: {share(sum(row['disagree'] for row in rows), total)} pairs apart")
        print(f"{kind}, quiet: {share(sum(row['quiet_disagree'] for row in rows), quiet)} pairs apart; bound 5 %\n")
    reported = result["compare_reported"]
    print(
        f"--compare with --fail-on {result['fail_on']:.0%} reported "
        f"{share(reported['count'], reported['pairs'])} pairs of unchanged benches"
    )
    flagged = sum(bool(flags) for flags in result["flags"])
    if flagged:
        print(f"\n{flagged} of {result['benches']} benches began on a busy machine: these figures do not count")


if __name__ == "__main__":
    main()
