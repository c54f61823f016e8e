"""An artifact's folder is whole or not there, also when the process that writes it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edc.deploy.artifact.folder import appearing, newest_artifact, require_replaceable
from edc.errors import ArtifactError

WRITER = """
import os, signal, sys
from pathlib import Path
from edc.deploy.artifact.folder import appearing
with appearing(Path(sys.argv[1])) as temporary:
    (temporary / "manifest.json").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("before", [{}, {"manifest.json": "old"}])
def test_a_killed_export_leaves_what_was_there(tmp_path, before):
    folder = tmp_path / "artifact"
    if before:
        folder.mkdir()
        (folder / "manifest.json").write_text(before["manifest.json"])
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder)], check=False, env=os.environ | {"PYTHONPATH": path}
    )
    assert killed.returncode == -signal.SIGKILL
    assert (files_in(folder) if folder.exists() else {}) == before
    with appearing(folder) as temporary:  # the next export is not in the way of what the killed one left
        (temporary / "manifest.json").write_text("newer")
    assert files_in(folder) == {"manifest.json": "newer"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["artifact"]


def test_killed_between_the_two_renames_the_old_artifact_comes_back(tmp_path):
    old = tmp_path / ".artifact.old"
    old.mkdir()
    (old / "manifest.json").write_text("old")
    with pytest.raises(RuntimeError), appearing(tmp_path / "artifact"):
        raise RuntimeError
    assert files_in(tmp_path / "artifact") == {"manifest.json": "old"}


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"mine: is not empty and holds no manifest\.json"):
        require_replaceable(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="is a file"):
        require_replaceable(tmp_path / "mine/thesis.txt")


def test_newest_artifact_is_the_last_one_exported_and_no_hidden_one(tmp_path):
    for age, name in ((30, "a"), (10, "b"), (20, "c"), (0, ".b.tmp")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "manifest.json"
        path.write_text("{}")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert newest_artifact(tmp_path) == tmp_path / "b"
    with pytest.raises(ArtifactError, match="no artifact here"):
        newest_artifact(tmp_path / "a")
