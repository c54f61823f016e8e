"""The results of a bench, and their document: bench.json, the only source of the report."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from edc.benchmark.environment import Environment
from edc.benchmark.judge.rows import Row, plain
from edc.benchmark.judge.verdict import BenchVerdict
from edc.benchmark.measure.curves import CurvePoint
from edc.benchmark.measure.disagreements import Disagreements
from edc.benchmark.measure.quality import Reliability
from edc.benchmark.measure.server import ServerLoad
from edc.benchmark.measure.sweep import Throughput
from edc.benchmark.saved.document import SCHEMA_VERSION
from edc.benchmark.teachers import Teachers
from edc.benchmark.workers.timing import TimingPlan
from edc.metrics import ByClass
from edc.subject import Subject

__all__ = ["BenchResult"]


@dataclass(frozen=True)
class BenchResult:
    """All rows of a bench, and what they were measured on. What goes by key goes by `Row.key`."""

    artifact: str
    deploy: str
    ensemble_size: int
    command: str
    quick: bool
    seed: int
    num_test_images: int
    num_validation_images: int
    test_digest: str
    """Of the numbers and labels of the test images that quality was taken on."""
    class_names: tuple[str, ...]
    plan: TimingPlan
    environment: Environment
    rows: tuple[Row, ...]
    parameters: dict[str, int]
    flops: dict[str, int]
    """Per image; two per multiply-add."""
    dee: dict[str, float | None]
    """Of what is not the ensemble itself: 0 is worse than one teacher, None better than all."""
    students: frozenset[str] = frozenset()
    """The rows that are the student to be deployed."""
    verdict: BenchVerdict | None = None
    correct: dict[str, str] = field(default_factory=dict)
    """Which test images each row is right on, as `packed.packed` writes it."""
    reliability: dict[str, Reliability] = field(default_factory=dict)
    robustness: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    by_class: dict[str, ByClass] = field(default_factory=dict)
    """Of the student, the ensemble and the teacher that the verdict is about."""
    few_classes: dict[str, str] = field(default_factory=dict)
    """Of each row that predicts one or few classes, or leaves one out, in words."""
    teachers: Teachers = field(default_factory=Teachers)
    majority: tuple[str, float] | None = None
    """The most frequent class of the test images, and its share: the accuracy of always saying so."""
    sweep_batches: tuple[int, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    server: tuple[ServerLoad, ...] = ()
    disagreements: Disagreements | None = None
    curves: dict[Subject, tuple[CurvePoint, ...]] = field(default_factory=dict)

    def _of_subject(self, key: str) -> dict[str, Any]:
        """Returns what does not depend on the batch; `dee_at_least` stands in where no `dee` can be read off."""
        is_better_than_all = key in self.dee and self.dee[key] is None
        return {
            "parameters": self.parameters.get(key),
            "flops": self.flops.get(key),
            "dee": self.dee.get(key),
            "dee_at_least": self.ensemble_size if is_better_than_all else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the document, of JSON values only."""
        return {
            "schema_version": SCHEMA_VERSION,
            "artifact": self.artifact,
            "deploy": self.deploy,
            "ensemble_size": self.ensemble_size,
            "command": self.command,
            "quick": self.quick,
            "seed": self.seed,
            "num_test_images": self.num_test_images,
            "num_validation_images": self.num_validation_images,
            "test_digest": self.test_digest,
            "class_names": list(self.class_names),
            "teachers": _document(self.teachers),
            "majority": None if self.majority is None else dict(zip(("class", "share"), self.majority, strict=True)),
            "plan": dataclasses.asdict(self.plan),
            "environment": self.environment.to_json(),
            "verdict": None if self.verdict is None else _document(self.verdict),
            "rows": [{**row.to_json(), **self._of_subject(row.key)} for row in self.rows],
            "details": {
                key: {
                    "reliability": _document(diagram),
                    "robustness": self.robustness.get(key, []),
                    "correct": self.correct.get(key),
                    "by_class": _document(self.by_class[key]) if key in self.by_class else None,
                    "few_classes": self.few_classes.get(key),
                }
                for key, diagram in self.reliability.items()
            },
            "sweep_batches": list(self.sweep_batches),
            "throughput": [{**_document(each), "best_batch": each.best_batch} for each in self.throughput],
            "server": [_document(each) for each in self.server],
            "disagreements": None if self.disagreements is None else _disagreements(self.disagreements),
            "curves": {each.label: [_document(point) for point in curve] for each, curve in self.curves.items()},
            "curve_identities": {each.label: dataclasses.asdict(each) for each in self.curves},
        }


def _disagreements(found: Disagreements) -> dict[str, Any]:
    document: dict[str, Any] = _document(found)
    for image in document["images"]:
        for who in ("student", "ensemble"):
            image[who]["class"] = image[who].pop("class_index")  # not a name in Python
    return document


def _document(record: Any) -> Any:
    return plain(dataclasses.asdict(record))
