"""Files that appear complete or not at all, digests, and locks."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from edc.errors import DiskError, RequestError, RunError, first_line

__all__ = [
    "LOCK",
    "exclusive_lock",
    "holds_nothing",
    "remove_leftovers",
    "require_free_disk",
    "require_free_name",
    "sha256_of",
    "temporary_name",
    "unwritable",
    "user_cache",
    "write_atomically",
    "write_json",
]

LOCK = ".lock"
"""The lock of a whole folder. Whoever holds it writes there alone."""
_LEFTOVER = re.compile(r"\..*\.[0-9a-f]+\.tmp(\.[^.]+)?")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def temporary_name(path: Path) -> Path:
    """Returns a path beside `path` that no other process has, with its suffix: libraries choose a format by it."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left in `folder`; call it where no other process writes."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def holds_nothing(folder: Path) -> bool:
    """Returns whether the folder holds no more than what a process leaves that is killed as it begins."""
    return all(path.name == LOCK or _LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it is renamed to `path` only if the block ends without an error.

    Raises:
        DiskError: the disk is full, or nothing may be written there.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if (said := unwritable(path, error)) is not None:
            raise said from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: Exception) -> DiskError | None:
    """Returns what to say of an error while `path` was written, if the disk is full or refuses it; None: another error.

    torch and safetensors report a full disk in their own words, without the error number.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    number, free_bytes = getattr(error, "errno", None), shutil.disk_usage(folder).free
    if number in _FULL or "os error 28" in str(error) or (number is None and free_bytes < 1 << 20):
        return DiskError(
            f"{path}: the disk is full ({free_bytes / 1e6:.0f} MB free). What was written before is intact; "
            "free some space and run the same command again to continue."
        )
    if number in _REFUSED or "os error 13" in str(error) or "os error 30" in str(error):
        return DiskError(
            f"{path}: cannot be written ({first_line(error)}). What was written before is intact; make {folder} "
            "writable and run the same command again, or choose another folder."
        )
    return None


def user_cache(name: str) -> Path:
    """Returns where edc keeps what it can make again, for all runs and artifacts of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edc" / name


def write_json(path: Path, document: Any) -> None:
    """Writes `document` as indented JSON, atomically. NaN and infinity are errors, because they are not JSON."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with write_atomically(path) as temporary:
        temporary.write_text(text)


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free_name(path: Path, *, suffixes: tuple[str, ...], force: bool) -> None:
    """Raises `RequestError` unless --out may be written to `path`, a file with one of the suffixes."""
    if path.suffix not in suffixes:
        raise RequestError(f"--out: found {path}, expected a file that ends in {', '.join(suffixes)}")
    if path.is_dir() or (path.exists() and not force):
        what = "is a folder" if path.is_dir() else "already exists and is not overwritten without --force"
        raise RequestError(f"{path}: {what}; name another with --out")


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
def exclusive_lock(path: Path, *, held_by_other: str, vanishes: bool = False) -> Iterator[None]:
    """Holds a lock on `path` for the block. With that of a whole folder, leftovers of killed processes there go.

    Args:
        vanishes: whether the file is removed at the end.

    Raises:
        RunError: `held_by_other`, if another process has it; or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _taken(path)
    except Timeout:
        raise RunError(held_by_other) from None
    except OSError as error:
        if (said := unwritable(path, error)) is not None:
            raise RunError(str(said)) from None
        raise
    try:
        if path.name == LOCK:
            remove_leftovers(path.parent)
        yield
    finally:
        if vanishes:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        lock.release()


def _taken(path: Path) -> BaseFileLock:
    """Returns a lock on the file that is at `path` now; raises `Timeout` if another process has it.

    The file that was locked may be one that its last holder has just removed. Whoever holds the file at `path` cannot
    lock it a second time.
    """
    lock = FileLock(path, timeout=0)
    lock.acquire()
    while True:
        again = FileLock(path, timeout=0)
        try:
            again.acquire()
        except Timeout:
            return lock
        lock.release()
        lock = again
