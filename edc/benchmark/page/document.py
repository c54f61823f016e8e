"""A bench as the page sees it: rows by key, their networks, and one colour, shape and dash per network."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from edc.benchmark.page.charts.svg import SHAPES
from edc.benchmark.saved.document import SavedAgainst, SavedRow, bench_document
from edc.subject import Subject

__all__ = ["Bench", "Series", "against_on"]

LOW_PRECISIONS = {"int8", "fp16", "bf16", "fp8", "fp4"}
DASHES = ("", "6 3", "1.5 3", "8 3 2 3", "4 2", "10 4", "3 3", "8 2 2 2 2 2")
NUM_COLOURS = 7
Network = tuple[str | None, Subject]
"""Which artifact's (None: the one that is benched), and which network of it, in whatever precision."""


@dataclass(frozen=True)
class Series:
    """How a network is drawn everywhere on the page; in 16 bits or fewer it is the same, hollow."""

    name: str
    network: str
    """The name, whatever the precision."""
    colour: int
    shape: str
    dash: str
    is_hollow: bool = False

    @property
    def css(self) -> str:
        return f"c{self.colour} h" if self.is_hollow else f"c{self.colour}"


def against_on(row: SavedRow, basis: str) -> SavedAgainst | None:
    """Returns the row's comparison on that basis: `ensemble` or `teacher`, both on its own backend."""
    return next((against for against in row.against if against.basis == basis), None)


class Bench:
    """A view of the document; parts that it does not have are empty."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = bench_document(document)
        self.rows, self.deploy, self.verdict = self.document.rows, self.document.deploy, self.document.verdict
        self.environment, self.details, self.curves = (
            self.document.environment,
            self.document.details,
            self.document.curves,
        )
        self.deployed = Subject("student", name=self.deploy)
        self.batches = sorted({row.batch for row in self.rows})
        self.backends = list(dict.fromkeys(row.backend for row in self.rows))
        self.by_key: dict[str, SavedRow] = {}
        self.precisions: dict[str, str] = {}
        """What ran, by key; a row that did not run has none."""
        for row in self.rows:
            self.by_key.setdefault(row.key, row)
            if row.precision:
                self.precisions[row.key] = row.precision
        self._styles = self._all_styles()

    def row(self, key: str | None, batch: int | None) -> SavedRow | None:
        """Returns the row of that key and batch."""
        return next((row for row in self.rows if row.batch == batch and row.key == key), None)

    def number(self, row: SavedRow) -> int:
        """Returns the position of the row in the document, which its ids on the page are made of."""
        return next(number for number, other in enumerate(self.rows) if other is row)

    def subject_of(self, key: str) -> str:
        """Returns whose row a key names, with its artifact in front if not this one; the key if there is no row."""
        return self.by_key[key].network if key in self.by_key else key

    def backend_of(self, key: str) -> str:
        return self.by_key[key].backend if key in self.by_key else "an unknown backend"

    def is_student(self, row: SavedRow) -> bool:
        """Returns whether the row is the artifact's network, in whatever precision."""
        return row.artifact is None and row.identity.base == self.deployed

    def is_drawn_last(self, key: str) -> bool:
        """Returns whether a key is of the student, whose line must not be hidden by one that is the same."""
        return key in self.by_key and self.is_student(self.by_key[key])

    def series(self, key: str) -> Series:
        """Returns how a row is drawn, by its key."""
        row = self.by_key.get(key)
        if row is None:
            return Series(key, key, 0, "circle", "")
        plain = replace(row.identity, precision="fp32")
        precision = self.precisions.get(key) or row.identity.precision
        name = plain.label if row.artifact is None else f"{row.artifact}: {plain.label}"
        return Series(row.network, name, *self._styles[row.artifact, plain], is_hollow=precision in LOW_PRECISIONS)

    def series_of_curve(self, name: str) -> Series:
        """Returns how a training curve is drawn, by its name."""
        return Series(name, name, *self._styles[None, self.document.curve_identities[name]])

    def main_backend(self, keys: Iterable[str]) -> str | None:
        """Returns the backend to show where there is room for one: the verdict's, else the first with the student."""
        keys = list(keys)
        backends = list(dict.fromkeys(self.backend_of(key) for key in keys))
        if self.verdict and (backend := self.backend_of(self.verdict.row)) in backends:
            return backend
        students = [self.backend_of(key) for key in keys if self.is_drawn_last(key)]
        return next(iter([*students, *backends]), None)

    def protagonists(self, backend: str, keys: Iterable[str]) -> list[str]:
        """Returns the keys of student, ensemble, a teacher and the student in 8 bits on a backend, where present."""
        keys = [key for key in keys if self.backend_of(key) == backend]
        known = {key: self.by_key[key].identity for key in keys if key in self.by_key and not self.by_key[key].artifact}
        if not known:  # a bench without rows does not say who is who
            return keys
        baseline = self.verdict.baseline if self.verdict else None
        ensembles = sorted((key for key in known if known[key].is_ensemble), key=lambda key: key != baseline)
        teachers = [key for key in known if known[key].role == "teacher"]
        plain = [[key for key in each if known[key].precision == "fp32"][:1] for each in (ensembles, teachers)]
        students = [key for key in known if replace(known[key], precision="fp32") == self.deployed]
        return [*students[:1], *plain[0], *plain[1], *students[1:]]

    def protagonists_anywhere(self, backend: str, keys: Iterable[str]) -> list[str]:
        """Returns the keys of `protagonists`, and of those that another backend alone could run: answers need none."""
        keys = list(keys)
        shown = self.protagonists(backend, keys)
        for other in dict.fromkeys(map(self.backend_of, keys)):
            there = {self._file_of(key) for key in shown}
            shown += [key for key in self.protagonists(other, keys) if self._file_of(key) not in there]
        return shown

    def _file_of(self, key: str) -> object:
        identity = self.by_key[key].identity if key in self.by_key else None
        return key if identity is None else (identity.network, identity.precision)

    def _all_styles(self) -> dict[Network, tuple[int, str, str]]:
        """Returns colour, shape and dash of each network: student, ensemble and teacher always have theirs."""
        networks: list[Network] = [(row.artifact, replace(row.identity, precision="fp32")) for row in self.rows]
        networks += [(None, subject) for subject in self.document.curve_identities.values()]
        styles: dict[Network, tuple[int, str, str]] = {(None, self.deployed): (0, "circle", "")}
        free = num_ensembles = 0
        for artifact, subject in dict.fromkeys(networks):
            if (artifact, subject) in styles:
                continue
            if artifact is None and subject.is_ensemble:
                styles[artifact, subject] = (1, "diamond", "2 2") if num_ensembles else (1, "square", DASHES[1])
                num_ensembles += 1
            elif artifact is None and subject.role == "teacher":
                styles[artifact, subject] = (2, "triangle", DASHES[2])
            else:
                # Colours and shapes go round out of step, so that their pairs repeat late.
                colour, shape = 3 + free % (NUM_COLOURS - 3), SHAPES[4 + (free + free // 4) % 4]
                styles[artifact, subject] = (colour, shape, DASHES[3 + free % 5])
                free += 1
        return styles
