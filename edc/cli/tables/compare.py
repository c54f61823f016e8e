"""The changes since a saved bench, for people: one row per figure, then the rows that got worse, by name."""

from rich.console import Console

from edc.benchmark.judge.statistics import Estimate
from edc.benchmark.regression.changes import Change, Comparison
from edc.console import TextRow, fitting_table, left_out_words

__all__ = ["print_comparison"]

COLUMNS = ("figure", "before", "now", "change", "interval", "rest", "rest's interval", "verdict")
GIVES_WAY = ("rest's interval", "interval", "rest", "before", "now", "figure")
"""In this order, where the terminal is too narrow for all; rows that got worse are named in full below."""
STYLES = {"worse": "bold red", "better": "green", "undecided": "yellow"}


def print_comparison(comparison: Comparison, *, console: Console) -> None:
    """Prints every change of time, other figures only if they changed, then the warnings and the verdict."""
    rows = [
        TextRow(
            change.name, dict(zip(COLUMNS, (*_cells(change), change.verdict), strict=True)), STYLES.get(change.verdict)
        )
        for change in comparison.changes
        if change.figure == "p50_ms" or change.verdict != "same"
    ]
    title = "against the saved bench"
    table, left_out = fitting_table(
        title, rows, COLUMNS, gives_way=GIVES_WAY, console=console, names=("row",), words=("verdict",)
    )
    table.caption = left_out_words(left_out)
    console.print(table)
    lines = [
        f"intervals: {comparison.confidence:.0%} for all times together; worse: over {comparison.fail_on:.1%} and "
        "significant, by itself or against the rows of its batch size (rest)"
    ]
    if comparison.common_factor is not None:
        treatment = "divided out" if comparison.relative else "not divided out"
        lines.append(f"all rows together: {comparison.common_factor - 1:+.1%} (median, {treatment})")
    lines += comparison.warnings
    lines += [f"{change.name}: {change.reason}" for change in comparison.changes if change.figure == "runs"]
    lines += [f"got worse: {_sentence(change)}" for change in comparison.worse] or [_nothing_worse(comparison)]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _nothing_worse(comparison: Comparison) -> str:
    """Returns that nothing got worse, and which rows that is not known of."""
    unknown = {
        word: list(dict.fromkeys(change.name for change in comparison.changes if change.verdict == word))
        for word in ("undecided", "missing")
    }
    caveats = [f"{len(names)} {word} ({', '.join(names)})" for word, names in unknown.items() if names]
    if not caveats:
        return "nothing got worse"
    return f"nothing is shown to have got worse; {'; '.join(caveats)}"


def _cells(change: Change) -> tuple[str, ...]:
    if change.figure == "runs":
        return ("runs", *[""] * 6)
    if change.figure == "acc":
        heading, before, now = "acc %", _number(change.old, 2, 100), _number(change.new, 2, 100)
    elif change.figure == "nll":
        heading, before, now = "NLL", _number(change.old, 4), _number(change.new, 4)
    else:
        heading, before, now = "ms", _number(change.old, 4), _number(change.new, 4)
    return (heading, before, now, *_with_interval(change, change.change), *_with_interval(change, change.against_rest))


def _with_interval(change: Change, estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return ("", "")
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f"{_share(change, estimate.low)} to {_share(change, estimate.high)}"
    return (_share(change, estimate.value), interval)


def _share(change: Change, value: float) -> str:
    """Returns a ratio as a change in per cent; a difference of accuracies is in points already."""
    return f"{100 * value:+.2f}" if change.figure == "acc" else f"{value - 1:+.1%}"


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _sentence(change: Change) -> str:
    if change.figure == "runs":
        return f"{change.name}: {change.reason}"
    heading, before, now, share, interval, rest, rest_interval = _cells(change)
    of_rest = f"; against the rest {rest} ({rest_interval})" if rest else ""
    return f"{change.name}: {heading} {before} -> {now}, {share}" + (f" ({interval})" if interval else "") + of_rest
