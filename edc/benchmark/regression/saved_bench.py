"""A `bench.json` of an earlier run, read and checked: as much of it as a comparison needs."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edc.benchmark.packed import unpacked
from edc.errors import RequestError

__all__ = ["SCHEMA_VERSION", "SavedBench", "SavedEstimate", "SavedRow", "load_saved", "saved_bench"]

SCHEMA_VERSION = 2
FILE_NAME = "bench.json"

Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class SavedEstimate(_Section):
    """A positive figure (a time, a ratio of times) and its interval."""

    value: Positive
    low: Positive | None
    high: Positive | None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.low or self.value, self.high or self.value
        if not low <= self.value <= high:
            raise ValueError(f"{self.value:g} is not between {low:g} and {high:g}")
        return self


class SavedScores(_Section):
    acc: Annotated[float, Field(ge=0, le=1)]
    nll: Annotated[float, Field(ge=0)]


class SavedQuality(_Section):
    raw: SavedScores
    calibrated: SavedScores | None


class SavedRow(_Section):
    """One subject on one backend at one batch size."""

    subject: str
    backend: str
    batch: Annotated[int, Field(gt=0)]
    artifact: str | None = None
    p50_ms: SavedEstimate | None
    round_medians_ms: dict[int, float] = {}
    probe_us: Positive | None = None
    quality: SavedQuality | None
    flags: tuple[str, ...]
    reason_not_run: str | None

    @property
    def key(self) -> str:
        """Returns the name that the row has in bench.json: as `RowSpec.key`, after its artifact if that is another."""
        name = f"{self.subject} on {self.backend}"
        return name if self.artifact is None else f"{self.artifact}: {name}"


class SavedEnvironment(_Section):
    """What must be alike (cpu, gpu, threads), and what only causes a warning."""

    cpu: str
    gpu: str | None = None
    threads: int
    num_cpus: int | None = None
    governor: str | None = None
    turbo: bool | None = None
    system: str | None = None
    python: str | None = None
    packages: dict[str, str] = {}
    flags: tuple[str, ...] = ()


class SavedDetail(_Section):
    """`correct`: which test images the row is right on, as `packed.packed` writes it."""

    correct: str | None = None


class SavedBench(_Section):
    """What is compared, and what must be alike for that."""

    artifact: str
    deploy: str
    class_names: tuple[str, ...]
    num_test_images: Annotated[int, Field(ge=0)]
    test_digest: str | None = None
    details: dict[str, SavedDetail] = {}
    plan: dict[str, Any]
    environment: SavedEnvironment
    rows: Annotated[tuple[SavedRow, ...], Field(min_length=1)]

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
        """Returns which test images (N,) the row is right on, if the bench says so."""
        text = self.details[key].correct if key in self.details else None
        return None if text is None else unpacked(text, num_images=self.num_test_images)


def load_saved(path: Path) -> dict[str, Any]:
    """Returns the document of a saved bench, checked.

    Args:
        path: a bench.json, or the artifact it is in.

    Raises:
        RequestError: it is missing, not JSON, of another version, or not what `edc bench` writes.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"{file}: not found; a saved bench is the {FILE_NAME} that `edc bench` wrote") from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise RequestError(f"{file}: not JSON ({error}); save the {FILE_NAME} of `edc bench` again") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise RequestError(
            f"{file}: schema_version is {version!r}, this edc compares version {SCHEMA_VERSION}; "
            "run `edc bench` again and save what it writes"
        )
    saved_bench(document, name=str(file))
    return document


def saved_bench(document: dict[str, Any], *, name: str) -> SavedBench:
    """Returns the typed part of a document; raises `RequestError` with `name` and the first thing that is wrong."""
    try:
        return SavedBench.model_validate(document)
    except ValidationError as error:
        first, *others = error.errors()
        place = ".".join(str(part) for part in first["loc"]) or "document"
        more = f" (and {len(others)} more)" if others else ""
        raise RequestError(f"{name}: {place}: {first['msg']}{more}; not what `edc bench` writes") from None
