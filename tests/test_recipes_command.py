"""`edc recipes`: the recipes of the repository, and the same ones from an installed wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import edc
from conftest import TESTS

from edc.recipe.loading import load_recipe

RECIPES = sorted((TESTS.parent / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this repository."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(iter(WheelBuilder(str(TESTS.parent)).build(directory=str(folder), versions=["standard"]))))


def test_every_recipe_is_listed_with_the_first_line_and_the_needs_of_its_head(tmp_path):
    called = edc("recipes", "--json", cwd=tmp_path)
    listed = called.document["recipes"]
    assert [recipe["name"] for recipe in listed] == NAMES
    assert NAMES
    for recipe, path in zip(listed, RECIPES, strict=True):
        head = path.read_text()
        assert head.splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
        assert f"# {recipe['about']}\n" == head.splitlines(keepends=True)[1]
        assert f"# needs    {recipe['needs'].split(' (')[0]}"[:40] in head
        assert "reaches" not in recipe["needs"]
        assert recipe["needs"]


def test_needs_are_read_to_the_end_of_their_paragraph(tmp_path):
    listed = {recipe["name"]: recipe for recipe in edc("recipes", "--json", cwd=tmp_path).document["recipes"]}
    assert listed["digits"]["needs"] == "2 CPU cores, 1 GB of memory, no network"
    assert listed["imagenet_r18"]["needs"].endswith(
        "About 150 GB of images. Ask for the time on your machine with --dry-run."
    )


def test_people_get_a_table(tmp_path):
    called = edc("recipes", cwd=tmp_path)
    assert called.exit_code == 0
    lines = [line.split() for line in called.stdout.splitlines()]
    assert [line[0] for line in lines if line and line[0] in NAMES] == NAMES
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["digits", "digits.yaml"])
def test_a_recipe_is_copied_as_it_is_and_can_be_loaded(name, tmp_path):
    called = edc("recipes", name, "--json", cwd=tmp_path)
    assert called.document == {"written": "digits.yaml"}
    copied = tmp_path / "digits.yaml"
    assert list(tmp_path.iterdir()) == [copied]
    assert copied.read_bytes() == (TESTS.parent / "recipes/digits.yaml").read_bytes()
    assert load_recipe(copied).name == "digits"


def test_a_copy_says_how_its_first_line_finds_the_schema(tmp_path):
    said = edc("recipes", "digits", cwd=tmp_path).stderr
    command = ["recipes", "--schema"]
    assert f"edc {' '.join(command)} > recipe.schema.json" in said
    named = (tmp_path / "digits.yaml").read_text().splitlines()[0]
    assert named == "# yaml-language-server: $schema=recipe.schema.json"
    shipped = json.loads((TESTS.parent / "recipes/recipe.schema.json").read_text())
    assert edc(*command, cwd=tmp_path).document == shipped


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "digits.yaml").write_text("mine")
    called = edc("recipes", "digits", cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (2, "")
    assert called.stderr.startswith("error: digits.yaml: already exists")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("digits.yaml", "mine")]


def test_unknown_recipe_is_refused_with_the_nearest(tmp_path):
    called = edc("recipes", "digit", cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (2, "")
    assert "found 'digit'" in called.stderr
    assert "did you mean digits?" in called.stderr
    assert all(name in edc("recipes", "zzz", cwd=tmp_path).stderr for name in NAMES)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_to_is_one_message(tmp_path, monkeypatch):
    real = Path.open

    def refuse(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "xb":
            raise PermissionError(13, "Permission denied")
        return real(self, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)
    called = edc("recipes", "digits", cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (1, "")
    assert called.stderr.startswith("error: digits.yaml: cannot be written (Permission denied)")


def test_wheel_holds_every_recipe(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"edc/recipe/files/{path.name}" for path in RECIPES} <= set(names)


def test_installed_wheel_finds_its_recipes_without_the_repository(wheel, tmp_path):
    site, desk = tmp_path / "site", tmp_path / "desk"
    zipfile.ZipFile(wheel).extractall(site)
    desk.mkdir()

    def called(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "edc", "recipes", *arguments, "--json"],
            check=True,
            capture_output=True,
            cwd=desk,
            env=os.environ | {"PYTHONPATH": str(site)},
            timeout=60,
        )
        return json.loads(done.stdout)

    listed = called()["recipes"]
    assert [recipe["name"] for recipe in listed] == NAMES
    assert {Path(recipe["file"]).parent for recipe in listed} == {site / "edc/recipe/files"}
    assert called("digits") == {"written": "digits.yaml"}
    assert yaml.safe_load((desk / "digits.yaml").read_text())["name"] == "digits"


def test_installation_without_recipes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("edc.recipe.shipped.IN_WHEEL", tmp_path / "nowhere")
    monkeypatch.setattr("edc.recipe.shipped.IN_REPOSITORY", tmp_path)
    called = edc("recipes", cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (1, "")
    assert "found no recipes" in called.stderr
