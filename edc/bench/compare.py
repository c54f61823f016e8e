"""One bench against a saved one: which rows got worse, by more than what two benches of the same thing differ by.

Rows of one bench take turns and are compared round by round. Two benches do not: between them the machine's clock, its
neighbours and the place of every array in memory have changed, and no interval of a single bench knows of that. So the
ratio of two medians gets an interval from three sources, as standard deviations of its logarithm: the intervals of both
medians; a term for what two benches differ by (`BETWEEN_BENCHES`, once for each); and, for a row whose median drifted
within a bench, half of that drift. The intervals hold for all rows together (Bonferroni), or one of twenty
unchanged rows would be reported each time.

A row is worse if its interval excludes 1 *and* the change is over `fail_on`. A change that all rows share (a slower
machine, or a slower edc) is judged like any other, because it cannot be told from a real one; it is said, and
`relative` divides it out for machines whose speed differs from day to day.
"""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy.stats import norm

from edc.bench.compatible import require_rows_in_common, warnings_of
from edc.bench.saved_bench import SavedBench, SavedEstimate, SavedRow, saved_bench
from edc.bench.statistics import MARGIN, Estimate
from edc.bench.timing import DRIFT_LIMIT
from edc.errors import RequestError

__all__ = ["BETWEEN_BENCHES", "Change", "ChangeVerdict", "Comparison", "compare", "parse_fail_on", "ratio_interval"]

ChangeVerdict = Literal["worse", "better", "same", "undecided", "missing", "new"]
Figure = Literal["p50_ms", "acc", "nll", "runs"]

BETWEEN_BENCHES = 0.015
"""Standard deviation of a row's median over benches of the same thing, as a share, beyond what its interval says.
On the cautious side: benchmarks/bench_repeat.py measures it, results/bench_checks.md has what it found."""
CONFIDENCE = 0.95
P50_CONFIDENCE = 0.99
"""That with which each bound of a saved median holds, see `statistics.quantile`."""
ACC_MARGIN = MARGIN
"""As in `statistics.compare_accuracy`."""
NLL_MARGIN = 0.01
"""In nats. A saved bench holds no spread of the NLL, so a difference is judged by this and `fail_on` alone."""
LEAST_ROWS = 3
"""From so many rows on, their median change says something about the machine."""


@dataclass(frozen=True)
class Change:
    """One figure of one row, in the saved bench and now.

    `change` is new / old for times and the NLL, new - old for accuracy (a share). `batch` is None for quality, which
    does not depend on it.
    """

    key: str
    batch: int | None
    figure: Figure
    verdict: ChangeVerdict
    old: float | None = None
    new: float | None = None
    change: Estimate | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.key if self.batch is None else f"{self.key} at batch {self.batch}"


@dataclass(frozen=True)
class Comparison:
    """Every row of either bench, and what to bear in mind. `common_factor` is the median of new / old over rows."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    common_factor: float | None
    fail_on: float
    relative: bool
    confidence: float = CONFIDENCE

    @property
    def worse(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.verdict == "worse")

    @property
    def exit_code(self) -> int:
        """1 if a row got worse: what a CI job ends with."""
        return 1 if self.worse else 0

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document |= {"changes": [asdict(change) for change in self.changes], "warnings": list(self.warnings)}
        return document | {"worse": [change.name for change in self.worse], "exit_code": self.exit_code}


def parse_fail_on(text: str) -> float:
    """Returns the share in `5%` or `0.05`; raises `RequestError` for anything else, 100 % and above included."""
    number = text.strip()
    is_percent = number.endswith("%")
    try:
        share = float(number.removesuffix("%")) / (100 if is_percent else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise RequestError(f"--fail-on: {text!r} is not a share below 1; write 5% or 0.05")
    return share


def compare(
    new: dict[str, Any],
    old: dict[str, Any],
    *,
    fail_on: float = 0.05,
    relative: bool = False,
    between_benches: float = BETWEEN_BENCHES,
) -> Comparison:
    """Returns what changed from `old` to `new`, two documents as `bench.json` holds them.

    A row that ran and does not run any more is worse. One that is only absent (other --backends or --batch) is
    "missing", and a row whose change is over `fail_on` but not certain is "undecided": neither fails.

    Args:
        fail_on: smallest share by which a time or the NLL must have grown to count.
        relative: divide the median change of all rows out of every row; it takes three rows.
        between_benches: see `BETWEEN_BENCHES`.

    Raises:
        RequestError: another processor, GPU, number of threads or task, or no row in common; or a document that is no
            bench.
    """
    after, before = saved_bench(new, name="this bench"), saved_bench(old, name="saved bench")
    warnings = warnings_of(after, before)
    rows_after, rows_before = _by_place(after), _by_place(before)
    require_rows_in_common(rows_after.keys(), before)
    common = [place for place in rows_before if place in rows_after]
    ratios = {
        place: now.value / then.value
        for place in common
        if (now := rows_after[place].p50_ms) is not None and (then := rows_before[place].p50_ms) is not None
    }
    factor = statistics.median(ratios.values()) if len(ratios) >= LEAST_ROWS else None
    if relative and factor is None:
        raise RequestError(f"--compare: judging relative to all rows takes {LEAST_ROWS} rows, there are {len(ratios)}")
    z = float(norm.ppf(1 - (1 - CONFIDENCE) / 2 / max(1, len(ratios))))
    changes: list[Change] = []
    for place in (*rows_before, *(place for place in rows_after if place not in rows_before)):
        change = _presence(rows_after.get(place), rows_before.get(place))
        if change is None:
            divisor = factor if relative and factor is not None else 1.0
            change = _speed(
                rows_after[place], rows_before[place], z=z, fail_on=fail_on, divisor=divisor, between=between_benches
            )
        if change is not None:
            changes.append(change)
    if after.num_test_images == before.num_test_images:
        changes += _quality_changes(after, before, fail_on=fail_on)
    return Comparison(tuple(changes), warnings, factor, fail_on, relative)


def _by_place(bench: SavedBench) -> dict[tuple[str, int], SavedRow]:
    return {(row.key, row.batch): row for row in bench.rows}


def _presence(now: SavedRow | None, then: SavedRow | None) -> Change | None:
    """Returns what is to be said of a row that did not run both times, or None."""
    if now is None and then is not None:
        return Change(then.key, then.batch, "runs", "missing", reason="not among this bench's rows")
    if now is not None and then is None:
        return Change(now.key, now.batch, "runs", "new", reason="not among the saved bench's rows")
    if now is None or then is None or (now.reason_not_run is None and then.reason_not_run is None):
        return None
    if then.reason_not_run is None:
        return Change(now.key, now.batch, "runs", "worse", reason=f"ran before, and now: {now.reason_not_run}")
    if now.reason_not_run is None:
        return Change(now.key, now.batch, "runs", "better", reason=f"runs now, and before: {then.reason_not_run}")
    return Change(now.key, now.batch, "runs", "same", reason=f"does not run: {now.reason_not_run}")


def _speed(now: SavedRow, then: SavedRow, *, z: float, fail_on: float, divisor: float, between: float) -> Change | None:
    """Returns how the median changed; None if neither bench has one."""
    new, old = now.p50_ms, then.p50_ms
    if new is None and old is None:
        return None
    if new is None or old is None:
        reason = f"too few samples for a median in {'this' if new is None else 'the saved'} bench"
        return Change(now.key, now.batch, "p50_ms", "undecided", reason=reason)
    drifts = [drift for row in (now, then) if (drift := _drift(row)) > DRIFT_LIMIT]
    spread = math.sqrt(2 * between**2 + sum((drift / 2) ** 2 for drift in drifts))
    change = ratio_interval(new, old, z=z, spread=spread, divisor=divisor)
    ratio, low, high = change.value, change.low, change.high
    verdict: ChangeVerdict = "same"
    reason = f"drifted by {max(drifts):.0%} within a bench" if drifts else ""
    if ratio > 1 + fail_on:
        verdict = "worse" if low is not None and low > 1 else "undecided"
    elif ratio < 1 / (1 + fail_on):
        verdict = "better" if high is not None and high < 1 else "undecided"
    return Change(now.key, now.batch, "p50_ms", verdict, old.value, new.value, change, reason)


def ratio_interval(
    new: SavedEstimate,
    old: SavedEstimate,
    *,
    z: float,
    spread: float = 0.0,
    divisor: float = 1.0,
    of_bounds: float = P50_CONFIDENCE,
) -> Estimate:
    """Returns new / old / divisor of two estimates that know nothing of each other.

    Args:
        z: the quantile of the normal distribution that the interval is to have.
        spread: further standard deviation of the ratio's logarithm.
        of_bounds: the confidence with which each single bound of the estimates holds.
    """
    ratio = new.value / old.value / divisor
    of_bound = float(norm.ppf(of_bounds))
    parts = [
        None if part is None else math.log(part) / of_bound
        for part in (
            new.low and new.value / new.low,
            old.high and old.high / old.value,
            new.high and new.high / new.value,
            old.low and old.value / old.low,
        )
    ]
    new_down, old_up, new_up, old_down = parts
    low = high = None
    if new_down is not None and old_up is not None:
        low = ratio * math.exp(-z * math.hypot(new_down, old_up, spread))
    if new_up is not None and old_down is not None:
        high = ratio * math.exp(z * math.hypot(new_up, old_down, spread))
    return Estimate(ratio, low, high)


def _drift(row: SavedRow) -> float:
    """Returns by how much the median changed from the first to the last third of the rounds, up or down."""
    medians = [value for _, value in sorted(row.round_medians_ms.items()) if value > 0]
    third = len(medians) // 3
    if not third:
        return 0.0
    return abs(math.log(statistics.median(medians[-third:]) / statistics.median(medians[:third])))


def _quality_changes(after: SavedBench, before: SavedBench, *, fail_on: float) -> list[Change]:
    """Returns how accuracy and NLL of each subject changed, on as many test images; once, whatever the batches."""
    then_by_key = {row.key: row.quality for row in before.rows if row.quality is not None}
    now_by_key = {row.key: row.quality for row in after.rows if row.quality is not None}
    changes = []
    for key, now in now_by_key.items():
        then = then_by_key.get(key)
        if then is None:
            continue
        changes.append(_accuracy(key, now.raw.acc, then.raw.acc, after.num_test_images))
        pair = (now.calibrated, then.calibrated) if now.calibrated and then.calibrated else (now.raw, then.raw)
        changes.append(_nll(key, pair[0].nll, pair[1].nll, fail_on=fail_on))
    return changes


def _accuracy(key: str, new: float, old: float, num_images: int) -> Change:
    """Returns the difference with an interval for unpaired proportions: which images were right is not saved.

    Source: Agresti and Caffo 2000: one success and one failure are added to each side.
    """
    shares = [(share * num_images + 1) / (num_images + 2) for share in (new, old)]
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(sum(p * (1 - p) for p in shares) / (num_images + 2))
    middle, difference = shares[0] - shares[1], new - old
    low, high = middle - half, middle + half
    verdict: ChangeVerdict = "same"
    if difference < -ACC_MARGIN:
        verdict = "worse" if high < 0 else "undecided"
    elif difference > ACC_MARGIN:
        verdict = "better" if low > 0 else "undecided"
    return Change(key, None, "acc", verdict, old, new, Estimate(difference, low, high))


def _nll(key: str, new: float, old: float, *, fail_on: float) -> Change:
    verdict: ChangeVerdict = "same"
    if new - old > max(NLL_MARGIN, fail_on * old):
        verdict = "worse"
    elif old - new > max(NLL_MARGIN, fail_on * old):
        verdict = "better"
    ratio = None if old == 0 else Estimate(new / old, None, None)
    return Change(key, None, "nll", verdict, old, new, ratio, reason="by margin; a bench keeps no spread of the NLL")
