"""The words of the page: the verdict's figures, flags, rows that did not run, disagreements, the environment."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edc.benchmark.page.document import Bench, against_on
from edc.benchmark.page.numbers import MISSING, fixed, interval, megabytes, milliseconds, size, typeset
from edc.benchmark.saved.document import SavedAgainst, SavedRow

__all__ = [
    "Disagreement",
    "Doubted",
    "Fact",
    "Flagged",
    "decision",
    "disagreements",
    "doubted",
    "environment",
    "facts",
    "flagged",
    "not_run",
    "reservations",
    "sentences",
    "subtitle",
]

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Fact:
    """A figure of the verdict: what it is, the figure, and what it is compared with."""

    name: str
    figure: str
    beside: str


@dataclass(frozen=True)
class Flagged:
    """A row with what a reader must know before quoting it."""

    number: int
    key: str
    batch: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Doubted:
    """A comparison and why it may be wrong; `identity` is its place on the page, `number` its row's."""

    identity: str
    number: int
    key: str
    batch: int
    baseline: str
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Disagreement:
    """An image and both answers; `image` is base64, known to be a PNG."""

    image: str
    label: str
    index: str
    answers: tuple[tuple[str, str, str, bool], ...]
    """Who, class, probability, whether it is right."""


def subtitle(bench: Bench) -> str:
    """Returns what was measured, on what and when, in a line."""
    document, machine = bench.document, bench.environment
    parts = [f"student {bench.deploy}"] if bench.deploy else []
    if document.ensemble_size:
        parts.append(f"ensemble of {document.ensemble_size}")
    if document.num_test_images:
        parts.append(f"{document.num_test_images:,} test images")
    if machine.cpu:
        threads = machine.threads
        words = f"{threads} thread{'' if threads == 1 else 's'} on " if threads else ""
        parts.append(f"{words}{machine.cpu}")
    if machine.started:
        parts.append(_moment(machine.started))
    return " · ".join(parts) + (" · quick" if document.quick else "")


def sentences(bench: Bench) -> list[str]:
    """Returns the verdict; the first sentence is the one to quote."""
    return [typeset(sentence) for sentence in (bench.verdict.sentences if bench.verdict else ())]


def reservations(bench: Bench) -> list[str]:
    """Returns what makes the verdict doubtful: doubts about its comparisons, flags of its row and its baseline.

    A doubt that a sentence of the verdict says already is not said again.
    """
    verdict = bench.verdict
    if verdict is None:
        return []
    said = " ".join(verdict.sentences)
    found = []
    for key in (verdict.row, verdict.baseline):
        row = bench.row(key, verdict.batch)
        if row is None:
            continue
        for against in row.against if key == verdict.row else ():
            if against.baseline == verdict.baseline or against.basis == "teacher":
                new = [doubt for doubt in against.doubts if doubt not in said]
                found += [typeset(f"The speed-up against {against.baseline} is in doubt: {doubt}") for doubt in new]
        if row.flags:
            found.append(typeset(f"{row.key}, batch {row.batch:,}, is flagged: {'; '.join(row.flags)}"))
    return found


def facts(bench: Bench) -> list[Fact]:
    """Returns the figures behind the verdict; none without one."""
    verdict = bench.verdict
    if verdict is None:
        return []
    row, baseline = (bench.row(key, verdict.batch) for key in (verdict.row, verdict.baseline))
    if row is None or baseline is None:
        return []
    nothing = SavedAgainst(baseline=verdict.baseline)
    against = next((each for each in row.against if each.baseline == verdict.baseline), nothing)
    accuracy = against.accuracy or {}
    found = []
    if against.speedup:
        beside = f"{_median(row)} ms against {_median(baseline)} ms, batch {row.batch:,}"
        if against.flops_ratio is not None:
            beside += f"; {fixed(against.flops_ratio, 2)} times fewer FLOPs"
        found.append(Fact("times as fast", interval(against.speedup, 2), beside))
    if accuracy.get("difference"):
        beside = f"{decision(accuracy)} at the {fixed(accuracy.get('margin'), 1, scale=100)}-point margin, against "
        beside += against.accuracy_baseline or against.baseline
        found.append(Fact("accuracy, points", _points(accuracy), beside))
    found += _against_one_teacher(row)
    # As in the verdict: 8 bits may make an ensemble fast, but its quality is that of fp32.
    full = bench.row(against.accuracy_baseline, verdict.batch) or baseline
    ours, theirs = (None if each.quality is None else each.quality.calibrated_nll for each in (row, full))
    if ours is not None and theirs is not None:
        found.append(Fact("calibrated NLL", fixed(ours, 3), f"ensemble {fixed(theirs, 3)}"))
    if row.file_bytes and baseline.file_bytes:
        found.append(Fact("MB", megabytes(row.file_bytes), f"ensemble {megabytes(baseline.file_bytes)}"))
    return found


def _against_one_teacher(row: SavedRow) -> list[Fact]:
    """Returns how the row does against what costs as much without any distillation, if that was measured."""
    against = against_on(row, "teacher")
    accuracy = (against and against.accuracy) or {}
    if against is None or not accuracy.get("difference"):
        return []
    speedup = "" if against.speedup is None else f"{interval(against.speedup, 2)} times as fast; "
    beside = f"points of accuracy, {decision(accuracy)}; {speedup}{against.baseline}"
    return [Fact("against one teacher", _points(accuracy), beside)]


def decision(accuracy: Mapping[str, Any]) -> str:
    """Returns what the interval says of the margin, in the words of the terminal."""
    verdict = accuracy.get("verdict")
    return "not decided" if verdict == "undecided" else str(verdict or MISSING)


def _points(accuracy: Mapping[str, Any]) -> str:
    return interval(accuracy["difference"], 2, scale=100, sign=True)


def flagged(bench: Bench) -> list[Flagged]:
    """Returns the rows with flags."""
    return [Flagged(number, row.key, row.batch, row.flags) for number, row in enumerate(bench.rows) if row.flags]


def doubted(bench: Bench) -> list[Doubted]:
    """Returns the comparisons that may be wrong."""
    return [
        Doubted(
            f"{number}-{at}",
            number,
            row.key,
            row.batch,
            against.baseline,
            tuple(map(typeset, against.doubts)),
        )
        for number, row in enumerate(bench.rows)
        for at, against in enumerate(row.against)
        if against.doubts
    ]


def not_run(bench: Bench) -> list[tuple[str, str, str]]:
    """Returns (key, batch sizes, reason) of the rows that did not run, those of one reason together."""
    batches: dict[tuple[str, str], list[str]] = {}
    for row in bench.rows:
        if row.reason_not_run:
            batches.setdefault((row.key, row.reason_not_run), []).append(f"{row.batch:,}")
    return [(key, ", ".join(sizes), reason) for (key, reason), sizes in batches.items()]


def disagreements(bench: Bench) -> tuple[str, list[Disagreement]]:
    """Returns what is said about them, and the images; empty words if the bench holds none."""
    part = bench.document.disagreements
    if not part:
        return "", []
    shown = part.get("images") or []
    share = fixed(part["num_disagree"] / max(part["num_images"], 1), 1, scale=100)
    words = f"{part['student']} and {part['ensemble']} name different classes on {part['num_disagree']:,} of "
    words += f"{part['num_images']:,} test images ({share} %)."
    right = {who: sum(image[who]["class"] == image["label"] for image in shown) for who in ("student", "ensemble")}
    neither = len(shown) - sum(right.values())
    if shown:
        words += f" Of the {len(shown)} below, the student is right on {right['student']}, the ensemble on "
        words += f"{right['ensemble']}, neither on {neither}."
    return words, [_disagreement(bench, image) for image in shown]


def _disagreement(bench: Bench, image: Mapping[str, Any]) -> Disagreement:
    answers = tuple(
        (
            who,
            _class_name(bench, image[who]["class"]),
            f"{fixed(image[who]['probability'], 0, scale=100)} %",
            image[who]["class"] == image["label"],
        )
        for who in ("student", "ensemble")
    )
    return Disagreement(_png(image.get("png_base64")), _class_name(bench, image["label"]), str(image["index"]), answers)


def _class_name(bench: Bench, number: int | str) -> str:
    names = bench.document.class_names
    return str(names[number]) if isinstance(number, int) and 0 <= number < len(names) else str(number)


def _png(text: str | None) -> str:
    """Returns base64 of a PNG as it came, and nothing for what is not one."""
    try:
        data = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(data).decode() if data.startswith(PNG) else ""


def environment(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and values for people, of the machine as of the plan; what is not known is left out."""
    return [
        (_name(field), _value(field, value))
        for field, value in values.items()
        if value is not None and field != "flags"
    ]


def _name(field: str) -> str:
    field = {"num_cpus": "processors", "cpu": "CPU"}.get(field, field)
    return field.removesuffix("_bytes").removesuffix("_ms").replace("num_", "").replace("_", " ")


def _value(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(name, each)}" for name, each in value.items()) or MISSING
    if isinstance(value, list):
        return ", ".join(_value(field, each) for each in value) or MISSING
    if field.endswith("_bytes") and isinstance(value, int | float):
        return size(value)
    if isinstance(value, float):
        return f"{value:.4g}" + (" ms" if field.endswith("_ms") else "")
    return _moment(value) if field in {"started", "ended"} else str(value)


def _moment(text: str) -> str:
    """Returns an ISO time as people write it."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def _median(row: SavedRow) -> str:
    return milliseconds(row.p50_ms and row.p50_ms.value)
