"""bench.json as the page reads it: rows by key, who is who, and one colour, shape and dash for each network."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edc.benchmark.page.svg import SHAPES

__all__ = ["Bench", "Series", "against_on", "base_name", "key_of"]

Row = dict[str, Any]

PRECISION = re.compile(r" \((int8|fp16|bf16|fp8|fp4|tf32)[^)]*\)(?=$| \(CUDA graph\)$)")
LOW_PRECISIONS = {"int8", "fp16", "bf16", "fp8", "fp4"}
DASHES = ("", "6 3", "1.5 3", "8 3 2 3", "4 2", "10 4", "3 3", "8 2 2 2 2 2")
NUM_COLOURS = 7


@dataclass(frozen=True)
class Series:
    """How a network is drawn everywhere on the page; in 16 bits or fewer it is the same, hollow."""

    name: str
    colour: int
    shape: str
    dash: str
    is_hollow: bool = False

    @property
    def css(self) -> str:
        return f"c{self.colour} h" if self.is_hollow else f"c{self.colour}"


def against_on(row: Row, basis: str) -> Row | None:
    """Returns what the row is held to on that basis: `ensemble` or `teacher`, both on its own backend."""
    return next((against for against in row.get("against") or [] if against.get("basis") == basis), None)


def key_of(row: Row) -> str:
    """Returns the name of a row whatever its batch: `student on torch`, with the artifact in front if not this one."""
    prefix = f"{row['artifact']}: " if row.get("artifact") else ""
    return f"{prefix}{row['subject']} on {row['backend']}"


class Bench:
    """A view of the document; parts that it does not have are empty."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.rows: list[Row] = document.get("rows") or []
        self.deploy: str = document.get("deploy") or ""
        self.verdict: dict[str, Any] | None = document.get("verdict")
        self.environment: dict[str, Any] = document.get("environment") or {}
        self.details: dict[str, Any] = document.get("details") or {}
        self.curves: dict[str, Any] = document.get("curves") or {}
        self.batches = sorted({row["batch"] for row in self.rows})
        self.backends = list(dict.fromkeys(row["backend"] for row in self.rows))
        self.by_key: dict[str, Row] = {}
        self.precisions: dict[str, str] = {}
        """What ran, by key; a row that did not run has none."""
        for row in self.rows:
            self.by_key.setdefault(key_of(row), row)
            if row.get("precision"):
                self.precisions[key_of(row)] = row["precision"]
        self._styles = self._all_styles()

    def row(self, key: str | None, batch: int | None) -> Row | None:
        """Returns the row of that key and batch."""
        return next((row for row in self.rows if row["batch"] == batch and key_of(row) == key), None)

    def number(self, row: Row) -> int:
        """Returns the position of the row in the document, which its ids on the page are made of."""
        return next(number for number, other in enumerate(self.rows) if other is row)

    def subject_of(self, key: str) -> str:
        """Returns the subject of a key, with its artifact in front if not this one."""
        return key.rsplit(" on ", 1)[0]

    def backend_of(self, key: str) -> str:
        row = self.by_key.get(key)
        return str(row["backend"]) if row else key.rpartition(" on ")[2]

    def is_student(self, row: Row) -> bool:
        """Returns whether the row is the artifact's network, in whatever precision."""
        return not row.get("artifact") and base_name(row["subject"]).removesuffix(" (CUDA graph)") == self.deploy

    def is_drawn_last(self, key: str) -> bool:
        """Returns whether a key is of the student, whose line must not be hidden by one that is the same."""
        return key in self.by_key and self.is_student(self.by_key[key])

    def series(self, key: str) -> Series:
        """Returns how a row is drawn, by its key; of a curve, which has no backend, by its name."""
        subject = self.subject_of(key) if key in self.by_key else key
        name, named = base_name(subject), PRECISION.search(subject)
        colour, shape, dash = self._styles.get(name, (0, "circle", ""))
        precision = self.precisions.get(key) or (named.group(1) if named else "")
        return Series(subject, colour, shape, dash, is_hollow=precision in LOW_PRECISIONS)

    def main_backend(self, keys: Iterable[str]) -> str | None:
        """Returns the backend to show where there is room for one: the verdict's, else the first with the student."""
        keys = list(keys)
        backends = list(dict.fromkeys(self.backend_of(key) for key in keys))
        if self.verdict and (backend := self.backend_of(self.verdict.get("row") or "")) in backends:
            return backend
        students = [self.backend_of(key) for key in keys if base_name(self.subject_of(key)) == self.deploy]
        return next(iter([*students, *backends]), None)

    def protagonists(self, backend: str, keys: Iterable[str]) -> list[str]:
        """Returns the keys of student, ensemble, a teacher and the student in 8 bits on a backend, where present."""
        here = [
            key for key in keys if self.backend_of(key) == backend and not (self.by_key.get(key) or {}).get("artifact")
        ]
        names = {key: base_name(self.subject_of(key)) for key in here}
        baseline = (self.verdict or {}).get("baseline")
        ensembles = sorted((key for key in here if names[key].startswith("ensemble")), key=lambda key: key != baseline)
        teachers = [key for key in here if names[key].startswith("teacher")]
        plain = [key for key in (*teachers, *ensembles) if names[key] == self.subject_of(key)]
        others = [
            key for role in ("ensemble", "teacher") for key in [k for k in plain if names[k].startswith(role)][:1]
        ]
        students = [key for key in here if names[key] == self.deploy]
        return [*students[:1], *others, *students[1:]]

    def _all_styles(self) -> dict[str, tuple[int, str, str]]:
        """Returns colour, shape and dash by name: student, ensemble and teacher always have theirs."""
        names = [base_name(self.subject_of(key_of(row))) for row in self.rows] + list(self.curves)
        styles = {self.deploy: (0, "circle", "")}
        free = 0
        for name in dict.fromkeys(names):
            if name in styles:
                continue
            if name.startswith("ensemble"):
                is_second = any(other.startswith("ensemble") for other in styles)
                styles[name] = (1, "diamond", "2 2") if is_second else (1, "square", DASHES[1])
            elif name.startswith("teacher"):
                styles[name] = (2, "triangle", DASHES[2])
            else:
                # Colours and shapes go round out of step, so that their pairs repeat late.
                colour, shape = 3 + free % (NUM_COLOURS - 3), SHAPES[4 + (free + free // 4) % 4]
                styles[name] = (colour, shape, DASHES[3 + free % 5])
                free += 1
        return styles


def base_name(subject: str) -> str:
    """Returns the subject without the precision at its end."""
    return PRECISION.sub("", subject)
