"""The data set of a run: three splits, class names, and what determines them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from edc.data.bad_images import BadImages
from edc.data.extra import ExtraImages
from edc.data.files.classes import warn_of_absent_classes, warn_of_empty_classes
from edc.data.images import Images, MemoryImages
from edc.errors import DataError
from edc.method.kinds import View
from edc.recipe import DataSection
from edc.recipe.data_section import FILE_KINDS
from edc.seeding import generator_for

__all__ = [
    "DataSet",
    "as_looked_at",
    "channel_statistics",
    "divide",
    "left_out",
    "limit",
    "near",
    "of_files",
    "split_at",
    "stratified_limit",
    "stratified_split",
]

IMAGENET_STATISTICS = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
"""Mean and standard deviation of photographs, by the number of channels; for grey ones the mean over the three."""

MOST_BYTES_NEAR = 1 << 30
"""How many bytes of training images may lie on a GPU; CIFAR has 150 MB."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """Train, validation and test images of one size; choices are made on validation, test is only reported.

    Shapes: `image_shape` is (C, H, W). `mean` and `std` are per channel, for images in [0, 1].
    """

    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    extra: ExtraImages | None = None
    """Images without labels that students learn from, too."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def trained_on(self) -> tuple[Images, ...]:
        """The training images, and the extra ones."""
        return (self.train, *(self.extra.parts if self.extra else ()))

    def fingerprint(self) -> str:
        """Returns a digest of the labelled training and validation images, wherever they lie on disk."""
        parts = (self.train.fingerprint(), self.validation.fingerprint(), self.class_names, self.mean, self.std)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def as_looked_at(data: DataSet) -> DataSet:
    """Returns the data set for a run of an edc that read some images otherwise: those that were not found among the
    images looked at, and so are not in its digest, are an error when they are met.
    """

    def strictly(images: Images) -> Images:
        if isinstance(images, MemoryImages):  # their pixels are in the digest
            return images
        return replace(images, reading=replace(images.reading, expected=images.read_otherwise))

    extra = data.extra and replace(data.extra, parts=tuple(strictly(part) for part in data.extra.parts))
    train, validation, test = (strictly(images) for images in (data.train, data.validation, data.test))
    return replace(data, train=train, validation=validation, test=test, extra=extra)


def near(data: DataSet, device: torch.device, *, views: Sequence[View] = ()) -> DataSet:
    """Returns the data set with its training images on the GPU, where their batches are gathered and cropped then.

    Only where they are few and in memory, and all that is done with them is done there: there are no extra images
    among them, and RandAugment changes none.
    """
    images = data.train
    if device.type != "cuda" or not isinstance(images, MemoryImages) or data.extra or "randaugment" in views:
        return data
    if images.images.nbytes > MOST_BYTES_NEAR:
        return data
    return replace(data, train=MemoryImages(images.images.to(device), images.labels.to(device)))


def of_files(splits: tuple[Images, Images, Images], class_names: tuple[str, ...]) -> DataSet:
    """Returns the data set of three splits in files, normalised as photographs are."""
    shape = splits[0].image_shape
    return DataSet(*splits, class_names, shape, *IMAGENET_STATISTICS[shape[0]])


def channel_statistics(images: MemoryImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel of training images scaled to [0, 1]."""
    pixels = images.images.transpose(0, 1).flatten(1).double() / 255
    std = pixels.std(1, correction=0).clamp_min(1 / 255)
    return tuple(round(m, 4) for m in pixels.mean(1).tolist()), tuple(round(s, 4) for s in std.tolist())


def take(images: Images, indices: torch.Tensor) -> Images:
    """Returns the images at `indices` (1-d int64), in that order."""
    if isinstance(images, MemoryImages):
        return MemoryImages(images.images[indices], images.labels[indices])
    rows = indices.numpy()
    # Samples lost with damaged shards count for every part of the split.
    num_lost = min(math.ceil(images.bad.num_lost * len(rows) / max(len(images), 1)), images.bad.num_lost)
    return replace(
        images,
        names=images.names.take(rows),
        labels=images.labels[indices],
        read=_Subset(images.read, rows),
        file_bytes=images.file_bytes[indices],
        bad=BadImages(images.bad.max_fraction, num_lost=num_lost),
    )


class _Subset:
    """Reads row `rows[index]` of another reader; picklable."""

    def __init__(self, read: Callable[[int], bytes], rows: NDArray[np.int64]) -> None:
        self.read, self.rows = read, rows

    def __call__(self, index: int) -> bytes:
        return self.read(int(self.rows[index]))


def limit(images: Images, num_images: int | None) -> Images:
    """Returns the first `num_images` images, or all."""
    return images if num_images is None else take(images, torch.arange(min(num_images, len(images))))


def stratified_limit(images: Images, num_images: int | None, seed: int) -> Images:
    """Returns `num_images` images with the classes in equal proportion, or all: for data sorted by class.

    Fewer images than classes cannot be in proportion: they are drawn at random.
    """
    if num_images is None or num_images >= len(images):
        return images
    return _limited(images, num_images, seed)[1]


def _limited(images: Images, num_images: int, seed: int) -> tuple[Images, Images]:
    """Returns (the rest, what `stratified_limit` keeps)."""
    if num_images < len(set(images.labels.tolist())):
        order = torch.randperm(len(images), generator=generator_for(seed, "limit"))
        return take(images, order[num_images:].sort().values), take(images, order[:num_images].sort().values)
    return stratified_split(images, num_images, seed)


def left_out(images: Images, data: DataSection) -> Images:
    """Returns which of all training images `data.train_limit` leaves out.

    Raises:
        DataError: none.
    """
    assert data.train_limit is not None  # the recipe's rule
    if data.train_limit >= len(images):
        raise DataError(
            f"data.extra: 'remainder' is empty, because data.train_limit keeps all {len(images)} training images"
        )
    if data.kind in FILE_KINDS:  # limited by `divide`
        return _limited(images, data.train_limit, data.split_seed)[0]
    return take(images, torch.arange(data.train_limit, len(images)))


def split_at(images: Images, num_last: int) -> tuple[Images, Images]:
    """Returns all but the last `num_last` images, and those: the fixed 45,000 / 5,000 split of the papers."""
    order = torch.arange(len(images))
    return take(images, order[:-num_last]), take(images, order[-num_last:])


def stratified_split(images: Images, num_held_out: int, seed: int) -> tuple[Images, Images]:
    """Returns (rest, held out) with the classes in equal proportion, the same for the same seed."""
    from sklearn.model_selection import train_test_split

    rows, labels = torch.arange(len(images)).numpy(), images.labels.numpy()
    try:
        rest, held_out = train_test_split(rows, test_size=num_held_out, random_state=seed, stratify=labels)
    except ValueError as error:
        raise DataError(
            f"data.validation, data.test or data.train_limit: {num_held_out} of {len(images)} images cannot be set "
            f"apart with every class in both parts ({error})"
        ) from None
    return take(images, torch.from_numpy(rest)), take(images, torch.from_numpy(held_out))


def divide(
    data: DataSection,
    train: Images,
    validation: Images | None,
    test: Images | None,
    class_names: tuple[str, ...],
) -> tuple[Images, Images, Images]:
    """Returns (train, validation, test) from the splits that exist.

    A single held-out split is the test set, as in papers, and validation comes out of the training images. Unlabelled
    training images cannot give one, so the held-out split then gives both (`data.validation` images, by default half).

    Raises:
        DataError: unlabelled training images, and no images with labels beside them.
    """
    warn_of_empty_classes(train.labels, class_names)
    for name, split in (("validation", validation), ("test", test)):
        if split is not None and data.kind != "image_folder":  # which says so of its folders
            warn_of_absent_classes(split.labels, class_names, name)
    if data.unlabelled and validation is None and test is None:
        raise DataError(
            "data.unlabelled: found no val and no test split with labels beside the training images; the best epoch is "
            "chosen and the result is measured on labelled images"
        )
    if validation is None or test is None:
        only = validation if test is None else test
        if data.unlabelled and only is not None:
            test, validation = stratified_split(only, data.validation or len(only) // 2, data.split_seed)
        else:
            if only is None:
                train, test = stratified_split(train, data.test or len(train) // 10, data.split_seed)
            else:
                test = only
            train, validation = stratified_split(train, data.validation or len(train) // 10, data.split_seed)
    assert validation is not None  # one of the cases above
    assert test is not None
    return stratified_limit(train, data.train_limit, data.split_seed), validation, test
