"""An artifact's folder is whole or not there, also when the process that writes it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edc.deploy.artifact.folder import appearing, artifact_lock, newest_artifact, require_replaceable
from edc.errors import ArtifactError, RunError

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


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from edc.deploy.artifact.folder import appearing, artifact_lock
folder = Path(sys.argv[1])
WATCHED = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")

def export(kill_at):
    def count(event, arguments):
        global left
        if event in WATCHED and str(folder.parent) in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    global left
    left = kill_at
    sys.addaudithook(count)
    with artifact_lock(folder), appearing(folder) as temporary:
        (temporary / "baseline").mkdir()
        for name in ("baseline/teacher.onnx", "student.onnx", "manifest.json"):
            (temporary / name).write_text(f"new {kill_at}")

kill_at, whole = 0, None
while True:
    child = os.fork()
    if not child:
        export(kill_at)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    if ended == 0:
        break
    assert ended == signal.SIGKILL, ended
    from edc.deploy.artifact.folder import newest_artifact
    newest = newest_artifact(folder.parent)  # finds it, wherever the export was killed
    texts = {(newest / name).read_text() for name in ("baseline/teacher.onnx", "student.onnx", "manifest.json")}
    assert newest == folder and len(texts) == 1 and texts <= {"old", f"new {kill_at}"}, (kill_at, texts)
    folder.joinpath("manifest.json").read_text() == "old" or [
        (folder / name).write_text("old") for name in ("baseline/teacher.onnx", "student.onnx", "manifest.json")
    ]
    kill_at += 1
print(kill_at, sorted(path.name for path in folder.parent.iterdir()))
"""


def test_export_killed_at_any_file_operation_leaves_a_whole_artifact_that_is_found(tmp_path):
    folder = tmp_path / "artifact"
    (folder / "baseline").mkdir(parents=True)
    for name in ("baseline/teacher.onnx", "student.onnx", "manifest.json"):
        (folder / name).write_text("old")
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", KILLED_AT, str(folder)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    num_kills, left = done.stdout.split(maxsplit=1)
    assert int(num_kills) >= 12
    assert left.strip() == "['artifact']"


def test_two_exports_to_one_folder_exclude_each_other_and_neighbours_do_not(tmp_path):
    (tmp_path / ".b.c.0a1b2c.tmp").mkdir()
    with artifact_lock(tmp_path / "b"), appearing(tmp_path / "b") as temporary:
        (temporary / "manifest.json").write_text("b")
        with pytest.raises(RunError, match="another process is exporting or benching"), artifact_lock(tmp_path / "b"):
            pass
        with artifact_lock(tmp_path / "b.c"):
            assert temporary.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.c.0a1b2c.tmp", "b"]  # that of another's is left
