"""Images of one split: in memory as uint8, or as files that are decoded when asked for."""

import hashlib
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from edc.data.bad_images import BadImages
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
    "decode_image",
    "opened",
    "sample_seed",
]

NUM_STAND_INS = 8
"""How many images are tried in place of an unreadable one."""
REDUCING_GAP = 2.0
"""A view is first shrunk in cheap whole steps down to this many times its size, then resized: several times faster on
photographs, visually the same. libjpeg does the cheap steps while it decodes."""


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
    num_channels: int = 3
    bad: BadImages = field(default_factory=BadImages)
    """Unreadable images that were met in training; without any allowed, the first one is an error."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.num_channels, self.size, self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.load(index, augment_seed=None)

    def load(self, index: int, *, augment_seed: int | None) -> tuple[Tensor, Tensor]:
        """Returns image `index`; `augment_seed` fixes the random crop and flip, None means the evaluation crop."""
        content, name = self.read(index), f"{self.root}/{self.names[index]}"
        if augment_seed is None:
            pixels = resize_and_crop(decode_image(content, name, self.num_channels), self.size, self.crop_fraction)
        else:
            pixels = training_view(content, name, self.num_channels, self.size, augment_seed)
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
        for name in self.names.encoded():
            digest.update(name)
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.file_bytes.numpy().tobytes())
        return digest.hexdigest()


Images = MemoryImages | FileImages


def decode_image(content: bytes, name: str, num_channels: int) -> Image.Image:
    """Returns the image in `content` as RGB (3 channels) or grey (1); raises `DataError` with its `name`."""
    with opened(content, name) as image:
        return image.convert(_MODES[num_channels])


_MODES = {1: "L", 3: "RGB"}


@contextmanager
def opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """Yields the image in `content`, not decoded yet; what is wrong with it is a `DataError` with its `name`."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name}: not a readable image ({_what_is_wrong(content, error)}). Replace or remove it."
        ) from None


def _what_is_wrong(content: bytes, error: Exception) -> str:
    if not content:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):  # Pillow's own message names an object in memory
        return f"its {len(content)} bytes are in no format that Pillow knows, or break off in the header"
    return str(error)


def resize_and_crop(image: Image.Image, size: int, crop_fraction: float) -> np.ndarray:
    """Returns the evaluation view, (size, size, C) uint8: shorter side to size / crop_fraction, centre crop.

    Rounded as torchvision's Resize and CenterCrop do, and as export/classify.py does.
    """
    shorter = round(size / crop_fraction)
    width, height = (shorter if side == min(image.size) else shorter * side // min(image.size) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _pixels(image.crop((left, top, left + size, top + size)))


def training_view(content: bytes, name: str, num_channels: int, size: int, seed: int) -> np.ndarray:
    """Returns the training view, (size, size, C) uint8: a random area (8 to 100 %), resized, flipped half the time.

    A JPEG of which several pixels make one of the view is decoded at a half, a quarter or an eighth of its size.
    """
    with opened(content, name) as image:
        full = image.size
        left, top, width, height, flip = _draw_view(full, seed)
        shrink = min(width, height) / (REDUCING_GAP * size)
        if shrink >= 2 and image.format == "JPEG":
            image.draft(None, (math.ceil(full[0] / shrink), math.ceil(full[1] / shrink)))
        image = image.convert(_MODES[num_channels])  # noqa: PLW2901
    across, down = image.width / full[0], image.height / full[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box, REDUCING_GAP)
    return _pixels(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


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


def _pixels(image: Image.Image) -> np.ndarray:
    array = np.array(image, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


@dataclass(frozen=True)
class FolderReader:
    """Reads image `index` of a folder; picklable, so that worker processes can have it."""

    folder: str
    names: Names
    """Paths below `folder`."""

    def __call__(self, index: int) -> bytes:
        path = f"{self.folder}/{self.names[index]}"
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as in ShardReader
                return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def crop_fraction_of(data: DataSection) -> float:
    """Returns the evaluation crop: 224 of 256 for photographs, everything for small images."""
    return data.crop_fraction or (0.875 if (data.image_size or 0) >= 128 else 1.0)
