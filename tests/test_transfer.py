"""Artifacts go elsewhere and come back as they were, or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import fsspec
import pytest
from command_line import edc

from edc.deploy.artifact.manifest import load_manifest, verify_files
from edc.deploy.transfer import name_of, pull, push, without_secrets
from edc.errors import ArtifactError, FailedError, NotInstalledError, RequestError


@pytest.fixture(scope="module")
def artifact(workshop) -> Path:
    return workshop.folder / "export/tiny"


@pytest.fixture(params=["folder", "memory"])
def address(request, tmp_path):
    yield str(tmp_path / "elsewhere" / "tiny") if request.param == "folder" else f"memory://{tmp_path.name}/tiny"
    fsspec.filesystem("memory").store.clear()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_comes_back_is_what_went(artifact, address, tmp_path):
    moved = []
    push(artifact, address, said=lambda path, num_bytes: moved.append((path, num_bytes)))
    assert moved[-1][0] == "manifest.json"
    assert pull(address, tmp_path / "back") == load_manifest(artifact)
    expected = {name: content for name, content in contents(artifact).items() if name in dict(moved)}
    assert contents(tmp_path / "back") == expected
    assert {file.path for file in load_manifest(artifact).files} | {"README.md", "manifest.json"} == set(expected)


def test_an_artifact_that_is_there_is_replaced_only_by_force_and_then_whole(artifact, address, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(artifact, earlier)
    document = json.loads((earlier / "manifest.json").read_text())
    (earlier / "left.plan").write_bytes(b"an engine")
    digest = hashlib.sha256(b"an engine").hexdigest()
    document["files"].append(document["files"][-1] | {"path": "left.plan", "bytes": 9, "sha256": digest})
    (earlier / "manifest.json").write_text(json.dumps(document))
    push(earlier, address)
    files, place = fsspec.core.url_to_fs(address)
    files.pipe_file(f"{place}/notes.txt", b"mine")
    with pytest.raises(RequestError, match="holds an artifact already; replace it with --force"):
        push(artifact, address)
    push(artifact, address, force=True)
    assert not files.exists(f"{place}/left.plan")
    assert files.cat_file(f"{place}/notes.txt") == b"mine"
    pull(address, tmp_path / "back")
    with pytest.raises(RequestError, match="back: holds an artifact already; replace it with --force"):
        pull(address, tmp_path / "back")
    (tmp_path / "back" / "manifest.json").write_text("{}")
    pull(address, tmp_path / "back", force=True)
    verify_files(tmp_path / "back", load_manifest(tmp_path / "back"))


def test_a_folder_that_holds_something_else_is_left_alone(artifact, address):
    files, place = fsspec.core.url_to_fs(address)
    files.makedirs(place, exist_ok=True)
    files.pipe_file(f"{place}/thesis.tex", b"years of work")
    with pytest.raises(RequestError, match=r"holds thesis\.tex and no manifest\.json"):
        push(artifact, address, force=True)
    files.pipe_file(f"{place}/manifest.json", b'{"name": "a web page"}')
    with pytest.raises(RequestError, match=r"its manifest\.json is no artifact's"):
        push(artifact, address, force=True)
    assert files.cat_file(f"{place}/thesis.tex") == b"years of work"
    assert files.cat_file(f"{place}/manifest.json") == b'{"name": "a web page"}'


def test_a_push_that_is_cut_off_leaves_no_artifact(artifact, tmp_path, monkeypatch):
    put, elsewhere = fsspec.get_filesystem_class("file").put_file, tmp_path / "elsewhere"

    def full(self, source, target, **options):
        if "baseline" in target:
            raise OSError(28, "No space left on device")
        return put(self, source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.get_filesystem_class("file"), "put_file", full)
        with pytest.raises(FailedError, match=r"elsewhere: OSError: .*No space left"):
            push(artifact, str(elsewhere))
    with pytest.raises(ArtifactError, match=r"no manifest\.json here"):
        pull(str(elsewhere), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(RequestError, match="as a push that was cut off leaves them; replace them with --force"):
        push(artifact, str(elsewhere))
    push(artifact, str(elsewhere), force=True)
    assert pull(str(elsewhere), tmp_path / "back") == load_manifest(artifact)


@pytest.mark.parametrize("damage", ["longer", "changed", "missing", "outside", "huge"])
def test_what_is_not_as_its_manifest_says_does_not_come_back(artifact, tmp_path, damage):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(artifact, elsewhere)
    model, manifest = elsewhere / "student.onnx", elsewhere / "manifest.json"
    content = model.read_bytes()
    expected = {
        "longer": r"student\.onnx: .* bytes, the manifest says",
        "changed": "another SHA-256",
        "missing": r"student\.onnx: is missing, and the manifest lists it",
        "outside": "not a path inside the artifact",
        "huge": r"manifest\.json: .* bytes, expected at most",
    }[damage]
    if damage == "longer":
        model.write_bytes(content + b"x")
    elif damage == "changed":
        model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        model.unlink()
    elif damage == "outside":
        document = json.loads(manifest.read_text())
        document["files"][0]["path"] = "../../stolen"
        manifest.write_text(json.dumps(document))
    else:
        manifest.write_bytes(b" " * (17 << 20))
    with pytest.raises(ArtifactError, match=expected):
        pull(str(elsewhere), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_commands_say_what_they_moved_and_refuse_an_unknown_address(artifact, tmp_path):
    pushed = edc("push", str(artifact), str(tmp_path / "there"), "--json", cwd=tmp_path)
    assert pushed.exit_code == 0, pushed.stderr
    assert json.loads(pushed.stdout)["files"] == len(load_manifest(artifact).files)
    pulled = edc("pull", str(tmp_path / "there"), cwd=tmp_path)
    assert pulled.exit_code == 0, pulled.stderr
    assert (tmp_path / "export/there/student.onnx").is_file()
    wrong = edc("push", str(artifact), "nowhere://x/y", cwd=tmp_path)
    assert wrong.exit_code == 2
    assert "nowhere://x/y: Protocol not known: nowhere" in wrong.stderr


def test_an_artifact_is_not_pushed_onto_or_into_itself(artifact, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(artifact, mine)
    (tmp_path / "alias").symlink_to(mine)
    for place in (mine, tmp_path / "alias", mine / "copy"):
        with pytest.raises(RequestError, match="is in the artifact that it would be a copy of"):
            push(mine, str(place), force=True)
    verify_files(mine, load_manifest(mine))


@pytest.mark.parametrize("cause", [None, ConnectionError("503 Service Unavailable")])
def test_what_cannot_be_reached_is_not_taken_for_absent(artifact, tmp_path, monkeypatch, cause):
    there, filesystem = tmp_path / "there", fsspec.get_filesystem_class("file")
    push(artifact, str(there))

    def refused(self, path, **_):
        if cause is None:
            raise OSError("503 Service Unavailable")
        raise FileNotFoundError(path) from cause  # as fsspec's HTTP does

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "info", refused)
        with pytest.raises(FailedError, match=r"there: .*503 Service Unavailable"):
            push(artifact, str(there))
        with pytest.raises(FailedError, match=r"there: .*503 Service Unavailable"):
            pull(str(there), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    verify_files(there, load_manifest(there))


def test_a_card_of_the_earlier_artifact_does_not_stay(artifact, address, tmp_path):
    push(artifact, address)
    without = tmp_path / "without"
    shutil.copytree(artifact, without)
    (without / "README.md").unlink()
    push(without, address, force=True)
    files, place = fsspec.core.url_to_fs(address)
    assert not files.exists(f"{place}/README.md")


def test_damage_is_said_of_the_address_and_not_of_a_folder_that_is_gone(artifact, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(artifact, elsewhere)
    (elsewhere / "manifest.json").write_text("<html>log in</html>")
    with pytest.raises(ArtifactError, match=r"elsewhere/manifest\.json: not JSON"):
        pull(str(elsewhere), tmp_path / "back")


def test_a_link_that_a_pull_replaces_leaves_nothing_behind(artifact, tmp_path):
    push(artifact, str(tmp_path / "there"))
    shutil.copytree(artifact, tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    pull(str(tmp_path / "there"), tmp_path / "link", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "link", "there"]
    verify_files(tmp_path / "kept", load_manifest(tmp_path / "kept"))
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://user:secret@host/a/model?token=SECRET", "https://host/a/model"),
        ("https://TOKEN@host/a/model#part", "https://host/a/model"),
        ("sftp://user:secret@host/a/model", "sftp://user@host/a/model"),
        ("hf://owner/name@main/model", "hf://owner/name@main/model"),
        ("hf://gpt2@main/model", "hf://gpt2@main/model"),
        ("s3://bucket/a#b/model", "s3://bucket/a#b/model"),
        ("../a?b/model", "../a?b/model"),
    ],
)
def test_addresses_are_shown_without_their_secrets(address, expected):
    assert without_secrets(address) == expected
    assert name_of(address) == "model"


@pytest.mark.parametrize("address", ["export/nb/.", "..", "/", "s3://bucket/..", "https://host/a/../?token=SECRET"])
def test_an_address_that_names_no_artifact_wants_a_folder(address):
    with pytest.raises(RequestError, match="ends in no name; say where") as raised:
        name_of(address)
    assert "SECRET" not in str(raised.value)


def test_secrets_are_not_repeated_in_errors(tmp_path):
    with pytest.raises((FailedError, NotInstalledError)) as raised:
        pull("http://user:secret@127.0.0.1:1/a?token=SECRET", tmp_path / "back")
    assert "secret" not in str(raised.value).lower()
