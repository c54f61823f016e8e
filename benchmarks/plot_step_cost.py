"""The picture of step_cost.py's lines: time and peak memory of a step against members and against image size.

python benchmarks/plot_step_cost.py step_cost.jsonl results/step_cost.svg
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "edc"  # the same lines give the same file
from matplotlib import pyplot as plt  # noqa: E402 - after the choice of what draws

STYLES = {"official": ("#000000", "s", "-"), "joint": ("#0072B2", "o", "--"), "sequential": ("#D55E00", "^", "-.")}


def main(source: Path, target: Path) -> None:
    results = [json.loads(line) for line in source.read_text().splitlines()]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for column, (name, label) in enumerate((("members", "members M"), ("size", "pixels of a side"))):
        chosen = [result for result in results if varies(results, result, name)]
        for form, (color, marker, line) in STYLES.items():
            points = sorted(
                (r["configuration"][name], statistics.median(r["seconds"][form]), (r["peak_bytes"][form] or 0) / 1e6)
                for r in chosen
                if form in r["seconds"]
            )
            for row in (0, 1):
                axes[row][column].plot(
                    [p[0] for p in points],
                    [p[1 + row] for p in points],
                    color=color,
                    marker=marker,
                    ls=line,
                    label=form,
                )
        for row, quantity in enumerate(("seconds a step", "peak memory, MB")):
            axes[row][column].set(xlabel=label, ylabel=quantity, ylim=(0, None), xlim=(0, None))
            axes[row][column].grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


def varies(results: list[dict[str, Any]], result: dict[str, Any], name: str) -> bool:
    """Returns whether `result` is one of the configurations that differ in nothing but `name`."""

    def rest(other: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in other["configuration"].items() if key not in (name, "rounds", "forms")}

    return len({other["configuration"][name] for other in results if rest(other) == rest(result)}) >= 3


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
