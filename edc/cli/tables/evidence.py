"""What several runs show together, for people and as a document."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from edc.console import TextRow, duration, fitting_table, left_out_words
from edc.evidence.over_seeds import Evidence, EvidenceRow
from edc.evidence.read_runs import MEASURES, Measure
from edc.metrics.intervals import Interval

__all__ = ["evidence_document", "print_evidence"]

LEAST_SHOWN: dict[Measure, float] = {"acc": 0.00005, "calibrated_nll": 0.0005}
"""Gains that are not 0 at the digits of the table."""
IN_WORDS: dict[Measure, str] = {"acc": "accuracy", "calibrated_nll": "calibrated NLL"}
WORTH = ("k forwards", "time", "share acc %", "share cNLL %")
WORTH_GIVES_WAY = ("time", "k forwards", "share acc %")
DIFFERENCES = ("acc points", "cNLL")
DIFFERENCES_GIVE_WAY = ("acc points",)
"""In this order, where the terminal is too narrow for all."""


def evidence_document(evidence: Evidence) -> dict[str, Any]:
    """Returns all that was found as JSON values; what is not known is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    document: dict[str, Any] = plain(dataclasses.asdict(evidence))
    for row, found in zip(document["rows"], evidence.rows, strict=True):
        of = found.subject
        row["subject"] = None if of is None else {"role": of.role, "name": of.name, "member": of.member}
    return document


def print_evidence(evidence: Evidence, *, console: Console) -> None:
    """Prints costs, shares of the gain and differences from the named row, and in words what cannot be told apart.

    Of one run, without a named row, the shares in words.
    """
    level = f"{100 * evidence.confidence:.0f} % intervals over {evidence.over}"
    level = "no intervals" if evidence.over == "nothing" else level
    caption = (
        f"{level}; {_gain(evidence)}\nshare: (student - teacher) / (ensemble - teacher); "
        "k forwards: thousand forward passes of a batch, in training"
    )
    if _without_bounds(evidence):
        caption += "\na share without an interval is not bounded by so few runs"
    caption = "\n".join([caption, *_why_no_share(evidence)])
    worth = [
        TextRow(row.label, dict(zip(WORTH, _worth(evidence, row), strict=True))) for row in evidence.rows if row.share
    ]
    title = "what a student keeps of the ensemble's gain"
    if len(evidence.runs) == 1 and not evidence.against:
        for line in (*_shares_in_words(evidence), f"({level})"):
            console.print(line, highlight=False)
        return
    _print(title, worth, WORTH, WORTH_GIVES_WAY, caption, console)
    if evidence.against:
        compared = [
            TextRow(row.label, dict(zip(DIFFERENCES, _differences(row), strict=True)))
            for row in evidence.rows
            if row.against
        ]
        title = f"difference from {evidence.against}, in pairs: same seed, same teachers, same test images"
        _print(title, compared, DIFFERENCES, DIFFERENCES_GIVE_WAY, level, console)
    lines = [*_words(evidence), *(f"note: {note}." for note in evidence.notes)]
    if evidence.left_out:
        lines.append(f"note: not in every run, so without a share or a difference: {', '.join(evidence.left_out)}.")
    for line in lines:
        console.print(line, highlight=False)


def _print(
    title: str,
    rows: Sequence[TextRow],
    columns: Sequence[str],
    gives_way: Sequence[str],
    caption: str,
    console: Console,
) -> None:
    table, left_out = fitting_table(title, rows, columns, gives_way=gives_way, console=console)
    table.caption = "\n".join(filter(None, [caption, left_out_words(left_out)]))
    console.print(table)


def _worth(evidence: Evidence, row: EvidenceRow) -> list[str]:
    units = "" if row.units is None else f"{row.units / 1000:.3g}"
    time = "" if row.hours is None else duration(3600 * row.hours)
    return [units, time, *(_share(evidence, row, m) for m in MEASURES)]


def _share(evidence: Evidence, row: EvidenceRow, measure: Measure) -> str:
    """Returns the share in per cent; a dash where the ensemble gains nothing that is sure: a quotient of noise."""
    return "-" if _share_is_nothing(evidence, measure) else _interval(row.share[measure], 0, scale=100)


def _share_is_nothing(evidence: Evidence, measure: Measure) -> bool:
    gain = evidence.gain[measure]
    return gain.value < LEAST_SHOWN[measure] or (gain.low is not None and not gain.excludes(0))


def _without_bounds(evidence: Evidence) -> bool:
    """Returns whether a share is shown that so few runs do not bound."""
    shares = [_share(evidence, row, m) for row in evidence.rows if row.share for m in MEASURES]
    return evidence.over != "nothing" and any(share != "-" and "(" not in share for share in shares)


def _differences(row: EvidenceRow) -> list[str]:
    acc, nll = (row.against[m].interval for m in MEASURES)
    return [_interval(acc, 2, scale=100, sign="+"), _interval(nll, 3, sign="+")]


def _gain(evidence: Evidence) -> str:
    acc, nll = evidence.gain["acc"], evidence.gain["calibrated_nll"]
    gained = f"{_interval(acc, 2, scale=100, sign='+')} points and {_interval(nll, 3, sign='+')} nats of cNLL"
    return f"the ensemble gains {gained} over one teacher"


def _interval(interval: Interval, digits: int, *, scale: float = 1, sign: str = "") -> str:
    """Returns `98 (91 to 104)`; without bounds the value alone, and a dash where there is none."""

    def write(value: float) -> str:
        text = f"{scale * value:{sign}.{digits}f}"
        return text if text.strip("+-0.") else text.lstrip("+-")

    if not math.isfinite(interval.value):
        return "-"
    if interval.low is None or interval.high is None:
        return write(interval.value)
    return f"{write(interval.value)} ({write(interval.low)} to {write(interval.high)})"


def _shares_in_words(evidence: Evidence) -> list[str]:
    """Returns a line for each student as it is deployed, of the measures in which there is something to keep."""
    lines = []
    for row in evidence.rows:
        if row.subject and row.subject.role == "student":
            shares = {IN_WORDS[m]: _share(evidence, row, m) for m in MEASURES}
            kept = [f"{share} % in {name}" for name, share in shares.items() if share != "-"]
            lines += [f"- {row.label} keeps {' and '.join(kept)}"] if kept else []
    return [f"{_gain(evidence)}, of which" if lines else _gain(evidence), *lines, *_why_no_share(evidence)]


def _why_no_share(evidence: Evidence) -> list[str]:
    """Returns why there is a dash in place of each share of a measure, in words; nothing where there are shares."""
    nothing = [m for m in MEASURES if _share_is_nothing(evidence, m)]
    lost = [m for m in nothing if (high := evidence.gain[m].high) is not None and high < 0]
    lines = []
    for measures, words in (
        ([m for m in nothing if m not in lost], "the gain in {} cannot be told from none: there is no share of it"),
        (lost, "the ensemble is worse than its teachers' mean in {}: there is no gain to have a share of"),
    ):
        if measures:
            lines.append(words.format(" and in ".join(IN_WORDS[m] for m in measures)))
    if evidence.uncalibrated and not _share_is_nothing(evidence, "calibrated_nll"):
        names = ", ".join(evidence.uncalibrated)
        lines.append(f"no share in calibrated NLL where some have no temperature (right on all): {names}")
    return lines


def _words(evidence: Evidence) -> list[str]:
    """Returns a line for each measure that names the rows which cannot be told from the named one."""
    if evidence.over == "nothing" or not evidence.against:
        return []
    lines = []
    for measure, name in zip(MEASURES, ("accuracy", "calibrated NLL"), strict=True):
        compared = [(row.label, row.against[measure].verdict) for row in evidence.rows if row.against]
        alike = [label for label, verdict in compared if verdict == "not told apart"]
        if alike:
            lines.append(f"{name}: {_listed(alike)} cannot be told from {evidence.against}.")
    return lines


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
