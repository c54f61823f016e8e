"""The tables of the page: every figure of bench.json, in figures."""

from collections.abc import Callable, Iterable

from markupsafe import Markup

from edc.benchmark.page.charts.latency import rounds_line
from edc.benchmark.page.document import Bench
from edc.benchmark.page.numbers import MISSING, fixed, megabytes, milliseconds
from edc.benchmark.page.tables.by_class import class_tables_of
from edc.benchmark.page.tables.comparison import comparison_table
from edc.benchmark.page.tables.sweep import robustness_table, server_table, throughput_table
from edc.benchmark.page.tables.table import Line, Table, line_of
from edc.benchmark.saved.document import SavedRow
from edc.console import count

__all__ = ["tables"]


def tables(bench: Bench) -> list[Table]:
    """Returns the tables that have a line, in the order of the page."""
    first = (_quality, _speed, comparison_table)
    then = (_what_ran, _parts, throughput_table, server_table, robustness_table)
    made = [*(make(bench) for make in first), *class_tables_of(bench), *(make(bench) for make in then)]
    return [table for table in made if any(lines for _, lines in table.groups)]


def _grouped(
    bench: Bench, rows: Iterable[SavedRow], line: Callable[[SavedRow], Line | None]
) -> tuple[tuple[str, tuple[Line, ...]], ...]:
    """Returns the lines by backend, in the order of the document."""
    rows = list(rows)
    groups = []
    for backend in bench.backends:
        lines = [made for row in rows if row.backend == backend and (made := line(row)) is not None]
        if lines:
            groups.append((backend, tuple(lines)))
    return tuple(groups)


BY_CLASS = {"balanced_acc": "bal %", "macro_f1": "F1 %"}


def _quality(bench: Bench) -> Table:
    known = {name for row in bench.rows if row.quality for name, score in row.quality.raw if score is not None}
    of_classes = {name: heading for name, heading in BY_CLASS.items() if name in known}

    def line(row: SavedRow) -> Line | None:
        quality = row.quality
        if quality is None:
            return None
        raw, calibrated = quality.raw, quality.calibrated
        parameters = row.parameters
        return line_of(
            bench,
            row,
            fixed(raw.acc, 2, scale=100),
            *(fixed(getattr(raw, name), 2, scale=100) for name in of_classes),
            *(fixed(getattr(raw, name), 3) for name in ("nll", "ece", "brier")),
            *(fixed(getattr(calibrated, name, None), 3) for name in ("nll", "ece", "brier")),
            fixed(quality.calibration_temperature, 3),
            fixed(quality.agreement, 1, scale=100),
            _dee(row),
            MISSING if parameters is None else count(parameters),
            megabytes(row.file_bytes),
        )

    columns = (
        "network",
        "acc %",
        *of_classes.values(),
        "NLL",
        "ECE",
        "Brier",
        "cNLL",
        "cECE",
        "cBrier",
        "T",
        "agree %",
        "DEE",
        "params",
        "MB",
    )
    note = (
        "c: after one temperature T, fitted for this row on validation images. An ensemble's rows include the one that "
        "calibrates its members before their mean. agree: same class as the ensemble. "
        "DEE: how many teachers an ensemble needs for the same cNLL; >: more than the ensemble has."
    )
    majority = bench.document.majority
    if majority is not None:
        note += " bal: balanced accuracy, the mean recall over classes; F1: its mean over classes. Always saying "
        note += f"{majority.name} is right on {fixed(majority.share, 2, scale=100)} %."
    number = bench.document.num_test_images
    title = f"Quality on {number:,} test images" if number else "Quality"
    return Table("quality", title, columns, _grouped(bench, bench.by_key.values(), line), note=note)


def _dee(row: SavedRow) -> str:
    """Returns the deep ensemble equivalent; 0 says worse than one teacher, `dee_at_least` better than all of them."""
    value, num_teachers = row.dee, row.dee_at_least
    if value is None:
        return MISSING if num_teachers is None else f">{num_teachers:,}"
    return "<1" if value == 0 else fixed(value, 2)


def _speed(bench: Bench) -> Table:
    def line(row: SavedRow) -> Line | None:
        number = bench.number(row)
        flags = row.flags
        spark = rounds_line(row.round_medians_ms)
        if row.reason_not_run and not row.num_samples:
            cells = (f"{row.batch:,}", Markup('<a href="#flags">did not run</a>'), *[MISSING] * 7)
            return line_of(bench, row, *cells, identity=f"row-{number}")
        shown = Markup('<a href="#flag-{}">{}</a>').format(number, len(flags)) if flags else ""
        return line_of(
            bench,
            row,
            f"{row.batch:,}",
            *(milliseconds(getattr(row, name)) for name in ("p50_ms", "p90_ms", "p99_ms")),
            fixed(row.images_per_second, 0),
            spark.markup() if spark else MISSING,
            f"{row.num_samples:,}",
            megabytes(row.peak_memory_bytes),
            shown,
            identity=f"row-{number}",
        )

    columns = ("network", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "rounds", "samples", "peak MB", "flags")
    note = (
        "Times are per batch. In parentheses: 99 % intervals between order statistics, widened because samples of one "
        "round resemble each other. rounds: the median of each, from 0.8 to 1.25 times the middle one. peak: memory "
        "beyond that of the process before loading."
    )
    return Table("speed", "Speed", columns, _grouped(bench, bench.rows, line), note=note)


def _what_ran(bench: Bench) -> Table:
    def line(row: SavedRow) -> Line | None:
        ran = row.what_ran
        if ran is None:
            return None
        notes = ", ".join(ran.get("notes") or ())
        times = (milliseconds(getattr(row, name)) for name in ("load_ms", "first_inference_ms"))
        cells = (ran["provider"], ran["precision"], ran["version"], notes, str(ran["threads"]), *times)
        return line_of(bench, row, *cells)

    columns = ("network", "provider", "precision", "version", "notes", "threads", "load ms", "first ms")
    note = "As each backend reports after loading, not as requested. first: the first inference after loading."
    return Table("what-ran", "What ran", columns, _grouped(bench, bench.by_key.values(), line), 5, note)


PARTS = ("copy_in", "compute", "copy_out", "enqueue")


def _parts(bench: Bench) -> Table:
    def line(row: SavedRow) -> Line | None:
        parts = row.parts_ms
        if not parts:
            return None
        return line_of(bench, row, f"{row.batch:,}", *(milliseconds(parts.get(part)) for part in PARTS))

    columns = ("network", "batch", "copy in ms", "compute ms", "copy out ms", "enqueue ms")
    return Table("parts", "Where a GPU's time goes", columns, _grouped(bench, bench.rows, line))
