"""Images of one split: in memory as uint8, or as files that are decoded when asked for."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from edc.errors import DataError
from edc.seeding import derive_seed

__all__ = ["FileImages", "FolderReader", "Images", "MemoryImages", "decode_image", "sample_seed"]


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """A small split: `images` (N, C, H, W) uint8 and `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

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

    names: tuple[str, ...]
    labels: Tensor
    read: Callable[[int], bytes]
    size: int
    crop_fraction: float
    root: str
    """What `names` are relative to; for messages only."""
    file_bytes: Tensor
    """Encoded sizes (N,) int64, which tell other images under the same names apart."""
    num_channels: int = 3

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.load(index, augment_seed=None)

    def load(self, index: int, *, augment_seed: int | None) -> tuple[Tensor, Tensor]:
        """Returns image `index`; `augment_seed` fixes the random crop and flip, None means the evaluation crop."""
        image = decode_image(self.read(index), f"{self.root}/{self.names[index]}", self.num_channels)
        if augment_seed is None:
            pixels = resize_and_crop(image, self.size, self.crop_fraction)
        else:
            pixels = random_resized_crop(image, self.size, augment_seed)
        return torch.from_numpy(pixels).permute(2, 0, 1), self.labels[index]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.size, self.crop_fraction, self.names)).encode())
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.file_bytes.numpy().tobytes())
        return digest.hexdigest()


Images = MemoryImages | FileImages


def decode_image(content: bytes, name: str, num_channels: int) -> Image.Image:
    """Returns the image in `content` as RGB (3 channels) or grey (1); raises `DataError` with its `name`."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB" if num_channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a readable image ({error}). Replace or remove it.") from None


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


def random_resized_crop(image: Image.Image, size: int, seed: int) -> np.ndarray:
    """Returns the training view, (size, size, C) uint8: a random area (8 to 100 %), resized, flipped half the time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        flip = bool(torch.rand(()) < 0.5)
    # reducing_gap lets PIL shrink in two passes: several times faster on photographs, visually the same.
    view = image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + width, top + height), 2.0)
    return _pixels(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Returns the augmentation seed of one image in one epoch, whoever loads it."""
    return derive_seed(seed, "augment", epoch, index)


def _pixels(image: Image.Image) -> np.ndarray:
    array = np.array(image, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


@dataclass(frozen=True)
class FolderReader:
    """Reads image `index` of a folder; picklable, so that worker processes can have it."""

    paths: tuple[Path, ...]

    def __call__(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise DataError(f"{self.paths[index]}: cannot be read ({error.strerror})") from None
