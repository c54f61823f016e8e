"""The picture of step_cost.py's lines: time and peak memory of a step against members and against image size.

pip install matplotlib
python benchmarks/plot_step_cost.py results/step_cost.jsonl results/step_cost.svg
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
    quantities = (("seconds", 1.0, "seconds a step"), ("peak_bytes", 1e6, "peak memory, MB"))
    for row, (quantity, unit, label) in enumerate(quantities):
        of_quantity = [result for result in results if quantity in result]
        for column, (name, name_label) in enumerate((("members", "members M"), ("size", "pixels of a side"))):
            chosen = [result for result in of_quantity if varies(of_quantity, result, name)]
            for form, (color, marker, line) in STYLES.items():
                points = sorted(
                    (result["configuration"][name], statistics.median(result[quantity][form]) / unit)
                    for result in chosen
                    if form in result[quantity]
                )
                x, y = zip(*points, strict=True) if points else ((), ())
                axes[row][column].plot(x, y, color=color, marker=marker, ls=line, label=form)
            axes[row][column].set(xlabel=name_label, ylabel=label, ylim=(0, None), xlim=(0, None))
            axes[row][column].grid(alpha=0.3)
    axes[0][0].legend(*axes[0][1].get_legend_handles_labels(), frameon=False)
    figure.savefig(target, metadata={"Date": None})


def varies(results: list[dict[str, Any]], result: dict[str, Any], name: str) -> bool:
    """Returns whether `result` is one of the configurations that differ in nothing but `name`."""

    def rest(other: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in other["configuration"].items() if key not in (name, "rounds", "forms")}

    return len({other["configuration"][name] for other in results if rest(other) == rest(result)}) >= 3


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
