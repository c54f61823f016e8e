"""The table of comparisons: every row against its ensemble, one teacher and its own fp32 file."""

from typing import Any

from markupsafe import Markup

from edc.benchmark.page.document import Bench
from edc.benchmark.page.numbers import fixed, interval, p_value
from edc.benchmark.page.tables.table import Cell, Line, Table, line_of, with_quiet_interval
from edc.benchmark.page.words import decision
from edc.benchmark.saved.document import SavedAgainst

__all__ = ["comparison_table"]

RATIOS = {"throughput_ratio": "by images/s", "flops_ratio": "by FLOPs"}
"""Columns beside the speed-up, shown if any comparison has the figure."""


def comparison_table(bench: Bench) -> Table:
    """Returns one line per comparison, under its baseline."""
    entries = [(row, at, against) for row in bench.rows for at, against in enumerate(row.against)]
    ratios = {name: head for name, head in RATIOS.items() if any(getattr(a, name) is not None for _, _, a in entries)}
    by_baseline: dict[str, list[Line]] = {}
    for row, at, against in entries:
        accuracy = against.accuracy or {}
        paired = accuracy.get("paired") or {}
        line = line_of(
            bench,
            row,
            row.backend,
            f"{row.batch:,}",
            _speedup(against, identity=f"{bench.number(row)}-{at}"),
            *(fixed(getattr(against, name), 2) for name in ratios),
            interval(accuracy.get("difference"), 2, scale=100, sign=True),
            decision(accuracy),
            *(fixed(paired.get(name), 0) for name in ("num_lost", "num_gained")),
            p_value(paired.get("p_value")),
            p_value(accuracy.get("p_corrected", paired.get("p_corrected"))),
        )
        by_baseline.setdefault(f"against {against.baseline}", []).append(line)
    accuracy_columns = ("accuracy, points", "verdict", "lost", "gained", "p", "p, Holm")
    columns = ("network", "backend", "batch", "times as fast", *ratios.values(), *accuracy_columns)
    groups = tuple((heading, tuple(lines)) for heading, lines in by_baseline.items())
    return Table("comparisons", "Comparisons", columns, groups, 2, _note(entries, is_with_ratios=bool(ratios)))


def _speedup(against: SavedAgainst, *, identity: str) -> Cell:
    """Returns the speed-up; one that is in doubt links to the reason."""
    text = interval(against.speedup, 2)
    if not against.doubts:
        return text
    return Markup('{} <a href="#doubt-{}" aria-label="in doubt">?</a>').format(with_quiet_interval(text), identity)


def _note(entries: list[tuple[Any, int, SavedAgainst]], *, is_with_ratios: bool) -> str:
    accuracies = [against.accuracy for _, _, against in entries if against.accuracy]
    margins = {accuracy["margin"] for accuracy in accuracies if accuracy.get("margin") is not None}
    margin = f" of {fixed(margins.pop(), 1, scale=100)} points" if len(margins) == 1 else ""
    is_against_fp32 = any(a.accuracy_baseline not in {None, a.baseline} for _, _, a in entries)
    parts = [
        "times as fast: ratio of medians round by round, 95 % interval over rounds.",
        "by images/s: from the same samples, outliers included; by FLOPs: the baseline's over the row's, the speed-up "
        "to expect if nothing else costs time."
        if is_with_ratios
        else "",
        "?: in doubt; follow it to the reason." if any(against.doubts for _, _, against in entries) else "",
        f"accuracy: 95 % interval over images; the verdict is about the margin{margin}.",
        "The accuracy of a baseline in 8 or 16 bits is that of its fp32 form." if is_against_fp32 else "",
        "lost, gained: images right in one and wrong in the other; p: McNemar, then corrected for all rows.",
    ]
    return " ".join(filter(None, parts))
