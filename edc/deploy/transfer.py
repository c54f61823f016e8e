"""Artifacts between machines: to and from any folder that fsspec can reach (a disk, S3, GCS, the Hugging Face hub).

The manifest is written last and read first. What it lists is checked by size and SHA-256 on both sides, so that half an
artifact is never taken for one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from edc.deploy.artifact.folder import appearing, artifact_lock, require_replaceable
from edc.deploy.artifact.manifest import MANIFEST_NAME, Manifest, load_manifest, verify_files
from edc.deploy.card import CARD_NAME
from edc.errors import ArtifactError, EdcError, FailedError, NotInstalledError, RequestError, first_line

__all__ = ["name_of", "pull", "push", "without_secrets"]

MOST_BYTES = {MANIFEST_NAME: 16 << 20, CARD_NAME: 1 << 20}
"""Of the files that no digest is known of before they are read."""
Said = Callable[[str, int], object]
"""Is told the path and the bytes of each file before it is moved."""


def push(artifact: Path, address: str, *, force: bool = False, said: Said = lambda *_: None) -> Manifest:
    """Copies an artifact to `address`, a folder for it alone: its files, its card, and then its manifest.

    Args:
        force: replace an artifact that is there.

    Raises:
        ArtifactError: the artifact is not whole.
        RequestError: `address` cannot be understood, is the artifact itself, or holds something, and there is no
            `force`.
        FailedError: the other side cannot be reached or written.
    """
    manifest = load_manifest(artifact)
    verify_files(artifact, manifest)
    files, place = _at(address)
    if _is_local(files) and Path(place).resolve().is_relative_to(artifact.resolve()):
        raise RequestError(
            f"{without_secrets(address)}: is in the artifact that it would be a copy of; choose another place"
        )
    paths = [file.path for file in manifest.files]
    with _reaching(address) as shown:
        old = _names_under(files, place)
        if MANIFEST_NAME in old and not force:
            raise RequestError(f"{shown}: holds an artifact already; replace it with --force, or choose another place")
        ours = {CARD_NAME, *(path.partition("/")[0] for path in paths)}
        others = sorted(name for name in old - ours if not name.startswith("."))
        if others and MANIFEST_NAME not in old:
            raise RequestError(f"{shown}: holds {others[0]} and no {MANIFEST_NAME}; choose a folder for it alone")
        if (old & ours) - {CARD_NAME} and MANIFEST_NAME not in old and not force:
            what = "holds files of this name and no artifact, as a push that was cut off leaves them"
            raise RequestError(f"{shown}: {what}; replace them with --force, or choose another")
        if MANIFEST_NAME in old:
            earlier = _manifest_at(files, place, shown)
            files.rm_file(f"{place}/{MANIFEST_NAME}")  # first: what lies there is no artifact from now on
            for path in {*(file.path for file in earlier.files), *(old & {CARD_NAME})} - set(paths):
                with suppress(FileNotFoundError):
                    files.rm_file(f"{place}/{path}")
        for path in [*paths, *[name for name in (CARD_NAME,) if (artifact / name).is_file()], MANIFEST_NAME]:
            said(path, (artifact / path).stat().st_size)
            files.makedirs(f"{place}/{path}".rpartition("/")[0], exist_ok=True)
            files.put_file(str(artifact / path), f"{place}/{path}")
    return manifest


def pull(address: str, folder: Path, *, force: bool = False, said: Said = lambda *_: None) -> Manifest:
    """Copies the artifact at `address` to `folder`, which appears whole or not at all; returns its manifest.

    Args:
        force: replace an artifact that is in `folder`.

    Raises:
        ArtifactError: no artifact at `address`, or one that is not what its manifest says.
        RequestError: `address` cannot be understood, or `folder` holds something, and there is no `force`.
        FailedError: the other side cannot be reached.
    """
    require_replaceable(folder)
    if (folder / MANIFEST_NAME).exists() and not force:
        raise RequestError(f"{folder}: holds an artifact already; replace it with --force, or choose another folder")
    files, place = _at(address)
    with artifact_lock(folder), appearing(folder) as temporary, _reaching(address) as shown:

        def fetch(path: str, num_bytes: int) -> None:
            said(path, num_bytes)
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{place}/{path}", str(temporary / path))

        if _info(files, f"{place}/{MANIFEST_NAME}") is None:
            raise ArtifactError(f"{shown}: no {MANIFEST_NAME} here; an artifact is a folder that `edc export` wrote")
        for name in (MANIFEST_NAME, CARD_NAME):
            if _info(files, f"{place}/{name}") is not None:
                fetch(name, _small_size(files, place, name, shown))
        with _named(temporary, shown):
            manifest = load_manifest(temporary)
            for file in manifest.files:
                found = _size(files, f"{place}/{file.path}", f"{shown}/{file.path}")
                if found != file.bytes:
                    raise ArtifactError(f"{shown}/{file.path}: {found:,} bytes, the manifest says {file.bytes:,}")
                fetch(file.path, file.bytes)
            verify_files(temporary, manifest)
    return manifest


@contextmanager
def _named(temporary: Path, shown: str) -> Iterator[None]:
    """Names the address in errors about a folder that is gone when they are read."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(temporary), shown)) from None


def name_of(address: str) -> str:
    """Returns the last part of an address, which names the artifact; raises `RequestError` if it names none."""
    name = without_secrets(address).removesuffix("://").rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise RequestError(f"{without_secrets(address)}: ends in no name; say where: edc pull ADDRESS FOLDER")
    return name


def without_secrets(address: str) -> str:
    """Returns an address without what messages and logs must not repeat: a password, and a web address's query."""
    parts = _parts(address)
    user, at, host = parts.netloc.rpartition("@")
    if parts.scheme in ("http", "https"):
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    if ":" in user:  # a name alone is needed there, and in hf://name@revision it is none
        return address.replace(f"{user}{at}", f"{user.partition(':')[0]}{at}", 1)
    return address


def _parts(address: str) -> SplitResult:
    if "://" not in address:  # a path, in which ? and # are letters
        return SplitResult("", "", address, "", "")
    try:
        return urlsplit(address)
    except ValueError as error:
        raise RequestError(f"the address cannot be read ({first_line(error)}); expected one like s3://...") from None


def _manifest_at(files: Any, place: str, address: str) -> Manifest:
    """Returns the manifest at `place`; many programs have a file of that name, and theirs are no artifacts."""
    with TemporaryDirectory() as folder:
        _small_size(files, place, MANIFEST_NAME, address)
        files.get_file(f"{place}/{MANIFEST_NAME}", f"{folder}/{MANIFEST_NAME}")
        try:
            return load_manifest(Path(folder))
        except ArtifactError:
            raise RequestError(
                f"{address}: its {MANIFEST_NAME} is no artifact's; choose a folder for it alone"
            ) from None


def _small_size(files: Any, place: str, name: str, address: str) -> int:
    """Returns the bytes of a file that no digest is known of; raises `ArtifactError` if they are too many to fetch."""
    num_bytes = _size(files, f"{place}/{name}", f"{address}/{name}")
    if num_bytes > MOST_BYTES[name]:
        raise ArtifactError(f"{address}/{name}: {num_bytes:,} bytes, expected at most {MOST_BYTES[name]:,}")
    return num_bytes


def _at(address: str) -> tuple[Any, str]:
    """Returns the filesystem and the folder in it that `address` names."""
    import fsspec

    shown = without_secrets(address)
    try:
        files, place = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise NotInstalledError(f"{shown}: {first_line(error)}") from None
    except (ValueError, OSError) as error:
        raise RequestError(f"{shown}: {first_line(error)}; expected a folder, or an address like s3://...") from None
    return files, str(place).rstrip("/")


def _is_local(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def _names_under(files: Any, place: str) -> set[str]:
    """Returns the names right below `place`; none if it is not there."""
    if _info(files, place) is None:
        return set()
    if not files.isdir(place):
        raise RequestError(f"{place}: is a file, expected a folder for the artifact")
    return {str(path).rstrip("/").rpartition("/")[2] for path in files.ls(place, detail=False)}


def _info(files: Any, path: str) -> dict[str, Any] | None:
    """Returns what is at `path`, None if nothing is; raises what the filesystem does where it cannot be known.

    `exists`, `isfile` and `isdir` say no when the network fails or the login is refused, and then a copy there would be
    overwritten.
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        found: dict[str, Any] = files.info(path)
    except FileNotFoundError as error:
        # Filesystems say so of all that went wrong; the cause tells.
        if error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError | EntryNotFoundError):
            return None
        if str(error) in ("", path):
            raise error.__cause__ from None
        raise
    return found


def _size(files: Any, path: str, shown: str) -> int:
    found = _info(files, path)
    if found is None:
        raise ArtifactError(f"{shown}: is missing, and the manifest lists it")
    if found["size"] is None:
        raise FailedError(f"{shown}: the server does not say how large it is")
    return int(found["size"])


@contextmanager
def _reaching(address: str) -> Iterator[str]:
    """Turns what filesystems raise, each with exceptions of its own, into one message; yields the address to show."""
    shown = without_secrets(address)
    try:
        yield shown
    except EdcError:
        raise
    except Exception as error:
        said = first_line(error).replace(address, shown)
        raise FailedError(f"{shown}: {type(error).__name__}: {said}") from error
