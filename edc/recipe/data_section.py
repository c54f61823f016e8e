"""The data section of a recipe: which images, and how they are read. Importable without torch, as all of a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

__all__ = [
    "FILE_KINDS",
    "Count",
    "CountOrZero",
    "DataSection",
    "ExtraSection",
    "Section",
    "SidePx",
    "num_extra_rows",
    "problems_with_extra",
]

CountOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Count = Annotated[int, Field(gt=0, le=1_000_000_000)]
SidePx = Annotated[int, Field(gt=0, le=8192)]
MOST_SYNTHETIC_BYTES = 4 << 30
"""Sizes in a recipe have limits far above their use: some are memory as soon as they are read."""


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    later_than_first: ClassVar[tuple[str, ...]] = ()
    """Fields that recipes of edc 0.1.0 did not have; their default is None. They are written only if given, so that
    digests of runs and teachers by older edcs still hold."""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = dump(self)
        return {key: value for key, value in document.items() if value is not None or key not in self.later_than_first}


FILE_KINDS = ("image_folder", "parquet", "webdataset")
FIELDS_OF_KINDS = {
    "image_size": ("image_folder", "parquet", "webdataset", "synthetic", "cifar10", "cifar100", "fashion_mnist"),
    "crop_fraction": FILE_KINDS,
    "test": ("digits", "image_folder", "parquet", "webdataset", "synthetic"),
    "unlabelled": FILE_KINDS,
    "channels": FILE_KINDS,
    "orientation": FILE_KINDS,
    "max_bad_fraction": FILE_KINDS,
    "image_column": ("parquet", "cifar10", "cifar100", "fashion_mnist"),
    "label_column": ("parquet", "cifar10", "cifar100", "fashion_mnist"),
    "num_images": ("synthetic",),
}
"""Fields of the data section that only some kinds read; other kinds would silently ignore them."""


EXTRA_FIELDS_OF_KINDS = {
    "root": (*FILE_KINDS, "cifar10", "cifar100", "fashion_mnist"),
    "download": ("cifar10", "cifar100", "fashion_mnist"),
    "max_bad_fraction": ("remainder", *FILE_KINDS),
    "image_column": ("parquet", "cifar10", "cifar100", "fashion_mnist"),
    "num_images": ("synthetic",),
}


class ExtraSection(Section):
    """Images without labels, or with labels that are ignored; written `remainder` or as a mapping.

    They are resized and augmented as the labelled ones are. `remainder`: the training images of the labelled set that
    `data.train_limit` leaves out.
    """

    kind: Literal[
        "remainder", "fashion_mnist", "cifar10", "cifar100", "image_folder", "parquet", "webdataset", "synthetic"
    ]
    root: Path | None = None
    """For `image_folder`: images anywhere under `root/train`, or under `root` if it has no such folder. For the other
    kinds: as `data.root`; the training split is read. On the command line: `--set data.extra.root=...`, or
    `data.extra.0.root` if `extra` is a list; `--data-root` sets `data.root` alone."""
    unlabelled: Literal[True] = True
    download: bool = True
    limit: Count | None = None
    """Keep only this many, drawn at random."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """As `data.max_bad_fraction`, for these images."""
    image_column: str | None = None
    num_images: Count = 256
    """Images that `synthetic` makes."""

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field, kinds in EXTRA_FIELDS_OF_KINDS.items():
            if self.kind not in kinds and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} has no effect with kind {self.kind!r} (only with {', '.join(kinds)})")
        return self


class DataSection(Section):
    """Which images. `root` is where they are; `--data-root` on the command line overrides it."""

    later_than_first: ClassVar[tuple[str, ...]] = ("channels", "orientation")
    kind: Literal[
        "digits", "fashion_mnist", "cifar10", "cifar100", "image_folder", "parquet", "webdataset", "synthetic"
    ]
    root: Path | None = None
    """A folder; for `webdataset` also any fsspec address (s3://bucket/folder, gs://..., memory://...)."""
    download: bool = True
    train_limit: Count | None = None
    """Keep only this many training images, the first ones (after the validation split)."""
    validation: Count | None = None
    """Images held out of the training split; None: the kind's own default, or an image folder's `val`."""
    test: Count | None = None
    """Images held out for test if the data has no test split (image_folder, parquet, webdataset)."""
    unlabelled: bool = False
    """The training images have no labels (a `train` folder without class folders, shards without .cls, parquet without
    a label column). Only with your own teachers and alpha 1. Validation and test images still need labels."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest share of training images that may be unreadable. Each is replaced by another of its class; the rest of
    a truncated shard is left out; all are named. 0: the first one ends the run, as it always does in validation and
    test images."""
    split_seed: int = 0
    image_size: SidePx | None = None
    """Side of the square that images are resized and cropped to; None: their own size."""
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Evaluation crop / resized side; None: 0.875 from 128 px up, 1 below."""
    channels: Literal[1, 3] | None = None
    """1: all images become grey, 3: RGB. None: RGB; parquet without an `image_size` is grey if no image has colour."""
    orientation: Literal["exif", "stored"] | None = None
    """`exif`, the default: images are turned upright as their EXIF data says. `stored`: they are not, as torchvision
    and timm read them; except TIFF, which Pillow always turns."""
    augmentation: Literal["none", "crop", "crop_flip", "resized_crop", "resized_crop_flip"] = "crop_flip"
    """Changes to training images. `crop`: padded by `crop_padding` and cropped back at random. `resized_crop`: a random
    area, resized. `_flip`: half of them mirrored, too; not where left and right differ in meaning, as in writing."""
    crop_padding: Annotated[int, Field(ge=0, le=8192)] = 4
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 4
    image_column: str | None = None
    label_column: str | None = None
    num_classes: Count | None = None
    """Expected number of classes, checked against the data; `synthetic` makes this many."""
    num_images: Count = 256
    """Training images that `synthetic` makes."""
    extra: tuple[ExtraSection, ...] = ()
    """Images without labels from which students learn in addition; one section, or a list. Teachers are trained on the
    labelled images alone."""
    extra_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of extra images in each batch of a student. An epoch still goes through the labelled images once:
    at 0.5 it has twice as many steps as without."""

    @property
    def flips(self) -> bool:
        """Whether half of the training images are mirrored."""
        return self.augmentation.endswith("_flip")

    @property
    def crops_areas(self) -> bool:
        """Whether a training image is a random area, cut out when its file is read."""
        return self.augmentation.startswith("resized_crop")

    @field_validator("extra", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else () if value is None else (value,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crops_areas and (self.kind not in FILE_KINDS or not self.image_size):
            raise ValueError(
                f"augmentation {self.augmentation!r} is for 'image_folder', 'parquet' and 'webdataset' with an "
                "image_size"
            )
        for field, kinds in FIELDS_OF_KINDS.items():
            if self.kind not in kinds and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} has no effect with kind {self.kind!r} (only with {', '.join(kinds)})")
        if self.kind in ("image_folder", "webdataset") and self.image_size is None:
            raise ValueError(f"image_size is needed for {self.kind!r} (for example 224)")
        if self.kind == "synthetic" and self._synthetic_bytes() > MOST_SYNTHETIC_BYTES:
            found = f"{self.num_images} images of {self.image_size or 16} px and {self.num_classes or 4} classes"
            raise ValueError(f"num_images: found {found}, which need more than {MOST_SYNTHETIC_BYTES >> 30} GiB")
        return self

    def _synthetic_bytes(self) -> int:
        held_out = (self.validation or 0) + (self.test or 0) + 2 * (self.num_classes or 0)
        return (self.num_images + held_out) * 3 * 4 * (self.image_size or 16) ** 2

    def without_download(self) -> "DataSection":
        """Returns this section without downloads: it is read from disk alone."""
        extra = tuple(section.model_copy(update={"download": False}) for section in self.extra)
        return self.model_copy(update={"download": False, "extra": extra})

    def operated_as(self, other: "DataSection") -> "DataSection":
        """Returns this section with those fields of `other` (same identity) that may change in the middle of a run."""
        free = ("root", "download", "num_workers", "max_bad_fraction", "extra")
        return self.model_copy(update={field: getattr(other, field) for field in free})

    def identity(self) -> dict[str, Any]:
        """Returns what identifies a run: the section without the images' place and the way they are fetched.

        Fields that may change in the middle of a run have their defaults, so that digests of older edcs still hold.
        """
        document = self.model_dump(mode="json", exclude={"root", "download", "num_workers"})
        for section in (document, *document["extra"]):
            section["max_bad_fraction"] = 0.0
        for section in document["extra"]:
            del section["root"], section["download"]
        if not self.extra:
            del document["extra"], document["extra_share"]
        return document


def num_extra_rows(batch_size: int, share: float) -> int:
    """Returns how many rows of a batch are extra images."""
    return round(batch_size * share)


def problems_with_extra(data: DataSection, *, batch_size: int, learns: Mapping[str, bool]) -> list[str]:
    """Returns what is wrong with `data.extra`, and with the students that learn from it (`learns`)."""
    problems = []
    if not data.extra:
        if data.extra_share != DataSection.model_fields["extra_share"].default:
            problems.append(f"data.extra_share: found {data.extra_share:g}, which has no effect without data.extra")
        return problems + [
            f"students.{name}.extra: found false, which has no effect without data.extra; leave it out"
            for name, does in learns.items()
            if not does
        ]
    if data.unlabelled:
        problems.append(
            "data.extra: with data.unlabelled no training image has a label anyway; put all of them under data.root"
        )
    if not any(learns.values()):
        problems.append("data.extra: every student says extra: false, so nobody would learn from these images")
    if not 0 < num_extra_rows(batch_size, data.extra_share) < batch_size:
        problems.append(
            f"data.extra_share: {data.extra_share:g} of a batch of {batch_size} images is "
            f"{num_extra_rows(batch_size, data.extra_share)}; expected some of each kind"
        )
    kinds = [extra.kind for extra in data.extra]
    if "remainder" in kinds and data.train_limit is None:
        problems.append("data.extra: 'remainder' is what data.train_limit leaves out; found no train_limit")
    if kinds.count("remainder") > 1:
        problems.append("data.extra: 'remainder' is there twice; keep one of them")
    for kind in kinds:
        read_as = data.kind if kind == "remainder" else kind
        if read_as in ("image_folder", "webdataset") and data.image_size is None:
            problems.append(f"data.image_size: needed for data.extra of kind {kind!r}")
        if read_as not in FILE_KINDS and data.crops_areas:
            problems.append(f"data.extra: {kind!r} is held in memory, which {data.augmentation!r} is not for")
    for extra in data.extra:
        if extra.kind == "remainder" and data.kind not in FILE_KINDS and extra.max_bad_fraction:
            problems.append(f"data.extra: max_bad_fraction has no effect with data.kind {data.kind!r}")
    return problems
