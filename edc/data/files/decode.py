"""An image file as pixels of 8 bits: the right way up, and in the colours of the data set.

Whatever reads images goes through here, so training, evaluation and calibration see the same. `export/classify.py` and
`export/web/decode.js` do the same from the manifest, without edc.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from edc.errors import DataError, RunError

__all__ = [
    "GREY_MODES",
    "SIDEWAYS",
    "SIXTEEN_BITS",
    "TURNED",
    "Depth",
    "Reading",
    "converted",
    "decode_image",
    "depth_of",
    "opened",
    "turn_of",
    "without_range",
]

GREY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes that hold no colour. Grey with transparency counts as colour, as it always has."""

Depth = Literal["8 bits", "16 bits", "unknown"]
TURNED: Final = "turned"
SIXTEEN_BITS: Final = "16 bits"
"""What edc 0.1.0 made other pixels of: it turned none, and cut grey ones of 16 bits off at 255."""
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 0x0112, 258, 262, 0
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
"""Turns that make width and height change places."""


@dataclass(frozen=True)
class Reading:
    """How the image files of a data set become pixels.

    Args:
        num_channels: 3 (RGB) or 1 (grey).
        upright: turn an image as its EXIF orientation says.
        expected: what may be met that edc 0.1.0 made other pixels of; None: whatever there is.
        flips: whether half of the training views are mirrored.
    """

    num_channels: int = 3
    upright: bool = True
    expected: tuple[str, ...] | None = None
    flips: bool = True

    def turn_of(self, image: Image.Image, name: str) -> Image.Transpose | None:
        """Returns what brings an opened image upright, if this reading does that.

        Raises:
            RunError: with its `name`, if edc 0.1.0 made other pixels of it, and such an image is not expected.
        """
        turn = turn_of(image) if self.upright else None
        if self.expected is not None:
            met = (TURNED, turn is not None), (SIXTEEN_BITS, depth_of(image) == SIXTEEN_BITS)
            for what, is_met in met:
                if is_met and what not in self.expected:
                    raise RunError(
                        f"{name}: {'is turned by EXIF' if what == TURNED else 'is grey with 16 bits per pixel'}, which "
                        "the look at some of the images had not found. This run was begun by an older edc, which read "
                        "such images otherwise (turned none, cut grey ones of 16 bits off at 255). Save that image "
                        "upright with 8 bits, or choose another folder with --run."
                    )
        return turn


def decode_image(content: bytes, name: str, reading: Reading) -> Image.Image:
    """Returns the image in `content` in the data set's colours; raises `DataError` with its `name`."""
    with opened(content, name) as image:
        return converted(image, name, reading.num_channels, reading.turn_of(image, name))


NOT_READABLE = (
    *(OSError, ValueError, SyntaxError, Image.DecompressionBombError),
    # Of damaged files of AVIF, TIFF and DDS, and of what other plugins meet in bytes that they did not expect.
    *(RuntimeError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError, AssertionError, struct.error),
)
"""What Pillow raises of a file that is no image, or a damaged one; `NotImplementedError` is a RuntimeError."""


@contextmanager
def opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """Yields the image in `content`, not decoded yet; what is wrong with it is a `DataError` with its `name`."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except NOT_READABLE as error:
        raise DataError(
            f"{name}: not a readable image ({_what_is_wrong(content, error)}). Replace or remove it."
        ) from None


def _what_is_wrong(content: bytes, error: Exception) -> str:
    if not content:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):  # Pillow's own message names an object in memory
        return f"its {len(content)} bytes are in no format that Pillow knows, or break off in the header"
    return str(error) or type(error).__name__


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns what brings an opened image upright, by its EXIF orientation; None: nothing.

    Nothing for TIFF, either, because Pillow turns that itself while it decodes.
    """
    if image.format == "TIFF":
        return None
    if image.format != "JPEG":
        image.load()  # as getexif would in a PNG, whose EXIF data may come last; it would hide that the file breaks off
    try:
        with warnings.catch_warnings():  # of EXIF data that breaks off
            warnings.simplefilter("ignore", UserWarning)
            orientation = image.getexif().get(_ORIENTATION)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
        return None  # EXIF data that cannot be read says nothing
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def converted(image: Image.Image, name: str, num_channels: int, turn: Image.Transpose | None) -> Image.Image:
    """Returns an opened image decoded, in 8 bits per channel and turned.

    Raises:
        DataError: with its `name`, if the file does not say which values are black and white.
    """
    depth = depth_of(image)
    if depth == "unknown":
        raise without_range(name, image.mode)
    pixels = (_upper_8_bits(image) if depth == SIXTEEN_BITS else image).convert(_MODES[num_channels])
    return pixels if turn is None else pixels.transpose(turn)


def without_range(name: str, mode: str) -> DataError:
    """Returns the error about an image whose file does not say which of its values are black and white."""
    kind = "floating-point numbers" if mode == "F" else "integers of 32 bits"
    return DataError(
        f"{name}: its pixels are {kind} (mode {mode}), and the file does not say which of them are black and white. "
        "Save it with 8 or 16 bits per channel."
    )


def depth_of(image: Image.Image) -> Depth:
    """Returns how many bits a channel of an opened image has, as Pillow gives it.

    Colour images of 16 bits count as 8: Pillow itself takes the upper 8 bits of them, but cuts grey ones off at 255.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return "16 bits"
    return "unknown" if image.mode in ("I", "F") else "8 bits"


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Returns a grey image of 16 bits (12 in some TIFF files) with the upper 8 bits of each pixel."""
    image.load()
    tags = getattr(image, "tag_v2", {})
    num_bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    pixels = np.asarray(image).astype(np.int64).clip(0, 2**num_bits - 1) >> (num_bits - 8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # of which Pillow takes care in images of 8 bits alone
        pixels = 255 - pixels
    return Image.fromarray(pixels.astype(np.uint8))
