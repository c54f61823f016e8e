"""A look at some images of a split before anything is trained: which of them have a turn or a depth of their own.

What is found is said. It becomes part of the data set's digest, because edc 0.1.0 made other pixels of such files: it
turned none, and cut grey ones of 16 bits off at 255.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from edc.console import console
from edc.data.files.decode import SIXTEEN_BITS, TURNED, Depth, Reading, depth_of, opened, turn_of, without_range
from edc.errors import DataError

__all__ = ["look_at"]

MOST_IMAGES, MOST_COSTLY_IMAGES = 1000, 64
"""How many are looked at, at equal distances; fewer where each one is a request, or a whole row group."""
_IN_WORDS = {
    TURNED: "are turned upright as their EXIF data says",
    SIXTEEN_BITS: "are grey with 16 bits per pixel, of which the upper 8 are used",
}
_WORDS_OF_EXIF = (b"eXIf", b"EXIF", b"Exif", b"exif", b"ns.adobe.com")
"""One of these is in every file with an orientation; others than JPEG would have to be decoded to look for it."""


@dataclass(frozen=True)
class _Seen:
    name: str
    is_turned: bool
    depth: Depth
    mode: str


def look_at(
    read: Callable[[int], bytes],
    name_of: Callable[[int], str],
    num_images: int,
    reading: Reading,
    *,
    where: str,
    costly: bool = False,
    num_threads: int = 1,
    tolerant: bool = False,
) -> tuple[str, ...]:
    """Returns what is among the images that edc 0.1.0 made other pixels of, and says so.

    Args:
        where: the images' place, for people.
        costly: whether reading an image costs far more than its own bytes.
        tolerant: whether images may be unreadable. Those that are come up when they are needed.

    Raises:
        DataError: an image whose file does not say which values are black and white, unless `tolerant`.
    """
    num_looked_at = min(num_images, MOST_COSTLY_IMAGES if costly else MOST_IMAGES)
    rows = [place * num_images // num_looked_at for place in range(num_looked_at)]

    with ThreadPoolExecutor(num_threads) if num_threads > 1 else nullcontext() as pool:
        contents = (pool.map if pool else map)(partial(_read_or_none, read), rows)
        looks = (_look(content, name_of(row)) for row, content in zip(rows, contents, strict=True))
        seen = [each for each in looks if each is not None]
    if not tolerant:
        for each in seen:
            if each.depth == "unknown":
                raise without_range(each.name, each.mode)
    found = {
        TURNED: [each.name for each in seen if each.is_turned and reading.upright],
        SIXTEEN_BITS: [each.name for each in seen if each.depth == SIXTEEN_BITS],
    }
    for what, names in found.items():
        if names:
            console.print(
                f"data: {where}: {len(names):,} of {num_looked_at:,} images looked at {_IN_WORDS[what]} ({names[0]})",
                highlight=False,
                markup=False,
            )
    return tuple(what for what, names in found.items() if names)


def _read_or_none(read: Callable[[int], bytes], row: int) -> bytes | None:
    try:
        return read(row)
    except DataError:
        return None


def _look(content: bytes | None, name: str) -> _Seen | None:
    """Returns what a file's header says; None: nothing, which comes up when the image is needed."""
    if content is None:
        return None
    try:
        with opened(content, name) as image:
            may_turn = image.format == "JPEG" or any(word in content for word in _WORDS_OF_EXIF)
            is_turned = may_turn and turn_of(image) is not None
            return _Seen(name, is_turned, depth_of(image), image.mode)
    except DataError:
        return None
