"""The figures per class in summary.json and bench.json: one schema for both."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["SavedByClass"]

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SavedByClass(BaseModel):
    """What a network makes of each class, all K long; `confusion` is (K, K), by label and predicted class."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    images: tuple[Count, ...]
    predicted: tuple[Count, ...]
    precision: tuple[Share | None, ...]
    recall: tuple[Share | None, ...]
    confusion: tuple[tuple[Count, ...], ...] | None = None

    @model_validator(mode="after")
    def _of_the_same_classes(self) -> Self:
        columns: list[tuple[Any, ...]] = [self.images, self.predicted, self.precision, self.recall]
        columns += [self.confusion, *self.confusion] if self.confusion is not None else []
        if len({len(column) for column in columns}) > 1 or not sum(self.images) or not sum(self.predicted):
            raise ValueError("images, predicted, precision, recall and confusion are not of the same classes")
        return self
