"""Names and numbers of classes, as strangers' files have them: within bounds, and such that export can write them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edc.console import console
from edc.errors import DataError

__all__ = [
    "MOST_BYTES_OF_NAMES",
    "MOST_CLASSES",
    "MOST_DIGITS",
    "class_number",
    "names_in",
    "require_names",
    "warn_of_absent_classes",
    "warn_of_empty_classes",
]

MOST_CLASSES, MOST_DIGITS = 1_000_000, 100
MOST_BYTES_OF_NAMES = 1 << 24
_MOST_LETTERS = 1000


def class_number(text: bytes, name: str) -> int:
    """Returns the number of a class that the file called `name` holds."""
    shown = text[:20]
    try:
        number = int(text) if len(text) <= MOST_DIGITS else None
    except ValueError:
        number = None
    if number is None:
        raise DataError(f"{name}: found {shown!r}, expected the number of a class")
    if not 0 <= number < MOST_CLASSES:
        raise DataError(
            f"{name}: found {text.strip()[:24].decode()}, expected the number of a class, 0 or more and "
            f"less than {MOST_CLASSES:,}"
        )
    return number


def names_in(text: bytes, where: str) -> tuple[str, ...]:
    """Returns the names in a `classes.txt`, one a line, with or without a byte order mark."""
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} ({text[error.start]:#04x}) is not UTF-8; save the file as UTF-8"
        ) from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) > MOST_CLASSES:
        raise DataError(f"{where}: {len(names):,} names, expected at most {MOST_CLASSES:,}, one a line")
    return names


def require_names(names: Sequence[str]) -> None:
    """Raises `DataError` for a class that `edc export` could not write: not UTF-8, no text, or not on one line."""
    for name in names:
        try:
            name.encode()
            why = "" if len(name.splitlines()) == 1 and name.strip() else "is not one line of text"
        except UnicodeEncodeError:
            why = "is not UTF-8"
        if not why and ("\0" in name or len(name) > _MOST_LETTERS):
            why = f"has a zero byte or more than {_MOST_LETTERS:,} letters"
        if why:
            raise DataError(
                f"data: the name of class {name[:60]!a} {why}, so no artifact could hold it; rename the class"
            )


def warn_of_empty_classes(labels: Tensor, names: Sequence[str]) -> None:
    """Says which classes have no training image: they may be there because labels count from 1."""
    known = labels[labels >= 0]
    if not len(known):
        return
    empty = [names[k] for k in (torch.bincount(known, minlength=len(names)) == 0).nonzero().flatten().tolist()]
    if empty:
        from_1 = " Do its labels count from 1?" if empty == [names[0]] and len(names) > 2 else ""
        listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        console.print(
            f"data: {len(empty)} of {len(names)} classes have no training images: {listed}.{from_1}",
            highlight=False,
            markup=False,
        )


def warn_of_absent_classes(labels: Tensor, names: Sequence[str], what: str) -> None:
    """Says which classes have no image in a held-out split, and if it has one class alone: that may stand for none."""
    counts = torch.bincount(labels[labels >= 0], minlength=len(names))
    absent = [names[k] for k in (counts == 0).nonzero().flatten().tolist()]
    if absent:
        of_one = f" All are of class {names[int(counts.argmax())]}: are they labelled?"
        listed = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        console.print(
            f"data: {what} has no images of {len(absent)} of {len(names)} classes ({listed})."
            f"{of_one if len(names) - len(absent) == 1 else ''}",
            highlight=False,
            markup=False,
        )
