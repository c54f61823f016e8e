"""The joint evidence of several runs of one recipe: means, paired differences, shares of the ensemble's gain, costs.

Students are compared only within their run: with one another, with its teachers and with its ensemble, on the same test
images. The differences are then averaged over the runs, whether or not these have the same teachers.

    share = mean over runs of (student - teacher) / mean over runs of (ensemble - teacher)

where "teacher" is the mean over the run's teachers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edc.errors import RunError
from edc.evidence.read_runs import MEASURES, Measure, Over, ReadRun, read_runs
from edc.metrics.intervals import CONFIDENCE, Draws, Interval, mean_interval, mean_over_both, ratio_over_both
from edc.runs.folder import RunFolder
from edc.runs.rows import has_temperature
from edc.subject import Subject

__all__ = ["ONE_TEACHER", "Against", "Evidence", "EvidenceRow", "Figures", "evidence_of"]

Array = NDArray[np.float64]
Cells = dict[Measure, dict[Subject | None, Array]]
"""Figures per row, (R, N) or (R,), with the sign that makes more better. None: one teacher."""
Verdict = Literal["better", "worse", "not told apart"]

SIGN: dict[Measure, int] = {"acc": 1, "calibrated_nll": -1}
"""+1 where more is better."""

ONE_TEACHER = "teacher"


@dataclass(frozen=True)
class Figures:
    """One measure of a network over the runs: its mean, its standard deviation (None for one run) and each value."""

    mean: float
    sd: float | None
    by_run: tuple[float, ...]


@dataclass(frozen=True)
class Against:
    """Row - named row, in the same runs: `over_seeds` by a paired t test, `interval` over what `Evidence.over` says."""

    over_seeds: Interval
    interval: Interval
    verdict: Verdict


@dataclass(frozen=True)
class EvidenceRow:
    """One network. `subject` None is one teacher: the mean over the run's teachers. Dictionaries go by measure."""

    label: str
    subject: Subject | None
    figures: dict[Measure, Figures]
    share: dict[Measure, Interval]
    """For students: the share of the ensemble's gain over one teacher. 1 is all of it. NaN: there is no gain, or no
    calibrated NLL to compare (`Evidence.uncalibrated`)."""
    against: dict[Measure, Against]
    """Empty without a named row, and for that row itself."""
    units: float | None
    """Cost of its training in forward passes of one network on one batch, mean over the runs."""
    hours: float | None


@dataclass(frozen=True)
class Evidence:
    """All rows. `over` says what the intervals are over; `left_out` names rows that are not in every run."""

    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    teachers: tuple[int, ...]
    """Which set of teachers each run has, from 0."""
    over: Over
    confidence: float
    against: str | None
    gain: dict[Measure, Interval]
    """How much better the ensemble is than one teacher; for the calibrated NLL, how much lower."""
    rows: tuple[EvidenceRow, ...]
    left_out: tuple[str, ...]
    uncalibrated: tuple[str, ...]
    """Rows without a temperature in some run: their NLL is not calibrated, and a share that needs it is NaN."""
    notes: tuple[str, ...]


def evidence_of(folders: Sequence[RunFolder], *, against: str | None = None) -> Evidence:
    """Returns the joint evidence of finished runs of one recipe.

    Args:
        against: label of the row that the others are compared with: a student, "ensemble", or "teacher".

    Raises:
        RunError: a run is unfinished, given twice, or of another recipe or ensemble size; or a run lacks the row.
    """
    together = read_runs(folders)
    runs = together.runs
    of_all = [subject for subject in runs[0].rows if all(subject in run.rows for run in runs)]
    subjects = (None, *(subject for subject in of_all if subject.role != "teacher"))
    named = None if against is None else _named(against, subjects)
    draws = Draws(len(runs), runs[0].num_images, seed=0)
    cells: Cells = {m: {s: SIGN[m] * np.stack([run.cell(m, s) for run in runs]) for s in subjects} for m in MEASURES}
    gain = {m: mean_over_both(cells[m][Subject("ensemble")] - cells[m][None], draws) for m in MEASURES}
    return Evidence(
        runs=tuple(run.run.label for run in runs),
        seeds=tuple(run.run.summary["seed"] for run in runs),
        teachers=together.teachers,
        over=together.over,
        confidence=CONFIDENCE,
        against=against,
        gain=gain,
        rows=tuple(
            _row(subject, runs, cells, draws, is_compared=against is not None and subject != named, named=named)
            for subject in subjects
        ),
        left_out=tuple({subject.label: None for run in runs for subject in run.rows if subject not in of_all}),
        uncalibrated=tuple(
            {subject.label: None for run in runs for subject, row in run.rows.items() if not has_temperature(row)}
        ),
        notes=together.notes,
    )


def _row(
    subject: Subject | None,
    runs: Sequence[ReadRun],
    cells: Cells,
    draws: Draws,
    *,
    is_compared: bool,
    named: Subject | None,
) -> EvidenceRow:
    share: dict[Measure, Interval] = {}
    if subject is not None and subject.is_student:
        for m, of_rows in cells.items():
            above, below = (of_rows[one] - of_rows[None] for one in (subject, Subject("ensemble")))
            comparable = m == "acc" or all(_are_calibrated(run, subject) for run in runs)
            share[m] = ratio_over_both(above, below, draws) if comparable else Interval(math.nan, None, None)
    differences = {m: of_rows[subject] - of_rows[named] for m, of_rows in cells.items()} if is_compared else {}
    name = None if subject is None else subject.name
    return EvidenceRow(
        label=_label(subject),
        subject=subject,
        figures={m: _figures(SIGN[m] * of_rows[subject]) for m, of_rows in cells.items()},
        share=share,
        against={m: _against(difference, SIGN[m], draws) for m, difference in differences.items()},
        units=None if name is None else _mean([run.units(name) for run in runs]),
        hours=None if name is None else _mean([run.hours(name) for run in runs]),
    )


def _are_calibrated(run: ReadRun, subject: Subject) -> bool:
    """Returns whether all have a temperature that a student's share is computed from."""
    of = (subject, Subject("ensemble"), *(other for other in run.rows if other.role == "teacher"))
    return all(has_temperature(run.rows[one]) for one in of)


def _named(label: str, subjects: Sequence[Subject | None]) -> Subject | None:
    for subject in subjects:
        if label == _label(subject):
            return subject
    known = ", ".join(_label(subject) for subject in subjects)
    raise RunError(f"--against: found {label!r}, which is not a row of every run; expected one of {known}")


def _label(subject: Subject | None) -> str:
    return ONE_TEACHER if subject is None else subject.label


def _figures(values: Array) -> Figures:
    by_run = values.mean(1) if values.ndim == 2 else values
    sd = float(np.std(by_run, ddof=1)) if len(by_run) > 1 else None
    return Figures(float(by_run.mean()), sd, tuple(float(value) for value in by_run))


def _against(differences: Array, sign: int, draws: Draws) -> Against:
    """Returns the comparison, in the sign of the measure; `differences` are positive where the row is better."""
    by_run = differences.mean(1) if differences.ndim == 2 else differences
    over_seeds, interval = mean_interval(by_run), mean_over_both(differences, draws)
    if differences.ndim == 1:
        interval = over_seeds  # the same interval without the noise of resampling
    verdict: Verdict = "not told apart"
    if interval.excludes(0.0):
        verdict = "better" if interval.value > 0 else "worse"
    return Against(_signed(over_seeds, sign), _signed(interval, sign), verdict)


def _signed(interval: Interval, sign: int) -> Interval:
    if sign > 0:
        return interval
    low, high = (None if bound is None else -bound for bound in (interval.high, interval.low))
    return Interval(-interval.value, low, high)


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
