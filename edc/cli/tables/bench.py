"""The terminal's output of a bench: the verdict, a table (two on a narrow terminal), and the flags."""

from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from edc.benchmark.judge.rows import Row
from edc.benchmark.judge.statistics import Estimate
from edc.benchmark.result import BenchResult
from edc.console import TextRow, count, fitting_table, fixed, has_room, left_out_words

__all__ = ["print_bench"]

QUALITY_GIVES_WAY = ("MB", "params", "ECE", "NLL", "DEE", "F1 %", "bal %")
"""In this order, where the terminal is too narrow for all."""
NAMES = ("network", "backend")
SIGNS = {"not worse": "ok", "worse": "worse", "undecided": "?"}
Column = tuple[str, Callable[[list[Row]], str]]
"""A heading, and the cell for the rows (one per batch size) of one subject on one backend."""


def print_bench(result: BenchResult, *, console: Console) -> None:
    """Prints the verdict, one row per subject and backend, then baselines, flags, and rows that did not run."""
    environment = result.environment
    batches = list(dict.fromkeys(row.batch for row in result.rows))
    threads = f"{environment.threads} thread{'s' * (environment.threads > 1)}"
    title = f"{result.artifact}: {threads} on {environment.cpu}"
    quality, speed = _quality_columns(result), [_speed_columns(batch) for batch in batches]
    whole = [column for columns in speed for column in columns]
    for columns in _as_wide_as_fits([[[*quality, *whole]], [quality, whole], [quality, *speed]], result, console):
        table, left_out = _table(title, columns, result, console)
        table.caption = left_out_words(left_out)
        console.print(table)
    console.print(
        f"quality on {result.num_test_images:,} test images; cNLL: calibrated on validation images\n"
        "ms: median for a whole batch; x: times as fast as the ensemble's best form, same backend and precision, "
        "median and 95 % interval over rounds\n"
        "vs ens.: points of accuracy against that ensemble; ok: not worse, by more than the margin (0.5 points); "
        "?: not decided",
        highlight=False,
    )
    if result.majority is not None:
        name, share = result.majority
        console.print(f"bal: balanced accuracy; always `{name}`: acc {100 * share:.2f} %", highlight=False)
    if teacher := result.teachers.words_where(drawn=result.quick):
        console.print(f"one teacher: {teacher}", highlight=False)
    for line in dict.fromkeys(
        f"{_name(row)}: {result.few_classes[row.key]}" for row in result.rows if row.key in result.few_classes
    ):
        console.print(line, style="bold", highlight=False)
    _print_baselines(result, console)
    _print_servers(result, console)
    for row in result.rows:
        if row.reason_not_run:
            console.print(f"{row.key} did not run: {row.reason_not_run}", highlight=False)
    for kind, num_rows in Counter(flag.split(":")[0] for row in result.rows for flag in row.flags).items():
        console.print(f"{num_rows} of {len(result.rows)} rows flagged, {kind}; bench.json says which", highlight=False)
    for flag in environment.flags:
        console.print(flag, highlight=False)
    if result.quick:
        console.print("quick: short timings, a coarse sweep; leave --quick out for figures to quote", highlight=False)
    for sentence in result.verdict.sentences if result.verdict else ():
        console.print(sentence, style="bold", highlight=False)


def _print_servers(result: BenchResult, console: Console) -> None:
    for server in result.server:
        answer = _capacity(server.highest_rate_per_second, server.lowest_failing_rate_per_second)
        console.print(f"{server.key} as a server: {answer} with p99 under {server.bound_ms:.3g} ms", highlight=False)


def _capacity(highest: float | None, failing: float | None) -> str:
    if highest is None:
        return "not known (too few requests for a p99)" if failing is None else f"under {failing:,.0f} requests/s"
    return f"{highest:,.0f} requests/s" + ("" if failing is None else f" (under {failing:,.0f})")


def _print_baselines(result: BenchResult, console: Console) -> None:
    """Prints the baseline of each backend's and precision's ratios, and how fast it is."""
    by_key = {(row.key, row.batch): row for row in result.rows}
    said: dict[str, dict[int, str]] = {}
    for row in result.rows:
        for against in row.against:
            baseline = by_key.get((against.baseline, row.batch))
            if against.basis == "ensemble" and baseline is not None:
                said.setdefault(against.baseline, {})[row.batch] = f"{_ms(baseline.p50_ms)} ms @{row.batch}"
    for key, by_batch in said.items():
        console.print(f"x is against: {key}, {', '.join(by_batch.values())}", highlight=False)
    student = next((row for row in result.rows if result.verdict and row.key == result.verdict.row), None)
    in_torch = next((a for a in student.against if a.basis == "ensemble in torch"), None) if student else None
    if student is not None and in_torch is not None and in_torch.speedup is not None:
        ratio = f"{_ratio(in_torch.speedup)} times as fast as {in_torch.baseline}"
        console.print(f"{student.key} @{student.batch}: {ratio}", highlight=False)


def _as_wide_as_fits(ways: Sequence[list[list[Column]]], result: BenchResult, console: Console) -> list[list[Column]]:
    """Returns the first way to divide the columns into tables that all have room, else the last."""
    for way in ways[:-1]:
        tables = [(_text_rows(columns, result), [heading for heading, _ in columns]) for columns in way]
        if all(has_room(rows, headings, console=console, names=NAMES) for rows, headings in tables):
            return way
    return ways[-1]


def _table(title: str, columns: list[Column], result: BenchResult, console: Console) -> tuple[Table, list[str]]:
    headings = [heading for heading, _ in columns]
    rows = _text_rows(columns, result)
    return fitting_table(title, rows, headings, gives_way=QUALITY_GIVES_WAY, console=console, names=NAMES)


def _text_rows(columns: list[Column], result: BenchResult) -> list[TextRow]:
    """Returns one row per subject and backend."""
    by_key: dict[str, list[Row]] = {}
    for row in result.rows:
        by_key.setdefault(row.key, []).append(row)
    found = []
    for rows in by_key.values():
        row = rows[0]
        style = "bold" if row.key in result.students else None
        found.append(TextRow(_name(row), {heading: cell(rows) for heading, cell in columns}, style, row.backend))
    return found


def _name(row: Row) -> str:
    """Returns the name of a row's subject, with that of its artifact if it is another one."""
    return f"{row.artifact}: {row.subject.label}" if row.artifact else row.subject.label


def _quality_columns(result: BenchResult) -> list[Column]:
    def raw(rows: list[Row], name: str, digits: int, scale: float = 1) -> str:
        quality = rows[0].quality
        return "" if quality is None else fixed(scale * getattr(quality.raw, name), digits)

    def calibrated_nll(rows: list[Row]) -> str:
        quality = rows[0].quality
        return "" if quality is None or quality.calibrated is None else fixed(quality.calibrated.nll, 3)

    def parameters(rows: list[Row]) -> str:
        number = result.parameters.get(rows[0].key)
        return "" if number is None else count(number)

    def megabytes(rows: list[Row]) -> str:
        return "" if rows[0].file_bytes is None else f"{rows[0].file_bytes / 1e6:.2f}"

    return [
        ("acc %", lambda rows: raw(rows, "acc", 2, 100)),
        ("bal %", lambda rows: raw(rows, "balanced_acc", 2, 100)),
        ("F1 %", lambda rows: raw(rows, "macro_f1", 2, 100)),
        ("vs ens.", lambda rows: _against_ensemble(rows[0])),
        ("NLL", lambda rows: raw(rows, "nll", 3)),
        ("ECE", lambda rows: raw(rows, "ece", 3)),
        ("cNLL", calibrated_nll),
        ("DEE", lambda rows: _dee(rows[0], result)),
        ("params", parameters),
        ("MB", megabytes),
    ]


def _speed_columns(batch: int) -> list[Column]:
    def row_at(rows: list[Row]) -> Row | None:
        return next((row for row in rows if row.batch == batch), None)

    def median(rows: list[Row]) -> str:
        row = row_at(rows)
        return "" if row is None else _ms(row.p50_ms)

    def ratio(rows: list[Row]) -> str:
        row = row_at(rows)
        against = () if row is None else row.against
        return next((_ratio(a.speedup) for a in against if a.basis == "ensemble"), "")

    return [(f"ms @{batch}", median), (f"x @{batch}", ratio)]


def _against_ensemble(row: Row) -> str:
    """Returns the difference in points and what it says: "+0.20 ok"."""
    for against in row.against:
        if against.basis == "ensemble" and against.accuracy is not None:
            value = 100 * against.accuracy.difference.value
            return f"{value:+.2f} {SIGNS[against.accuracy.verdict]}"
    return ""


def _dee(row: Row, result: BenchResult) -> str:
    if row.key not in result.dee:
        return ""
    value = result.dee[row.key]
    if value is None:
        return f">{result.ensemble_size}"
    return "<1" if value == 0 else f"{value:.2f}"


def _ms(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f}" if estimate.value < 10 else f"{estimate.value:.1f}"


def _ratio(ratio: Estimate | None) -> str:
    if ratio is None:
        return ""
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f}-{ratio.high:.2f})"
    return f"{ratio.value:.2f}{interval}"
