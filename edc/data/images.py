"""Images of one split: in memory as uint8, or as files that are decoded when asked for."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from edc.data.bad_images import BadImages
from edc.data.files.decode import SIDEWAYS, Reading, converted, decode_image, opened
from edc.data.files.regular import content_of
from edc.data.names import Names
from edc.errors import DataError
from edc.recipe import DataSection
from edc.seeding import derive_seed

__all__ = [
    "FileImages",
    "FolderReader",
    "Images",
    "MemoryImages",
    "crop_fraction_of",
    "pixels_of",
    "reading_of",
    "require_proportions",
    "sample_seed",
    "scaled_and_cropped",
]

NUM_STAND_INS = 8
"""How many images are tried in place of an unreadable one."""
REDUCING_GAP = 2.0
"""A view is first shrunk in cheap whole steps down to this many times its size, then resized: several times faster on
photographs, visually the same. libjpeg does the cheap steps while it decodes."""
MOST_PIXELS = 89_478_485
"""The most pixels that an image may have after its shorter side was resized; Pillow warns of files of more."""


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """A small split: `images` (N, C, H, W) uint8 and `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __getitem__(self, index: int | Tensor | slice) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class FileImages:
    """A large split: `names` say where an image is, `read` returns its encoded bytes.

    An item is (C, size, size) uint8: resized and centre-cropped, or, with a seed, cropped at random as that seed says.
    """

    names: Names
    labels: Tensor
    read: Callable[[int], bytes]
    size: int
    crop_fraction: float
    root: str
    """What `names` are relative to; for messages only."""
    file_bytes: Tensor
    """Encoded sizes (N,) int64, which tell other images under the same names apart."""
    reading: Reading = field(default_factory=Reading)
    read_otherwise: tuple[str, ...] = ()
    """What is among these images that edc 0.1.0 made other pixels of."""
    bad: BadImages = field(default_factory=BadImages)
    """Unreadable images that were met in training; without any allowed, the first one is an error."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.reading.num_channels, self.size, self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.load(index, augment_seed=None)

    def load(self, index: int, *, augment_seed: int | None) -> tuple[Tensor, Tensor]:
        """Returns image `index`; `augment_seed` fixes the random crop and flip, None means the evaluation crop."""
        content, name = self.read(index), f"{self.root}/{self.names[index]}"
        if augment_seed is None:
            image = decode_image(content, name, self.reading)
            require_proportions(image.size, name, round(self.size / self.crop_fraction))
            pixels = resize_and_crop(image, self.size, self.crop_fraction)
        else:
            pixels = training_view(content, name, self.reading, self.size, augment_seed)
        return torch.from_numpy(pixels).permute(2, 0, 1), self.labels[index]

    def load_or_replace(self, index: int, *, augment_seed: int | None) -> tuple[Tensor, Tensor, dict[str, str]]:
        """Returns image `index` or, if `bad` allows for unreadable ones, the next readable one of its class.

        For training only: a figure about a split must not count one image twice.

        The third value names the images that could not be read, and why. Labels are always those of `index`.
        """
        unreadable: dict[str, str] = {}
        for candidate in self._candidates(index):
            try:
                return *self.load(candidate, augment_seed=augment_seed), unreadable
            except DataError as error:
                if not self.bad.max_fraction:
                    raise
                unreadable[self.names[candidate]] = str(error)
        others = len(unreadable) - 1
        raise DataError(
            f"{unreadable[self.names[index]]}\n  and "
            + (
                f"none of the {others} images tried in its place is readable"
                if others
                else "there is no other image of its class to take its place"
            )
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        same_class = (self.labels == self.labels[index]).nonzero().flatten()
        position = int(torch.searchsorted(same_class, index))
        for step in range(1, min(NUM_STAND_INS, len(same_class) - 1) + 1):
            yield int(same_class[(position + step) % len(same_class)])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.size, self.crop_fraction)).encode())
        if self.read_otherwise or self.reading.num_channels != 3:  # other data sets have the digest they always had
            digest.update(repr((self.read_otherwise, self.reading.num_channels)).encode())
        for name in self.names.encoded():
            digest.update(name)
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.file_bytes.numpy().tobytes())
        return digest.hexdigest()


Images = MemoryImages | FileImages


def require_proportions(size: tuple[int, int], name: str, shorter: int) -> None:
    """Raises `DataError` for an image that would be too long if its shorter side had `shorter` pixels."""
    if shorter * shorter * max(size) // min(size) > MOST_PIXELS:
        raise DataError(
            f"{name}: {size[0]} x {size[1]} pixels, which is too long: with a shorter side of {shorter} it would have "
            f"more than {MOST_PIXELS:,} pixels. Crop or remove it."
        )


def resize_and_crop(image: Image.Image, size: int, crop_fraction: float) -> np.ndarray:
    """Returns the evaluation view, (size, size, C) uint8: shorter side to size / crop_fraction, centre crop."""
    return scaled_and_cropped(image, (size, size), round(size / crop_fraction))


def scaled_and_cropped(
    image: Image.Image,
    size: tuple[int, int],
    shorter: int,
    interpolation: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Returns the middle `size` (height, width) of the image whose shorter side becomes `shorter`, (H, W, C) uint8.

    Rounded as torchvision's Resize and CenterCrop do, and as export/classify.py does.
    """
    width, height = (shorter if side == min(image.size) else shorter * side // min(image.size) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), interpolation)
    left, top = round((width - size[1]) / 2), round((height - size[0]) / 2)
    return pixels_of(image.crop((left, top, left + size[1], top + size[0])))


def training_view(content: bytes, name: str, reading: Reading, size: int, seed: int) -> np.ndarray:
    """Returns the training view, (size, size, C) uint8: a random area (8 to 100 %), resized; half of them mirrored.

    A JPEG of which several pixels make one of the view is decoded at a half, a quarter or an eighth of its size.
    """
    with opened(content, name) as image:
        turn = reading.turn_of(image, name)
        full = image.size[::-1] if turn in SIDEWAYS else image.size
        require_proportions(full, name, size)
        left, top, width, height, flip = _draw_view(full, seed)
        shrink = min(width, height) / (REDUCING_GAP * size)
        if shrink >= 2 and image.format == "JPEG":
            image.draft(None, (math.ceil(image.width / shrink), math.ceil(image.height / shrink)))
        image = converted(image, name, reading.num_channels, turn)  # noqa: PLW2901
    across, down = image.width / full[0], image.height / full[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box, REDUCING_GAP)
    return pixels_of(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and reading.flips else view)


def _draw_view(full: tuple[int, int], seed: int) -> tuple[int, int, int, int, bool]:
    """Returns (left, top, width, height) of a random area of an image of `full` (width, height), and a coin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sized = torch.empty(1, full[1], full[0], device="meta")
        top, left, height, width = RandomResizedCrop.get_params(sized, [0.08, 1.0], [3 / 4, 4 / 3])
        return left, top, width, height, bool(torch.rand(()) < 0.5)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Returns the augmentation seed of one image in one epoch, whoever loads it."""
    return derive_seed(seed, "augment", epoch, index)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Returns the pixels (H, W, C) uint8 of an image in 8 bits, also of a grey one."""
    array = np.array(image, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


@dataclass(frozen=True)
class FolderReader:
    """Reads image `index` of a folder; picklable, so that worker processes can have it."""

    folder: str
    names: Names
    """Paths below `folder`."""

    def __call__(self, index: int) -> bytes:
        return content_of(f"{self.folder}/{self.names[index]}")


def crop_fraction_of(data: DataSection) -> float:
    """Returns the evaluation crop: 224 of 256 for photographs, everything for small images."""
    return data.crop_fraction or (0.875 if (data.image_size or 0) >= 128 else 1.0)


def reading_of(data: DataSection) -> Reading:
    """Returns how the image files of a data set become pixels; RGB, unless the recipe says otherwise."""
    return Reading(num_channels=data.channels or 3, upright=data.orientation != "stored", flips=data.flips)
