"""The data section of a recipe: which images, and how they are read. Importable without torch, as all of a recipe."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

__all__ = ["DataSection", "Section"]


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later_than_first: ClassVar[tuple[str, ...]] = ()
    """Fields that recipes of edc 0.1.0 did not have, whose default is None: written only where they are given, so that
    digests of older edcs, of runs and of teachers, still hold."""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = dump(self)
        return {key: value for key, value in document.items() if value is not None or key not in self.later_than_first}


FIELDS_OF_KINDS = {
    "image_size": ("image_folder", "parquet", "webdataset", "synthetic", "cifar10", "cifar100", "fashion_mnist"),
    "crop_fraction": ("image_folder", "parquet", "webdataset"),
    "test": ("digits", "image_folder", "parquet", "webdataset", "synthetic"),
    "unlabelled": ("image_folder", "parquet", "webdataset"),
    "max_bad_fraction": ("image_folder", "parquet", "webdataset"),
    "image_column": ("parquet", "cifar10", "cifar100", "fashion_mnist"),
    "label_column": ("parquet", "cifar10", "cifar100", "fashion_mnist"),
    "num_images": ("synthetic",),
}
"""Fields of the data section that only some kinds look at: elsewhere they would be silently without effect."""


class DataSection(Section):
    """Which images. `root` is where they are; `--data-root` on the command line overrides it."""

    kind: Literal[
        "digits", "fashion_mnist", "cifar10", "cifar100", "image_folder", "parquet", "webdataset", "synthetic"
    ]
    root: Path | None = None
    """A folder; for `webdataset` also any fsspec address (s3://bucket/folder, gs://..., memory://...)."""
    download: bool = True
    train_limit: PositiveInt | None = None
    """Keep only the first so many training images (after the validation split)."""
    validation: PositiveInt | None = None
    """Images held out of the training split; None: the kind's own default, or an image folder's `val`."""
    test: PositiveInt | None = None
    """Images held out for test where the data comes without a test split (image_folder, parquet, webdataset)."""
    unlabelled: bool = False
    """The training images have no labels (a `train` folder without class folders, shards without .cls, parquet without
    a label column). Only with one's own teachers and alpha 1; validation and test images still need labels."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest part of the training images that may be unreadable: each is replaced by another of its class, the rest
    of a truncated shard is left out, and all are named. 0: the first one ends the run, as it always does in validation
    and test images."""
    split_seed: int = 0
    image_size: PositiveInt | None = None
    """Side of the square that images are resized and cropped to; None: their own size."""
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Evaluation crop / resized side; None: 0.875 from 128 px up, 1 below."""
    augmentation: Literal["none", "crop", "crop_flip", "resized_crop_flip"] = "crop_flip"
    crop_padding: NonNegativeInt = 4
    num_workers: NonNegativeInt = 4
    image_column: str | None = None
    label_column: str | None = None
    num_classes: PositiveInt | None = None
    """Expected number of classes; checked against the data, and the number that `synthetic` makes."""
    num_images: PositiveInt = 256
    """Training images that `synthetic` makes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.augmentation == "resized_crop_flip" and (
            self.kind not in ("image_folder", "parquet", "webdataset") or not self.image_size
        ):
            raise ValueError(
                "augmentation 'resized_crop_flip' is for 'image_folder', 'parquet' and 'webdataset' with an image_size"
            )
        for field, kinds in FIELDS_OF_KINDS.items():
            if self.kind not in kinds and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} has no effect with kind {self.kind!r} (only with {', '.join(kinds)})")
        if self.kind in ("image_folder", "webdataset") and self.image_size is None:
            raise ValueError(f"image_size is needed for {self.kind!r} (for example 224)")
        return self
