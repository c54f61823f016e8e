"""One bench against a saved one: which rows got worse by more than two benches of the same files differ.

Rows of one bench take turns and are compared round by round. Two benches do not: between them the machine's clock and
its neighbours have changed. So a change of a row's median is judged twice, both times against the known spread between
benches (`statistics.MEDIAN_SPREAD` and `RATIO_SPREAD`):

    as it is      which also finds a slow-down of every row, and is as coarse as the machine is restless
    by the rest   divided by the median change of all rows of its batch size: finer, but blind to a shared change

A row is worse if either interval excludes 1 *and* that change is over `fail_on`. The intervals hold for all rows and
both ways together (Bonferroni), or one of twenty unchanged rows would be reported each time. Where the machine itself
was in another state (`probe`), a median means nothing and only the rest decides. Where it was not, a row that became
faster is not worse because others gained more. A change that all rows share on a machine in the same state is judged;
`relative` leaves it out, for machines whose speed differs from day to day.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from scipy.stats import iqr, norm

from edc.benchmark.judge.statistics import MARGIN, RATIO_SPREAD, Estimate, compare_accuracy
from edc.benchmark.regression.changes import CONFIDENCE, Change, ChangeVerdict, Comparison
from edc.benchmark.regression.compatible import require_rows_in_common, same_images, warnings_of
from edc.benchmark.saved.document import SavedEstimate, SavedRow, WholeBench, whole_bench
from edc.benchmark.workers.probe import PROBE_LIMIT
from edc.benchmark.workers.timing import DRIFT_LIMIT, drift
from edc.errors import RequestError

__all__ = ["compare", "parse_fail_on", "ratio_interval"]

P50_CONFIDENCE = 0.99
"""That with which each bound of a saved median holds, see `statistics.quantile`."""
ACC_MARGIN = MARGIN
"""As in `statistics.compare_accuracy`."""
NLL_MARGIN = 0.01
"""In nats. A saved bench holds no spread of the NLL, so a difference is judged by this and `fail_on` alone."""
IQR_OF_NORMAL = 1.349
LEAST_ROWS = 3
"""With at least so many rows, their median change says something about the machine."""


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
) -> Comparison:
    """Returns what changed from `old` to `new`, two documents as `bench.json` holds them.

    A row that ran and does not run any more is worse. One that is only absent (other --backends or --batch) is
    "missing", and a row whose change is over `fail_on` but not certain is "undecided": neither fails.

    Args:
        fail_on: smallest share by which a time or the NLL must have grown to count.
        relative: judge rows against the rest alone; it takes three rows.

    Raises:
        RequestError: another processor, GPU, number of threads or task, or no row in common; or a document that is no
            bench.
    """
    after, before = whole_bench(new, name="this bench"), whole_bench(old, name="saved bench")
    warnings = warnings_of(after, before)
    rows_after, rows_before = _by_place(after), _by_place(before)
    require_rows_in_common(rows_after.keys(), before)
    common = [place for place in rows_before if place in rows_after]
    ratios = {
        place: now.value / then.value
        for place in common
        if (now := rows_after[place].p50_ms) is not None and (then := rows_before[place].p50_ms) is not None
    }
    if relative and len(ratios) < LEAST_ROWS:
        raise RequestError(f"--compare: judging relative to all rows needs {LEAST_ROWS} rows, there are {len(ratios)}")
    factor = statistics.median(ratios.values()) if len(ratios) >= LEAST_ROWS else None
    z = float(norm.ppf(1 - (1 - CONFIDENCE) / 4 / max(1, len(ratios))))
    changes: list[Change] = []
    for place in (*rows_before, *(place for place in rows_after if place not in rows_before)):
        change = _presence(rows_after.get(place), rows_before.get(place))
        if change is None:
            of_batch = [ratio for (_, batch), ratio in ratios.items() if batch == place[1]]
            rest = statistics.median(of_batch) if len(of_batch) >= LEAST_ROWS else factor
            judge = _Judge(z=z, fail_on=fail_on, rest=rest, relative=relative)
            change = _speed(rows_after[place], rows_before[place], judge)
        if change is not None:
            changes.append(change)
    if same_images(after, before):
        changes += _quality_changes(after, before, fail_on=fail_on)
    return Comparison(tuple(changes), warnings, factor, fail_on, relative)


def _by_place(bench: WholeBench) -> dict[tuple[str, int], SavedRow]:
    return {(row.key, row.batch): row for row in bench.rows}


def _presence(now: SavedRow | None, then: SavedRow | None) -> Change | None:
    """Returns the change of a row that did not run both times, or None."""
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


@dataclass(frozen=True)
class _Judge:
    """What times are judged by: quantile of the normal distribution, limit, and what the other rows changed by."""

    z: float
    fail_on: float
    rest: float | None
    relative: bool

    def verdict_on(self, change: Estimate) -> ChangeVerdict:
        if change.value > 1 + self.fail_on:
            return "worse" if change.low is not None and change.low > 1 else "undecided"
        if change.value < 1 / (1 + self.fail_on):
            return "better" if change.high is not None and change.high < 1 else "undecided"
        return "same"


def _speed(now: SavedRow, then: SavedRow, judge: _Judge) -> Change | None:
    """Returns how the median changed; None if neither bench has one."""
    new, old = now.p50_ms, then.p50_ms
    if new is None and old is None:
        return None
    if new is None or old is None:
        reason = f"too few samples for a median in {'this' if new is None else 'the saved'} bench"
        return Change(now.key, now.batch, "p50_ms", "undecided", reason=reason)
    drifts = [size for row in (now, then) if (size := _drift(row)) > DRIFT_LIMIT]
    of_drift = math.hypot(*(size / 2 for size in drifts))
    change = ratio_interval(new, old, z=judge.z, spread=of_drift)
    rest = None
    if judge.rest is not None and change.low is not None and change.high is not None:
        spread = math.hypot(_spread_of_median(now), _spread_of_median(then), math.sqrt(2) * RATIO_SPREAD, of_drift)
        value, factor = change.value / judge.rest, math.exp(judge.z * spread)
        rest = Estimate(value, value / factor, value * factor)
    own = _machine_change(now, then)
    verdicts = [judge.verdict_on(each) for each in ((rest,) if judge.relative and rest else (change, rest)) if each]
    verdict = "worse" if "worse" in verdicts else verdicts[0]
    if "better" in verdicts and verdict == "undecided":
        verdict = "better"  # it did become faster, and the rest says that this is no chance
    reason = f"drifted by {max(drifts):.0%} within a bench" if drifts else ""
    is_other_machine = own is not None and abs(math.log(own)) > PROBE_LIMIT
    if own is not None and is_other_machine:
        # The median means nothing then; only the rest, which was slowed down alike, can say that the row changed.
        verdict = "undecided" if rest is None else judge.verdict_on(rest)
        reason = f"the machine itself took {own - 1:+.0%} time for the same work"
    if rest is not None and verdict == "worse" and change.value < 1:
        found = f"{change.value - 1:+.1%} on the clock, {rest.value - 1:+.1%} against the other rows"
        if is_other_machine or judge.relative:
            reason = "; ".join(filter(None, (reason, f"{found}, which are trusted")))
        else:
            same = (
                "the machine itself was the same"
                if own is not None
                else "nothing says that the machine itself was faster"
            )
            verdict, reason = "undecided", f"{found}; {same}, so the clock is trusted"
    return Change(now.key, now.batch, "p50_ms", verdict, old.value, new.value, change, rest, reason)


def _machine_change(now: SavedRow, then: SavedRow) -> float | None:
    """Returns new / old of the probe that was timed beside the row, if both benches have one."""
    return None if now.probe_us is None or then.probe_us is None else now.probe_us / then.probe_us


def _spread_of_median(row: SavedRow) -> float:
    """Returns the standard error, as a share, of the median over rounds; their spread is taken without outliers."""
    logs = [math.log(value) for value in row.round_medians_ms.values() if value > 0]
    return 0.0 if len(logs) < 2 else math.sqrt(math.pi / 2 / len(logs)) * float(iqr(logs)) / IQR_OF_NORMAL


def ratio_interval(
    new: SavedEstimate,
    old: SavedEstimate,
    *,
    z: float,
    spread: float = 0.0,
    of_bounds: float = P50_CONFIDENCE,
) -> Estimate:
    """Returns new / old of two estimates that know nothing of each other.

    Args:
        z: the quantile of the normal distribution that the interval is to have.
        spread: further standard deviation of the ratio's logarithm.
        of_bounds: the confidence with which each single bound of the estimates holds.
    """
    ratio = new.value / old.value
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
    """Returns the size of the row's drift, up or down, as a logarithm."""
    return abs(math.log1p(drift(row.round_medians_ms)))


def _quality_changes(after: WholeBench, before: WholeBench, *, fail_on: float) -> list[Change]:
    """Returns how accuracy and NLL of each subject changed, on as many test images; once, whatever the batches."""
    then_by_key = {row.key: row.quality for row in before.rows if row.quality is not None}
    now_by_key = {row.key: row.quality for row in after.rows if row.quality is not None}
    common = [key for key in now_by_key if key in then_by_key]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(common))  # Bonferroni, as for times
    is_pairable = after.test_digest is not None and after.test_digest == before.test_digest
    changes = []
    for key in common:
        now, then = now_by_key[key], then_by_key[key]
        pair = (before.correct(key), after.correct(key)) if is_pairable else (None, None)
        if pair[0] is not None and pair[1] is not None:
            difference = compare_accuracy(pair[0], pair[1], seed=0, confidence=confidence).difference
        else:
            difference = _unpaired(now.raw.acc, then.raw.acc, after.num_test_images, confidence)
        changes.append(_accuracy(key, now.raw.acc, then.raw.acc, difference))
        scores = (now.calibrated, then.calibrated) if now.calibrated and then.calibrated else (now.raw, then.raw)
        changes.append(_nll(key, scores[0].nll, scores[1].nll, fail_on=fail_on))
    return changes


def _unpaired(new: float, old: float, num_images: int, confidence: float) -> Estimate:
    """Returns new - old with an interval for proportions of images that nobody can pair.

    Source: Agresti and Caffo 2000: one success and one failure are added to each side.
    """
    shares = [(share * num_images + 1) / (num_images + 2) for share in (new, old)]
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(sum(p * (1 - p) for p in shares) / (num_images + 2))
    middle = shares[0] - shares[1]
    return Estimate(new - old, middle - half, middle + half)


def _accuracy(key: str, new: float, old: float, difference: Estimate) -> Change:
    verdict: ChangeVerdict = "same"
    if difference.value < -ACC_MARGIN:
        verdict = "worse" if difference.high is not None and difference.high < 0 else "undecided"
    elif difference.value > ACC_MARGIN:
        verdict = "better" if difference.low is not None and difference.low > 0 else "undecided"
    return Change(key, None, "acc", verdict, old, new, difference)


def _nll(key: str, new: float, old: float, *, fail_on: float) -> Change:
    verdict: ChangeVerdict = "same"
    if new - old > max(NLL_MARGIN, fail_on * old):
        verdict = "worse"
    elif old - new > max(NLL_MARGIN, fail_on * old):
        verdict = "better"
    ratio = None if old == 0 else Estimate(new / old, None, None)
    return Change(key, None, "nll", verdict, old, new, ratio, reason="by margin; a bench keeps no spread of the NLL")
