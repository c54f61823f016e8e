"""Reads bench.json of older edcs, which identified networks by labels alone. Only this module parses a label.

Those labels were unambiguous, because a student's name has no space, comma or parenthesis. A student called `ensemble`,
`teacher` or `members` has another label now, so keys that name its rows are renamed too.
"""

import re
from typing import Any, get_args

from edc.benchmark.keys import row_key
from edc.subject import EnsembleForm, PrecisionClass, Subject

__all__ = ["subject_of_label", "with_identities"]

_LABEL = re.compile(
    rf"(?:teacher (?P<member>\d+)|ensemble, (?P<form>{'|'.join(get_args(EnsembleForm))})"
    r"|(?P<name>.*?)(?P<all> \(members\))?)"
    rf"(?: \((?P<precision>{'|'.join(get_args(PrecisionClass))})\))?(?P<graph> \(CUDA graph\))?",
    re.DOTALL,
)


def subject_of_label(label: str) -> Subject:
    """Returns the subject of an old label; if it is neither a teacher nor an ensemble, it is a student."""
    found = _LABEL.fullmatch(label)
    assert found is not None  # a name may be anything
    how: dict[str, Any] = {"precision": found["precision"] or "fp32", "cuda_graph": found["graph"] is not None}
    if found["member"] is not None:
        return Subject("teacher", member=int(found["member"]), **how)
    if found["form"] is not None:
        return Subject("ensemble", ensemble_form="merged" if found["form"] == "merged" else "in turn", **how)
    return Subject("members" if found["all"] else "student", name=found["name"], **how)


def with_identities(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of the document in which each row and each curve has an identity."""
    rows, curves = document.get("rows"), document.get("curves")
    changed, renamed = dict(document), {}
    if isinstance(rows, list):
        changed["rows"] = [_with_identity(row) for row in rows]
        for row in changed["rows"]:
            if isinstance(row, dict) and isinstance(row.get("identity"), Subject):
                place = row.get("backend"), row.get("artifact")
                renamed[row_key(row["subject"], *place)] = row_key(row["identity"].label, *place)  # type: ignore[arg-type]
    if isinstance(curves, dict) and document.get("curve_identities") is None:
        identities = [subject_of_label(label) for label in curves]
        changed["curves"] = {new.label: curve for new, curve in zip(identities, curves.values(), strict=True)}
        changed["curve_identities"] = {new.label: new for new in identities}
    renamed = {old: new for old, new in renamed.items() if old != new}
    return _with_keys(changed, renamed) if renamed else changed


def _with_identity(row: Any) -> Any:
    if not isinstance(row, dict) or "identity" in row or not isinstance(row.get("subject"), str):
        return row
    return {**row, "identity": subject_of_label(row["subject"])}


def _with_keys(value: Any, renamed: dict[str, str]) -> Any:
    """Returns the value with new keys for all rows that it names."""
    if isinstance(value, dict):
        return {renamed.get(key, key): _with_keys(item, renamed) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_keys(item, renamed) for item in value]
    return renamed.get(value, value) if isinstance(value, str) else value
