"""The folder of an artifact: complete or absent; and the search for the newest."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edc.deploy.artifact.manifest import MANIFEST_NAME
from edc.errors import ArtifactError, FailedError

__all__ = ["appearing", "newest_artifact", "require_replaceable"]


def require_replaceable(folder: Path) -> None:
    """Raises unless `folder` is absent, empty, or an earlier artifact."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: is a file, expected a folder for the artifact; choose another with --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ArtifactError(f"{folder}: is not empty and holds no {MANIFEST_NAME}; choose another folder with --output")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yields a folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    shutil.rmtree(temporary, ignore_errors=True)  # left by an export that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FailedError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def newest_artifact(folder: Path) -> Path:
    """Returns the artifact under `folder` that was exported last."""
    manifests = sorted(folder.glob(f"*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    manifests = [path for path in manifests if not path.parent.name.startswith(".")]
    if not manifests:
        raise ArtifactError(f"{folder.absolute()}: no artifact here; make one with: edc export")
    return manifests[-1].parent
