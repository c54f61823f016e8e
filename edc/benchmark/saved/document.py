"""bench.json: its one schema. The page, `--compare` and every other reader use it.

Fields that nobody reads are not declared and are ignored. A page shows the parts that exist (`BenchDocument`). A
comparison needs the parts that every bench has (`WholeBench`).
"""

from typing import Annotated, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from edc.benchmark.keys import row_key
from edc.benchmark.packed import unpacked
from edc.benchmark.saved.leaves import (
    Figures,
    Positive,
    SavedEstimate,
    SavedMajority,
    SavedQuality,
    SavedScores,
    Section,
)
from edc.benchmark.saved.old import with_identities
from edc.errors import RequestError
from edc.runs.documents.by_class import SavedByClass
from edc.subject import Subject

__all__ = [
    "SCHEMA_VERSION",
    "BenchDocument",
    "SavedAgainst",
    "SavedDetail",
    "SavedEnvironment",
    "SavedEstimate",
    "SavedQuality",
    "SavedRow",
    "SavedScores",
    "SavedVerdict",
    "WholeBench",
    "bench_document",
    "whole_bench",
]

SCHEMA_VERSION = 2


class SavedAgainst(Section):
    """A row compared with another row, which its key names."""

    baseline: str
    basis: str | None = None
    speedup: SavedEstimate | None = None
    accuracy: Figures | None = None
    accuracy_baseline: str | None = None
    flops_ratio: float | None = None
    throughput_ratio: float | None = None
    doubts: tuple[str, ...] = ()


class SavedRow(Section):
    """One subject on one backend at one batch size."""

    identity: Subject
    backend: str
    batch: Annotated[int, Field(gt=0)]
    artifact: str | None = None
    precision: str | None = None
    """The precision that really ran."""
    what_ran: Figures | None = None
    p50_ms: SavedEstimate | None = None
    p90_ms: SavedEstimate | None = None
    p99_ms: SavedEstimate | None = None
    images_per_second: float | None = None
    num_samples: int = 0
    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_memory_bytes: float | None = None
    file_bytes: float | None = None
    parameters: int | None = None
    dee: float | None = None
    dee_at_least: int | None = None
    quality: SavedQuality | None = None
    against: tuple[SavedAgainst, ...] = ()
    flags: tuple[str, ...] = ()
    reason_not_run: str | None = None
    round_medians_ms: dict[int, float] = Field(default_factory=dict)
    probe_us: Positive | None = None
    waited: float | None = None
    latency_quantiles_ms: tuple[float, ...] | None = None
    parts_ms: dict[str, SavedEstimate | None] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """The row's name, like `RowSpec.key`."""
        return row_key(self.identity.label, self.backend, self.artifact)

    @property
    def network(self) -> str:
        """The row's name without its backend."""
        return self.identity.label if self.artifact is None else f"{self.artifact}: {self.identity.label}"


class WholeRow(SavedRow):
    """A row of a whole bench, which also says what it could not measure."""

    p50_ms: SavedEstimate | None
    quality: SavedQuality | None
    flags: tuple[str, ...]
    reason_not_run: str | None


class SavedEnvironment(Section):
    """Fields that must be equal (cpu, gpu, threads), that only cause a warning, or that are only shown."""

    model_config = ConfigDict(extra="allow")

    cpu: str | None = None
    num_cpus: int | None = None
    memory_bytes: int | None = None
    system: str | None = None
    python: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    threads: int | None = None
    governor: str | None = None
    turbo: bool | None = None
    started: str | None = None
    gpu: str | None = None
    flags: tuple[str, ...] = ()


class WholeEnvironment(SavedEnvironment):
    """The environment of a whole bench, which is always known."""

    cpu: str
    threads: int


class SavedVerdict(Section):
    """The statement about one row against the ensemble's best form, both named by key."""

    sentences: tuple[str, ...] = ()
    baseline: str
    row: str
    batch: int


class SavedDetail(Section):
    """`correct`: which test images the row is right on, as `packed.packed` writes it."""

    correct: str | None = None
    reliability: dict[str, tuple[Figures, ...] | None] | None = None
    robustness: tuple[Figures, ...] | None = None
    by_class: SavedByClass | None = None


class BenchDocument(Section):
    """A bench of which parts may be missing or null."""

    schema_version: int | None = None
    artifact: str = ""
    deploy: str = ""
    ensemble_size: int | None = None
    command: str | None = None
    quick: bool = False
    seed: int | None = None
    class_names: tuple[str, ...] = ()
    num_test_images: Annotated[int, Field(ge=0)] = 0
    test_digest: str | None = None
    majority: SavedMajority | None = None
    plan: dict[str, Any] = Field(default_factory=dict)
    environment: SavedEnvironment = SavedEnvironment()
    verdict: SavedVerdict | None = None
    rows: tuple[SavedRow, ...] = ()
    details: dict[str, SavedDetail] = Field(default_factory=dict)
    throughput: tuple[Figures, ...] = ()
    server: tuple[Figures, ...] = ()
    disagreements: Figures | None = None
    curves: dict[str, tuple[Figures, ...]] = Field(default_factory=dict)
    curve_identities: dict[str, Subject] = Field(default_factory=dict)

    @field_validator("verdict", mode="before")
    @classmethod
    def _empty_is_none(cls, verdict: Any) -> Any:
        return verdict or None

    @model_validator(mode="before")
    @classmethod
    def _with_identities(cls, document: Any) -> Any:
        return with_identities(document) if isinstance(document, dict) else document

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in self.details:
            try:
                self.correct(key)
            except ValueError as error:
                raise ValueError(f"details.{key}.correct: {error}") from None
        seen: set[tuple[str, int]] = set()
        for row in self.rows:
            if (row.key, row.batch) in seen:
                raise ValueError(f"{row.key} at batch {row.batch} is there twice")
            seen.add((row.key, row.batch))
        return self

    def correct(self, key: str) -> NDArray[np.bool_] | None:
        """Returns which test images (N,) the row is right on; None if the bench does not say."""
        text = self.details[key].correct if key in self.details else None
        return None if text is None else unpacked(text, num_images=self.num_test_images)


class WholeBench(BenchDocument):
    """The parts of a bench that are compared, and those that must be equal for that."""

    artifact: str
    deploy: str
    class_names: tuple[str, ...]
    num_test_images: Annotated[int, Field(ge=0)]
    plan: dict[str, Any]
    environment: WholeEnvironment
    rows: Annotated[tuple[WholeRow, ...], Field(min_length=1)]


Read = TypeVar("Read", bound=BenchDocument)


def bench_document(document: dict[str, Any], *, name: str = "bench") -> BenchDocument:
    """Returns the parts of a bench that the document has; raises `RequestError` as `whole_bench` does."""
    return _read(BenchDocument, document, name)


def whole_bench(document: dict[str, Any], *, name: str) -> WholeBench:
    """Returns a bench; raises `RequestError` with `name` and the first thing that is wrong or missing."""
    return _read(WholeBench, document, name)


def _read(kind: type[Read], document: dict[str, Any], name: str) -> Read:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first, *others = error.errors()
        place = ".".join(str(part) for part in first["loc"]) or "document"
        more = f" (and {len(others)} more)" if others else ""
        raise RequestError(f"{name}: {place}: {first['msg']}{more}; not what `edc bench` writes") from None
