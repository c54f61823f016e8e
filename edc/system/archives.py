"""What a zip archive says of itself, read without unpacking it."""

import zipfile
from pathlib import Path

__all__ = ["unpacks_to_much_more", "zip_entries"]

MOST_TIMES, FREE_BYTES = 20, 64 << 20
"""torch packs nothing; weights that somebody packed are hardly smaller. Zeros of a stranger are a thousand times so."""


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Returns the entries of a zip archive; none of another or a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError):
        return []


def unpacks_to_much_more(path: Path) -> bool:
    """Returns whether a file is a zip archive of far more bytes than it has itself."""
    num_bytes = sum(entry.file_size for entry in zip_entries(path))
    return num_bytes > max(FREE_BYTES, MOST_TIMES * path.stat().st_size)
