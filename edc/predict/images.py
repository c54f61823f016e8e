"""The images that an artifact is asked about: found in a folder, and read as the run's evaluation images were."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edc.data.files.decode import Reading, decode_image
from edc.data.files.left_out import LeftOut
from edc.data.folder import images_under
from edc.data.images import FolderReader, pixels_of, require_proportions, scaled_and_cropped
from edc.data.names import Names
from edc.deploy.artifact.manifest import Preprocessing
from edc.errors import DataError

__all__ = ["Asked", "as_network_takes", "images_at"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Asked:
    """Images by name below a folder, in the order of their paths, and what lies beside them and is no image."""

    folder: Path
    names: Names
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int, how: Preprocessing) -> Pixels:
        """Returns image `index`, (H, W, C) uint8; raises `DataError` if it cannot be read."""
        content = FolderReader(str(self.folder), self.names)(index)
        return as_network_takes(content, f"{self.folder}/{self.names[index]}", how)


def images_at(place: Path) -> Asked:
    """Returns the images anywhere below a folder, or the one that `place` is, whatever its suffix.

    Raises:
        DataError: there is nothing at `place`, or no image.
    """
    left_out = LeftOut()
    if place.is_dir():
        names = Names.of(path for path, _ in images_under(place, "folder", left_out, refuses=False))
        return Asked(place, names, left_out)
    if not place.exists():
        raise DataError(f"{place.absolute()}: no such folder or image")
    return Asked(place.parent, Names.of([place.name]), left_out)


def as_network_takes(content: bytes, name: str, how: Preprocessing) -> Pixels:
    """Returns the image in `content` as `how` says, (H, W, C) uint8; normalisation is inside the network.

    Raises:
        DataError: with its `name`, if it cannot be read so.
    """
    reading = Reading(num_channels=3 if how.color == "RGB" else 1, upright=how.orientation == "exif")
    image = decode_image(content, name, reading)
    height, width = how.image_size
    interpolation = Image.Resampling[how.interpolation.upper()]
    if how.resize_shorter_side is not None:
        require_proportions(image.size, name, how.resize_shorter_side)
        return scaled_and_cropped(image, how.image_size, how.resize_shorter_side, interpolation)
    if how.resize == "none" and image.size != (width, height):
        raise DataError(
            f"{name}: {image.width} x {image.height} pixels, this network takes {width} x {height} only; resize it"
        )
    return pixels_of(image if image.size == (width, height) else image.resize((width, height), interpolation))
