"""Files that appear complete or not at all, digests, locks, and the disk."""

import contextlib
import errno
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import environment
from safetensors import SafetensorError

from edc.errors import DiskError, FailedError, RunError
from edc.system.files import exclusive_lock, holds_nothing, require_free_disk, sha256_of, write_atomically, write_json


def test_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "deep/er/file"
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken"), RuntimeError("x")]
)
def test_error_while_writing_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_said_in_one_message(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    message = r"file: the disk is full .* run the same command again"
    with pytest.raises(FailedError, match=message), write_atomically(path):
        raise error
    assert path.read_text() == "old"


def test_torchs_own_words_for_a_full_disk_are_understood(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(FailedError, match="the disk is full"), write_atomically(tmp_path / "file"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_that_is_not_json_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"nll": value})
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_that_of_the_content(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    require_free_disk(tmp_path / "not/yet/there", 5_000_000, "this run")
    with pytest.raises(RunError, match=r"there: this run needs about 6 MB, the disk has 5 MB free"):
        require_free_disk(tmp_path / "not/yet/there", 6_000_000, "this run")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_goes_with_the_next_lock_of_the_folder(tmp_path):
    for name in (".weights.4711.tmp.safetensors", ".metrics.0a1b2c3d4e5f.tmp.jsonl", ".recipe.12.tmp.yaml"):
        (tmp_path / name).write_text("half")
    assert holds_nothing(tmp_path)
    for name in ("weights.safetensors", "notes.tmp", ".bashrc"):
        (tmp_path / name).write_text("mine")
    assert not holds_nothing(tmp_path)
    with exclusive_lock(tmp_path / ".lock", held_by_other="busy", vanishes=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bashrc", "notes.tmp", "weights.safetensors"]


def test_folder_that_may_not_be_written_to_is_one_message():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may not be entered by another user
        Path(folder).chmod(0o555)
        with as_another_user():
            with pytest.raises(DiskError, match=r"x\.json: cannot be written \(.*Permission denied.* make .* writable"):
                write_json(Path(folder) / "x.json", {})
            with (
                pytest.raises(RunError, match=r"\.lock: cannot be written \(.*Permission denied"),
                exclusive_lock(Path(folder) / ".lock", held_by_other="busy"),
            ):
                pass


@contextlib.contextmanager
def as_another_user() -> Iterator[None]:
    """Root may write anywhere, so that it has to be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_lock_keeps_another_process_out(tmp_path):
    code = (
        "import sys; from pathlib import Path; from edc.system.files import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1]), held_by_other='busy'): print('got it')"
    )

    def other() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(tmp_path / "folder/.lock")]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)

    with exclusive_lock(Path(tmp_path / "folder/.lock"), held_by_other="mine"):
        done = other()
        assert "RunError: busy" in done.stderr
        assert done.stdout == ""
    assert other().stdout == "got it\n"
