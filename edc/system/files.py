"""Files that appear complete or not at all, digests, and locks."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from edc.errors import FailedError, RunError

__all__ = ["exclusive_lock", "require_free_disk", "sha256_of", "write_atomically", "write_json"]


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it is renamed to `path` only if the block ends without an error.

    The temporary keeps the suffix: several libraries choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors report a full disk in their own words, without the error number.
        no_space = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        if no_space or shutil.disk_usage(path.parent).free < 1 << 20:
            free_mb = shutil.disk_usage(path.parent).free / 1e6
            raise FailedError(
                f"{path}: the disk is full ({free_mb:.0f} MB free). What was written before is intact; "
                "free some space and run the same command again to continue."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Writes `document` as indented JSON, atomically. NaN and infinity are errors, because they are not JSON."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with write_atomically(path) as temporary:
        temporary.write_text(text)


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free_disk(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises `RunError` before anything is written if the disk under `folder` has less than `needed_bytes` free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise RunError(
            f"{folder}: {purpose} needs about {needed_bytes / 1e6:.0f} MB, the disk has {free_bytes / 1e6:.0f} MB "
            "free. Free some space or choose another folder."
        )


@contextmanager
def exclusive_lock(path: Path, *, held_by_other: str) -> Iterator[None]:
    """Holds a lock on `path` for the block; raises `RunError(held_by_other)` if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise RunError(held_by_other) from None
