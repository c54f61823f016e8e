"""Figures as text for the page: one way to write a latency, an interval, a size. What is missing is a dash."""

import math
import re
from collections.abc import Mapping
from typing import Any

from edc.benchmark.saved.document import SavedEstimate

__all__ = [
    "MISSING",
    "fixed",
    "interval",
    "megabytes",
    "milliseconds",
    "ms_digits",
    "p_value",
    "signed",
    "size",
    "tick",
    "typeset",
]

Estimated = Mapping[str, Any] | SavedEstimate
MISSING = "\u2013"
MINUS = "\u2212"
"""As wide as a digit, which a hyphen is not."""

TO = "\u2013"
"""Between the bounds of a range: neither a hyphen nor a minus."""


def fixed(value: float | None, digits: int, *, scale: float = 1) -> str:
    """Returns the value with so many decimals, thousands apart."""
    if value is None:
        return MISSING
    text = f"{scale * value:,.{digits}f}"
    if text.startswith("-") and not text.strip("-0.,"):  # a zero has no sign
        text = text[1:]
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int, *, scale: float = 1) -> str:
    """Returns what `fixed` returns, with a plus before positive values."""
    text = fixed(value, digits, scale=scale)
    return f"+{text}" if value is not None and text[0] != MINUS and text.strip("0.,") else text


def interval(estimate: Estimated | None, digits: int, *, scale: float = 1, sign: bool = False) -> str:
    """Returns `4.03 (3.95-4.14)`, `-0.2 (-0.8 to +0.4)`, or what is known of it where a bound is not.

    Args:
        estimate: value, low and high, as bench.json has them.
    """
    if estimate is None:
        return MISSING
    write, figures = signed if sign else fixed, dict(estimate)
    value = write(figures["value"], digits, scale=scale)
    low, high = (
        None if (bound := figures.get(name)) is None else write(bound, digits, scale=scale) for name in ("low", "high")
    )
    if low is None and high is None:
        return value
    if low is None or high is None:
        return f"{value} (up to {high})" if low is None else f"{value} (from {low})"
    between = " to " if sign or MINUS in low + high else TO
    return f"{value} ({low}{between}{high})"


def ms_digits(value: float) -> int:
    """Returns how many decimals a latency in ms has: about four figures, microseconds at the finest."""
    return 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0


def milliseconds(estimate: Estimated | float | None) -> str:
    """Returns a latency in ms, with its interval if it has one; without the unit."""
    if estimate is None:
        return MISSING
    if isinstance(estimate, int | float):
        return fixed(estimate, ms_digits(estimate))
    return interval(estimate, ms_digits(dict(estimate)["value"]))


def megabytes(num_bytes: float | None) -> str:
    """Returns bytes as MB, without the unit: three figures of small files, thousands apart for large ones."""
    if num_bytes is None:
        return MISSING
    value = num_bytes / 1e6
    return fixed(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def size(num_bytes: float) -> str:
    """Returns bytes for people: 640 B, 312 kB, 1.27 MB, 25.3 GB."""
    for divisor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= divisor:
            return f"{num_bytes / divisor:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def p_value(p: float | None) -> str:
    """Returns a p-value to three decimals, or that it is smaller."""
    return MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def tick(value: float) -> str:
    """Returns the label of a tick, which is a round number: no trailing zeros, thousands apart from 10,000."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}" if abs(value) >= 10_000 else f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", MINUS)


def typeset(sentence: str) -> str:
    """Returns a sentence of the terminal with the signs that the figures of the page have: `-0.2 (1-2)`."""
    sentence = re.sub(r"(?<![\w.)\]-])-(?=\d)", MINUS, sentence)
    return re.sub(r"\((\d[\d.,]*)-(\d[\d.,]*)\)", rf"(\1{TO}\2)", sentence)
