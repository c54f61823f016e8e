"""The site is built from every document, strictly: a broken link, anchor or name of the interface ends it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS

import edc

ROOT = TESTS.parent


@pytest.fixture(scope="module")
def site_module():
    spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / "docs/site.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_site_is_built_without_a_warning(site_module, tmp_path, monkeypatch):
    monkeypatch.setattr(site_module, "PAGES", tmp_path / "build/site/pages")
    site_module.main()
    config = tmp_path / "mkdocs.yml"
    config.write_text((ROOT / "mkdocs.yml").read_text())
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(config)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    html = tmp_path / "build/site/html"
    assert "one deployable network" in (html / "index.html").read_text()
    interface = (html / "docs/api.html").read_text()
    for name in set(edc.__all__) - {"metrics"}:
        assert f'id="{_home_of(name)}.{name}"' in interface, name
    fields = (html / "docs/fields.html").read_text()
    for field in ("answers", "layer_decay", "extra_share", "allow_weak"):
        assert f"<code>{field}</code>" in fields


def _home_of(name: str) -> str:
    return str(getattr(edc, name).__module__)


def test_every_field_of_the_schema_has_a_row_with_its_default_and_values(site_module):
    schema = json.loads((ROOT / "recipes/recipe.schema.json").read_text())
    page = site_module.fields_page(schema).splitlines()
    assert "| `seed` | `0` | integer | Seed of the students; the teachers have their own in `teachers.seed`. |" in page
    assert any(line.startswith("| `ensemble_size` | `null` | integer") for line in page)
    assert any(line.startswith('| `answers` | `"all"` | `"all"`, `"split"` | `all`: every teacher') for line in page)
    names = set(schema["properties"])
    for section in schema["$defs"].values():
        for one in section.get("anyOf", [section]):
            names |= set(one.get("properties", ()))
    shown = {line.split("`")[1] for line in page if line.startswith("| `")}
    assert names - shown <= {"as_long_as", "times"}


def test_pages_of_the_site_are_those_that_its_navigation_names(site_module):
    named = set(_pages((ROOT / "mkdocs.yml").read_text()))
    written = {
        path.relative_to(ROOT).as_posix() for folder in site_module.FOLDERS for path in (ROOT / folder).glob("*.md")
    }
    assert named - {"docs/fields.md"} <= written
    unnamed = {name for name in written - named if Path(name).parts[0] in ("docs", "results")}
    assert unnamed == set()


def _pages(config: str) -> list[str]:
    navigation = config.split("\nnav:\n", maxsplit=1)[1]
    return [line.split()[-1] for line in navigation.splitlines() if line.endswith(".md")]
