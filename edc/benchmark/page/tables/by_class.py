"""The tables of classes, for a bench's page and a run's: recall and precision per class, and who is taken for whom."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edc.benchmark.page.document import Bench
from edc.benchmark.page.numbers import fixed
from edc.benchmark.page.tables.table import Cell, Line, Table
from edc.runs.documents.by_class import SavedByClass

__all__ = ["class_tables", "class_tables_of"]

MOST_LINES = 50
MOST_IN_A_MATRIX = 20
MOST_PAIRS = 20


def class_tables_of(bench: Bench) -> list[Table]:
    """Returns the tables of the verdict's row and of what it is compared with; none for an older bench."""
    known = {key: each.by_class for key, each in bench.details.items() if each.by_class is not None}
    first = bench.verdict.row if bench.verdict else ""
    order = sorted(known, key=lambda key: key != first)
    return class_tables(bench.document.class_names, {bench.subject_of(key): known[key] for key in order})


def class_tables(names: Sequence[str], networks: Mapping[str, SavedByClass]) -> list[Table]:
    """Returns recall and precision per class of each network, and the confusion matrix of the first, the student's."""
    if not networks or any(len(each.images) != len(names) for each in networks.values()):
        return []
    name, student = next(iter(networks.items()))
    return [_classes(names, networks, student), *_confusion(names, name, student)]


def _classes(names: Sequence[str], networks: Mapping[str, SavedByClass], student: SavedByClass) -> Table:
    shown = list(range(len(names)))
    note = "recall: the share of a class's images that are recognised; precision: the share of its predictions right."
    if len(shown) > MOST_LINES:
        shown.sort(key=lambda k: (student.recall[k] is None, student.recall[k]))
        note += f" The {MOST_LINES} classes of {len(names)} with the lowest recall of the first network."
    lines = []
    for k in shown[:MOST_LINES]:
        figures = (figure for each in networks.values() for figure in (each.recall[k], each.precision[k]))
        lines.append(Line((names[k], f"{student.images[k]:,}", *(fixed(share, 1, scale=100) for share in figures))))
    measures = [f"{network}: {measure} %" for network in networks for measure in ("recall", "precision")]
    return Table(
        "classes", "Per class, on test images", ("class", "images", *measures), (("", tuple(lines)),), note=note
    )


def _confusion(names: Sequence[str], network: str, student: SavedByClass) -> list[Table]:
    matrix = student.confusion
    if matrix is None:
        return []
    title = f"What {network} takes for what"
    if len(names) <= MOST_IN_A_MATRIX:
        matrix_lines = tuple(
            Line((names[label], *(_cell(number, is_right=label == k) for k, number in enumerate(row))))
            for label, row in enumerate(matrix)
        )
        note = "Images: one line per label, one column per predicted class; bold: right."
        return [Table("confusion", title, ("label", *names), (("", matrix_lines),), note=note)]
    pairs = [(number, a, b) for a, row in enumerate(matrix) for b, number in enumerate(row) if number and a != b]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    lines = [
        Line((names[a], names[b], f"{number:,}", fixed(number / student.images[a], 1, scale=100)))
        for number, a, b in pairs[:MOST_PAIRS]
    ]
    columns = ("label", "taken for", "images", "of its images %")
    note = f"The {len(lines)} most frequent of {len(pairs)} mistakes; bench.json or summary.json has the whole matrix."
    return [Table("confusion", title, columns, (("", tuple(lines)),), 2, note)]


def _cell(number: int, *, is_right: bool) -> Cell:
    return Markup("<b>{}</b>").format(f"{number:,}") if is_right else f"{number:,}" if number else ""
