"""What choosing an epoch by one measure or another costs, from the figures of all epochs of a training.

launch   python benchmarks/epoch_choice.py results/student_average/epochs/*.json
settles  by accuracy or by calibrated NLL, on validation images; averages over how many steps. The test images choose
         nothing: each row is what a rule that knows the validation images alone would have taken.
"""

import json
import sys
from pathlib import Path
from typing import Any

Epoch = dict[str, Any]


def by_accuracy(epochs: list[Epoch]) -> Epoch:
    """Returns the epoch of the best accuracy, the later one of equals, as edc did until it went by calibrated NLL."""
    return max(epochs, key=lambda epoch: (epoch["validation"]["acc"], epoch["epoch"]))


def by_calibrated_nll(epochs: list[Epoch]) -> Epoch:
    """Returns the epoch of the lowest calibrated NLL, the later one of equals."""
    return min(epochs, key=lambda epoch: (epoch["validation"]["calibrated_nll"], -epoch["epoch"]))


def last(epochs: list[Epoch]) -> Epoch:
    """Returns the last epoch."""
    return max(epochs, key=lambda epoch: epoch["epoch"])


def main(paths: list[str]) -> None:
    """Prints a table in Markdown for each file."""
    for path in map(Path, paths):
        rows = json.loads(path.read_text(encoding="utf-8"))
        print(f"\n{path.stem}\n")
        print("| average | chosen by | epoch | validation acc %, cNLL | test acc %, cNLL |\n|---|---|---|---|---|")
        for ema in dict.fromkeys(row["ema"] for row in rows):
            epochs = [row for row in rows if row["ema"] == ema]
            for name, rule in (("accuracy", by_accuracy), ("calibrated NLL", by_calibrated_nll), ("the last", last)):
                taken = rule(epochs)
                cells = [
                    f"{100 * taken[s]['acc']:.2f}, {taken[s]['calibrated_nll']:.3f}" for s in ("validation", "test")
                ]
                print(f"| {ema or 'none'} | {name} | {taken['epoch'] + 1} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
