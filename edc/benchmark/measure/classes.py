"""What the rows of a bench make of each class: who predicts few of them, and the figures of those it is about."""

from collections.abc import Sequence

from edc import metrics
from edc.benchmark.judge.rows import Row
from edc.benchmark.judge.verdict import BenchVerdict
from edc.benchmark.measure.quality import Qualities
from edc.metrics import ByClass

__all__ = ["few_classes_of", "figures_by_class"]


def few_classes_of(qualities: Qualities, class_names: Sequence[str]) -> dict[str, str]:
    """Returns, by key, that a row predicts one or few classes, in words; the other rows are not there."""
    found = {
        spec.key: metrics.in_words(each.images, each.predicted, class_names)
        for spec, each in qualities.by_class.items()
    }
    return {key: words for key, words in found.items() if words}


def figures_by_class(rows: Sequence[Row], verdict: BenchVerdict | None, qualities: Qualities) -> dict[str, ByClass]:
    """Returns, by key, the figures of the verdict's row and of the rows that it is compared with."""
    row = next((row for row in rows if verdict and (row.key, row.batch) == (verdict.row, verdict.batch)), None)
    keys = [] if row is None else [row.key, *(each.accuracy_baseline for each in row.against)]
    return {spec.key: each for spec, each in qualities.by_class.items() if spec.key in keys}
