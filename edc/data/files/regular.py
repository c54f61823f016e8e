"""The content of files: of regular files alone, and of a bounded size.

A pipe would let the reader wait for ever, and a device such as /dev/zero has no end.
"""

import os
import stat

from edc.errors import DataError

__all__ = ["MOST_BYTES", "content_of", "require_regular"]

MOST_BYTES = 1 << 30
"""The largest file of one image that is read."""


def content_of(path: str) -> bytes:
    """Returns what is in a regular file; anything else is a `DataError`, at once."""
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            require_regular(status, path)
            return file.read(status.st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def require_regular(status: os.stat_result, path: str) -> None:
    """Raises `DataError` unless `status` is that of a regular file of a size that an image may have."""
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is {_kind(status.st_mode)}, expected a regular file; remove it")
    if status.st_size > MOST_BYTES:
        raise DataError(f"{path}: has {status.st_size:,} bytes, expected an image of at most {MOST_BYTES:,}; remove it")


def _kind(mode: int) -> str:
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISDIR: "a folder"}
    return next((kind for is_kind, kind in kinds.items() if is_kind(mode)), "no file")
