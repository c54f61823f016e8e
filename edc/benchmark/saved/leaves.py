"""The smallest parts of bench.json: estimates and scores."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Figures",
    "Positive",
    "SavedEstimate",
    "SavedMajority",
    "SavedQuality",
    "SavedScores",
    "Section",
]

Positive = Annotated[float, Field(gt=0)]
Figures = dict[str, Any]
"""A leaf that is shown as it is."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, content: Any) -> Any:
        """Replaces null by the default, which is an empty list or the like."""
        if not isinstance(content, dict):
            return content
        fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
        empty = {name for name, field in fields.items() if field.default is not None}
        return {name: value for name, value in content.items() if value is not None or name not in empty}


class SavedEstimate(Section):
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


class SavedScores(Section):
    acc: Annotated[float, Field(ge=0, le=1)]
    nll: Annotated[float, Field(ge=0)]
    ece: float | None = None
    brier: float | None = None
    balanced_acc: float | None = None
    macro_f1: float | None = None


class SavedQuality(Section):
    raw: SavedScores
    calibrated: SavedScores | None
    calibration_temperature: float | None = None
    agreement: float | None = None

    @property
    def calibrated_nll(self) -> float | None:
        return None if self.calibrated is None else self.calibrated.nll


class SavedMajority(Section):
    """The most frequent class of the test images, and the accuracy of always saying so."""

    name: Annotated[str, Field(alias="class")]
    share: float
