"""The table that a bench ends in."""

from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table

from edc.bench.bench import BenchResult
from edc.bench.rows import Row
from edc.bench.statistics import Estimate
from edc.report.tables import count

__all__ = ["print_bench"]

COLUMNS = ("acc %", "NLL", "ECE", "cNLL", "DEE", "params", "MB", "p50 ms", "p90 ms", "images/s", "times as fast")


def print_bench(result: BenchResult, *, console: Console) -> None:
    """Prints one table a batch size, then what a reader must know: baselines, flags, rows that did not run."""
    environment = result.environment
    for batch in dict.fromkeys(row.batch for row in result.rows):
        rows = [row for row in result.rows if row.batch == batch]
        title = f"{result.artifact}: batch {batch}, {environment.threads} threads, {environment.cpu}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("network", no_wrap=True)
        table.add_column("backend", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        backend = rows[0].backend
        for row in rows:
            if row.backend != backend:
                backend = row.backend
                table.add_section()
            table.add_row(
                row.subject, row.backend, *_cells(row, result), style="bold" if row.subject == result.deploy else None
            )
        console.print(table)
    console.print(
        f"quality on {result.num_test_images:,} test images; c: after one temperature fitted on validation\n"
        "times as fast: than the ensemble's best form on the same backend, median and 95 % interval over rounds",
        highlight=False,
    )
    for row in result.rows:
        if row.reason_not_run:
            console.print(f"{row.subject} on {row.backend} did not run: {row.reason_not_run}", highlight=False)
    for kind, num_rows in Counter(flag.split(":")[0] for row in result.rows for flag in row.flags).items():
        console.print(f"{num_rows} of {len(result.rows)} rows flagged, {kind}; bench.json says which", highlight=False)
    for flag in environment.flags:
        console.print(flag, highlight=False)


def _cells(row: Row, result: BenchResult) -> list[str]:
    quality = row.quality
    raw, calibrated = (quality.raw, quality.calibrated) if quality else (None, None)
    ratio = next((each.speedup for each in row.against if each.baseline.endswith(f"on {row.backend}")), None)
    parameters = result.parameters.get(row.subject)
    return [
        "" if raw is None else f"{100 * raw.acc:.2f}",
        "" if raw is None else f"{raw.nll:.3f}",
        "" if raw is None else f"{raw.ece:.3f}",
        "" if calibrated is None else f"{calibrated.nll:.3f}",
        _dee(row, result),
        "" if parameters is None else count(parameters),
        "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.2f}",
        _ms(row.p50_ms),
        _ms(row.p90_ms),
        "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        "" if ratio is None else _ratio(ratio),
    ]


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


def _ratio(ratio: Estimate) -> str:
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f}-{ratio.high:.2f})"
    return f"{ratio.value:.2f}{interval}"
