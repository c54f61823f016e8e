"""The data set of a run: three splits, class names, and what determines them."""

import hashlib
from dataclasses import dataclass

import torch

from edc.data.images import FileImages, Images, MemoryImages
from edc.errors import DataError

__all__ = ["DataSet", "channel_statistics", "limit", "split_at", "stratified_limit", "stratified_split"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Returns a digest of the training and validation images, wherever they lie on disk."""
        parts = (self.train.fingerprint(), self.validation.fingerprint(), self.class_names, self.mean, self.std)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def channel_statistics(images: MemoryImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel of training images scaled to [0, 1]."""
    pixels = images.images.transpose(0, 1).flatten(1).double() / 255
    std = pixels.std(1, correction=0).clamp_min(1 / 255)
    return tuple(round(m, 4) for m in pixels.mean(1).tolist()), tuple(round(s, 4) for s in std.tolist())


def take(images: Images, indices: torch.Tensor) -> Images:
    """Returns the images at `indices` (1-d int64), in that order."""
    if isinstance(images, MemoryImages):
        return MemoryImages(images.images[indices], images.labels[indices])
    rows = indices.tolist()
    return FileImages(
        names=tuple(images.names[row] for row in rows),
        labels=images.labels[indices],
        read=_Subset(images.read, rows),
        size=images.size,
        crop_fraction=images.crop_fraction,
        root=images.root,
        file_bytes=images.file_bytes[indices],
        num_channels=images.num_channels,
    )


class _Subset:
    """Reads row `rows[index]` of another reader; picklable."""

    def __init__(self, read: object, rows: list[int]) -> None:
        self.read, self.rows = read, rows

    def __call__(self, index: int) -> bytes:
        return self.read(self.rows[index])  # type: ignore[operator, no-any-return]


def limit(images: Images, num_images: int | None) -> Images:
    """Returns the first `num_images` images, or all."""
    return images if num_images is None else take(images, torch.arange(min(num_images, len(images))))


def stratified_limit(images: Images, num_images: int | None, seed: int) -> Images:
    """Returns `num_images` images with the classes in equal proportion, or all: for data sorted by class."""
    if num_images is None or num_images >= len(images):
        return images
    return stratified_split(images, num_images, seed)[1]


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
