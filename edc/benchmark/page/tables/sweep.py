"""The tables of further measurements: throughput, load, robustness."""

from collections.abc import Callable, Mapping
from typing import Any

from edc.benchmark.page.document import Bench
from edc.benchmark.page.numbers import MISSING, fixed, interval, milliseconds, tick
from edc.benchmark.page.tables.table import Cell, Line, Table

__all__ = ["capacity", "robustness_table", "server_table", "throughput_table"]


def _keyed(bench: Bench, entry: Mapping[str, Any], *cells: Cell) -> Line:
    row = bench.by_key.get(entry["key"])
    return Line((entry["key"], *cells), bench.series(entry["key"]), row is not None and bench.is_student(row))


def throughput_table(bench: Bench) -> Table:
    """Returns images per second by batch size."""
    entries = bench.document.throughput
    batches = sorted({point["batch"] for entry in entries for point in entry.get("points") or []})
    lines = []
    for entry in entries:
        at = {point["batch"]: point["images_per_second"] for point in entry.get("points") or []}
        best = entry.get("best_batch")
        end = "yes" if entry.get("saturated") else "no"
        cells = [fixed(at.get(batch), 0) for batch in batches]
        lines.append(_keyed(bench, entry, *cells, MISSING if best is None else f"{best:,}", end))
    columns = ("network", *(f"@{batch:,}" for batch in batches), "best batch", "saturated")
    note = "Images per second by batch size; saturated: the next batch size gained less than 5 %."
    return Table("throughput", "Throughput", columns, (("", tuple(lines)),), note=note)


def server_table(bench: Bench) -> Table:
    """Returns latency by offered rate."""
    groups = []
    for entry in bench.document.server:
        bound = "" if entry.get("bound_ms") is None else f" within {tick(entry['bound_ms'])} ms"
        lines = tuple(
            Line(
                (
                    fixed(point["offered_per_second"], 0),
                    fixed(point.get("achieved_per_second"), 0),
                    f"{point['num_requests']:,}",
                    *(milliseconds(point.get(name)) for name in ("p50_ms", "p90_ms")),
                    milliseconds(_with_bounds(point, "p99")),
                )
            )
            for point in entry.get("points") or []
        )
        groups.append((f"{entry['key']}: p99{bound}: {capacity(entry)}", lines))
    columns = ("offered/s", "achieved/s", "requests", "p50 ms", "p90 ms", "p99 ms")
    note = "Requests of one image arrive at random times at the offered rate; latency includes waiting."
    return Table("server", "Under load", columns, tuple(groups), 0, note)


def capacity(entry: Mapping[str, Any]) -> str:
    """Returns the two tried rates between which p99 leaves its bound."""
    holds, fails = entry.get("highest_rate_per_second"), entry.get("lowest_failing_rate_per_second")
    knows_failing = "lowest_failing_rate_per_second" in entry  # an older bench does not say it
    if holds is None and fails is None:
        return "not decided at the rates tried" if knows_failing else "at no rate tried"
    if holds is None:
        return f"under {fixed(fails, 0)} requests/s"
    if fails is None:
        return f"up to {fixed(holds, 0)} requests/s" + (" and more" if knows_failing else "")
    return f"up to {fixed(holds, 0)} requests/s, and no longer at {fixed(fails, 0)}"


def _with_bounds(point: Mapping[str, Any], name: str) -> dict[str, float | None] | None:
    value = point.get(f"{name}_ms")
    if value is None:
        return None
    return {"value": value, "low": point.get(f"{name}_low_ms"), "high": point.get(f"{name}_high_ms")}


BESIDE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "agreement": ("agree %", lambda share: fixed(share, 1, scale=100)),
    "acc_difference": ("vs. ensemble", lambda estimate: interval(estimate, 2, scale=100, sign=True)),
    "num_images": ("images", lambda number: fixed(number, 0)),
}


def robustness_table(bench: Bench) -> Table:
    """Returns quality by corruption and severity, and its comparison with the ensemble on the same images."""
    groups = []
    records = [record for details in bench.details.values() for record in details.robustness or ()]
    beside = {name: column for name, column in BESIDE.items() if any(each.get(name) is not None for each in records)}
    for key, details in bench.details.items():
        lines = [
            Line(
                (
                    record["corruption"].replace("_", " "),
                    str(record["severity"]),
                    fixed(record["acc"], 2, scale=100),
                    *(
                        fixed(record.get(name), 3)
                        for name in ("nll", "ece", "brier", "calibrated_nll", "calibrated_ece")
                    ),
                    *(write(record.get(name)) for name, (_, write) in beside.items()),
                )
            )
            for record in details.robustness or ()
        ]
        groups.append((key, tuple(lines)))
    measures = ("acc %", "NLL", "ECE", "Brier", "cNLL", "cECE")
    columns = ("corruption", "severity", *measures, *(heading for heading, _ in beside.values()))
    note = "cNLL and cECE: with the temperature fitted on clean validation images."
    if beside:
        note += " agree: same class as the ensemble; vs. ensemble: points of accuracy, with a 95 % interval; both on "
        note += "the same corrupted images."
    return Table("corruptions", "Robustness", columns, tuple(g for g in groups if g[1]), note=note, is_open=False)
