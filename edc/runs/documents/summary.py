"""summary.json: its one schema, for every reader.

It declares what edc reads back. Fields that are only shown are not declared and are kept as they are.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edc.runs.documents.by_class import SavedByClass
from edc.runs.rows import rows_by_subject
from edc.subject import Role

__all__ = ["SavedSummary"]

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Nats = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class _Scores(_Section):
    acc: Share
    nll: Nats
    ece: float | None = None
    brier: float | None = None
    balanced_acc: Share | None = None
    macro_f1: Share | None = None


class _Validation(_Section):
    acc: Share
    nll: Nats
    calibrated_nll: Nats


class _Training(_Section):
    units: Annotated[float, Field(ge=0)]


class _Row(_Section):
    subject: str
    kind: Role
    name: str | None = None
    member: Count | None = None
    parameters: Count
    forwards: Count
    raw: _Scores
    calibrated: _Scores
    calibration_temperature: Annotated[float | None, Field(gt=0)] = None
    dee: float | None = None
    diversity: dict[str, float] | float | None = None
    validation: _Validation | None = None
    training: _Training | None = None
    member_form: Literal["joint", "sequential"] | None = None
    started_from_teacher: Count | None = None
    by_class: SavedByClass | None = None


class _Majority(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(alias="class")]
    share: Share


class _Data(_Section):
    train: Count
    validation: Count
    test: Count
    classes: tuple[str, ...] | None = None
    majority: _Majority | None = None


class SavedSummary(_Section):
    schema_version: Literal[1] = 1
    name: str
    run: str
    recipe_sha256: str
    seed: int
    deploy: str
    data: _Data
    ensemble_size: Annotated[int, Field(ge=1)]
    ensemble_calibrated_nll_by_size: tuple[float, ...]
    chosen: dict[str, dict[str, Any]] = {}
    rows: Annotated[tuple[_Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_row_per_network(self) -> "SavedSummary":
        found = rows_by_subject({"rows": [row.model_dump() for row in self.rows]})
        if len(found) < len(self.rows):
            raise ValueError("rows: two of them are about one network")
        known = [row.by_class.images for row in self.rows if row.by_class]
        if any(len(images) != len(self.data.classes or ()) for images in known):
            raise ValueError("rows: by_class is of other classes than data.classes")
        return self
