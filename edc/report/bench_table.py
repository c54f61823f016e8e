"""The table that a bench ends in: one where there is room for it, else one of quality and one of speed."""

from collections import Counter
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from edc.bench.bench import BenchResult
from edc.bench.rows import Row
from edc.bench.specs import INT8
from edc.bench.statistics import Estimate
from edc.report.tables import count

__all__ = ["print_bench"]

ROOM_FOR_ONE_TABLE = 140
Column = tuple[str, Callable[[list[Row]], str]]
"""A heading, and the cell for the rows (one a batch size) of one subject on one backend."""


def print_bench(result: BenchResult, *, console: Console) -> None:
    """Prints a row a subject and backend, then what a reader must know: baselines, flags, rows that did not run."""
    environment = result.environment
    batches = list(dict.fromkeys(row.batch for row in result.rows))
    title = f"{result.artifact}: {environment.threads} threads on {environment.cpu}"
    quality, speed = _quality_columns(result), _speed_columns(batches)
    for columns in [quality + speed] if console.width >= ROOM_FOR_ONE_TABLE else [quality, speed]:
        _print_table(title, columns, result, console)
    console.print(
        f"quality on {result.num_test_images:,} test images; cNLL: after one temperature fitted on validation\n"
        "ms: median for a whole batch; x: times as fast as the ensemble's best form, same backend and precision, "
        "median and 95 % interval over rounds",
        highlight=False,
    )
    for row in result.rows:
        if row.reason_not_run:
            console.print(f"{row.subject} on {row.backend} did not run: {row.reason_not_run}", highlight=False)
    for kind, num_rows in Counter(flag.split(":")[0] for row in result.rows for flag in row.flags).items():
        console.print(f"{num_rows} of {len(result.rows)} rows flagged, {kind}; bench.json says which", highlight=False)
    for flag in environment.flags:
        console.print(flag, highlight=False)


def _print_table(title: str, columns: list[Column], result: BenchResult, console: Console) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("network", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    backend = result.rows[0].backend if result.rows else ""
    for subject, on in dict.fromkeys((row.subject, row.backend) for row in result.rows):
        rows = [row for row in result.rows if (row.subject, row.backend) == (subject, on)]
        if on != backend:
            backend = on
            table.add_section()
        style = "bold" if subject.removesuffix(INT8) == result.deploy else None
        table.add_row(subject, on, *(cell(rows) for _, cell in columns), style=style)
    console.print(table)


def _quality_columns(result: BenchResult) -> list[Column]:
    def raw(rows: list[Row], name: str, digits: int, scale: float = 1) -> str:
        quality = rows[0].quality
        return "" if quality is None else f"{scale * getattr(quality.raw, name):.{digits}f}"

    def calibrated_nll(rows: list[Row]) -> str:
        quality = rows[0].quality
        return "" if quality is None or quality.calibrated is None else f"{quality.calibrated.nll:.3f}"

    def parameters(rows: list[Row]) -> str:
        number = result.parameters.get(rows[0].subject)
        return "" if number is None else count(number)

    def megabytes(rows: list[Row]) -> str:
        return "" if rows[0].file_bytes is None else f"{rows[0].file_bytes / 1e6:.2f}"

    return [
        ("acc %", lambda rows: raw(rows, "acc", 2, 100)),
        ("NLL", lambda rows: raw(rows, "nll", 3)),
        ("ECE", lambda rows: raw(rows, "ece", 3)),
        ("cNLL", calibrated_nll),
        ("DEE", lambda rows: _dee(rows[0], result)),
        ("params", parameters),
        ("MB", megabytes),
    ]


def _speed_columns(batches: list[int]) -> list[Column]:
    columns: list[Column] = []
    for batch in batches:

        def row_at(rows: list[Row], batch: int = batch) -> Row | None:
            return next((row for row in rows if row.batch == batch), None)

        def median(rows: list[Row], at: Callable[[list[Row]], Row | None] = row_at) -> str:
            row = at(rows)
            return "" if row is None else _ms(row.p50_ms)

        def ratio(rows: list[Row], at: Callable[[list[Row]], Row | None] = row_at) -> str:
            row = at(rows)
            against = () if row is None else row.against
            return next((_ratio(a.speedup) for a in against if a.baseline.endswith(f"on {rows[0].backend}")), "")

        columns += [(f"ms @{batch}", median), (f"x @{batch}", ratio)]
    return columns


def _dee(row: Row, result: BenchResult) -> str:
    key = f"{row.subject} on {row.backend}"
    if key not in result.dee:
        return ""
    value = result.dee[key]
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
