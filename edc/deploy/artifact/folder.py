"""The folder of an artifact: whole or absent, written by one process at a time; and the search for the newest.

export/<name>/               the artifact
export/.<name>.lock          held by the export that makes it, or the bench that measures it
export/.<name>.<token>.tmp/  what an export has written so far; removed by the next if it was killed
export/.<name>.old/          the earlier artifact, from the moment it makes room until the new one is in its place
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edc.errors import ArtifactError, FailedError, RunError
from edc.system.files import exclusive_lock, unwritable

__all__ = ["MANIFEST_NAME", "appearing", "artifact_lock", "newest_artifact", "put_back", "require_replaceable"]

MANIFEST_NAME = "manifest.json"


def require_replaceable(folder: Path) -> None:
    """Raises unless `folder` is absent, empty, or an earlier artifact."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: is a file, expected a folder for the artifact; choose another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ArtifactError(f"{folder}: is not empty and holds no {MANIFEST_NAME}; choose another folder")


@contextmanager
def artifact_lock(folder: Path) -> Iterator[None]:
    """Keeps every other export and bench away from the artifact in `folder` for the block.

    Raises:
        RunError: one of them is at work there.
    """
    place = _absolute(folder)
    if place.parent.is_dir() and not os.access(place.parent, os.W_OK):
        yield  # nobody can replace what is in a folder that may not be written to
        return
    busy = f"{folder}: another process is exporting or benching this artifact; wait for it, or choose another folder"
    with exclusive_lock(_lock(place), held_by_other=busy, vanishes=True):
        yield


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yields a folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    The caller holds `artifact_lock(folder)`.
    """
    place = _absolute(folder)
    _put_back(place)
    _remove_leftovers(place)
    temporary = _temporary(place)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            place.rename(_old(place))
        temporary.rename(place)
        _discard(place)
    except OSError as error:
        raise (unwritable(folder, error) or FailedError(f"{folder}: cannot be written ({error})")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Puts the artifact back into `folder` if an export was killed while it replaced it; a live one is left alone."""
    place = _absolute(folder)
    if place.exists() or not _old(place).is_dir():
        return
    with suppress(RunError), exclusive_lock(_lock(place), held_by_other="busy", vanishes=True):
        _put_back(place)


def newest_artifact(folder: Path) -> Path:
    """Returns the artifact under `folder` that was exported last."""
    for old in folder.glob(".*.old"):
        put_back(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
    manifests = sorted(folder.glob(f"*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    manifests = [path for path in manifests if not path.parent.name.startswith(".")]
    if not manifests:
        raise ArtifactError(f"{folder.absolute()}: no artifact here; make one with: edc export")
    return manifests[-1].parent


def _put_back(place: Path) -> None:
    old = _old(place)
    if not place.exists() and old.is_dir():
        old.rename(place)
    else:
        _discard(place)


def _discard(place: Path) -> None:
    """Removes the earlier artifact; renamed first, because half of one must never be put back."""
    if _old(place).is_dir():
        doomed = _temporary(place)
        _old(place).rename(doomed)
        _remove(doomed)


def _remove_leftovers(place: Path) -> None:
    """Removes what exports that were killed had written so far, also those of an older edc."""
    left = re.compile(rf"\.{re.escape(place.name)}\.([0-9a-f]+\.)?tmp")
    for path in place.parent.iterdir() if place.parent.is_dir() else ():
        if left.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    """Removes a folder, or the link to one, whose folder somebody else keeps."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _temporary(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(6)}.tmp")


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _lock(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _absolute(folder: Path) -> Path:
    """Returns the one path of the folder, also of `.`; a link at its end is a name of its own, which is replaced."""
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 - `resolve` would follow the link
    return absolute.parent.resolve() / absolute.name
