"""`recipes/recipe.schema.json`: what an editor checks a recipe by, against the validation of edc itself."""

import copy
import json
from typing import Any

import pytest
from command_line import edc
from conftest import TESTS

from edc.errors import RecipeError
from edc.recipe.loading import recipe_from_document
from edc.recipe.schema import recipe_schema
from edc.system.documents import yaml_from_text

RECIPES = sorted((TESTS.parent / "recipes").glob("*.yaml"))
SHIPPED = TESTS.parent / "recipes/recipe.schema.json"
SMALL = """
name: small
data: {kind: synthetic}
network: wrn10x1
students: {kd: {method: kd}, paper: {}}
"""


@pytest.fixture(scope="module")
def validators() -> list[Any]:
    """The schema as draft 7, which editors read, and as the draft that pydantic writes."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")
    schema = json.loads(SHIPPED.read_text())
    kinds = (jsonschema.Draft7Validator, jsonschema.Draft202012Validator)
    kinds[0].check_schema(schema)
    return [kind(schema) for kind in kinds]


def accepts(validators: list[Any], document: Any) -> bool:
    found = {validator.is_valid(document) for validator in validators}
    assert len(found) == 1
    return found.pop()


def edc_accepts(document: Any) -> bool:
    try:
        recipe_from_document(copy.deepcopy(document), source="a test")
    except RecipeError:
        return False
    return True


def test_shipped_schema_is_the_one_that_the_command_prints(tmp_path):
    called = edc("recipes", "--schema", cwd=tmp_path)
    assert called.exit_code == 0
    assert called.stdout == SHIPPED.read_text(), "call: edc recipes --schema > recipes/recipe.schema.json"
    assert called.document == recipe_schema()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_names_the_schema_and_fits_it(path, validators):
    first, document = path.read_text().splitlines()[0], yaml_from_text(path.read_text())
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")) == SHIPPED
    assert [error.message for error in validators[0].iter_errors(document)] == []
    assert accepts(validators, document)
    resolved = recipe_from_document(document, source=path.name).model_dump(mode="json")
    assert accepts(validators, resolved)  # every field with its value, as a run keeps it


OTHER_FORMS = {
    "a network by name": ("teachers", {"network": "wrn10x1"}),
    "a checkpoint by its file": ("teachers", {"checkpoints": ["a.pth", {"file": "b.pth", "network": "wrn10x1"}]}),
    "names of classes that YAML takes for numbers": (
        "teachers",
        {"ensemble_size": 2, "checkpoints": [{"file": "a.pth", "classes": [1, "b"]}, "b.pth"]},
    ),
    "defaults of a checkpoint written out": (
        "teachers",
        {"checkpoints": [{"file": "a.pth", "weights": "auto", "trust": False, "allow_weak": False}] * 2},
    ),
    "the epochs of another student": (
        "students",
        {"kd": {"method": "kd", "epochs": {"as_long_as": "paper"}}, "paper": {}},
    ),
    "one section of extra images": ("data", {"kind": "synthetic", "extra": {"kind": "synthetic"}}),
    "extra images by their kind": ("data", {"kind": "synthetic", "train_limit": 200, "extra": "remainder"}),
    "a list of them": ("data", {"kind": "synthetic", "extra": ["synthetic", {"kind": "synthetic", "num_images": 9}]}),
    "no extra images": ("data", {"kind": "synthetic", "extra": None}),
    "a start by its word": ("network", {"name": "torchvision/resnet18", "start": "random"}),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_FORMS)
def test_schema_accepts_the_shorter_forms_that_edc_accepts(case, validators):
    section, value = OTHER_FORMS[case]
    document = yaml_from_text(SMALL) | {section: value}
    assert edc_accepts(document)
    assert accepts(validators, document)


WRONG = {
    "an unknown key": ("training", {"epoch": 3}),
    "an unknown key in a student": ("students", {"kd": {"metod": "kd"}}),
    "a word for a number": ("training", {"epochs": "many"}),
    "an unknown method": ("students", {"kd": {"method": "bagging"}}),
    "an unknown kind": ("data", {"kind": "folder"}),
    "as long as nobody": ("students", {"kd": {"method": "kd", "epochs": {"times": 2}}}),
    "no student": ("students", {}),
    "extra images of no kind": ("data", {"kind": "synthetic", "extra": "rest"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_schema_refuses_what_edc_refuses(case, validators):
    section, value = WRONG[case]
    document = yaml_from_text(SMALL) | {section: value}
    assert not edc_accepts(document)
    assert not accepts(validators, document)


def test_fields_are_described_as_in_their_docstrings():
    sections = recipe_schema()["$defs"]
    (student,) = [sections["StudentSection"]]
    assert student["properties"]["alpha"]["description"].startswith(
        "Weight of the distillation loss; 1: labels are not"
    )
    assert student["properties"]["epochs"]["description"].startswith("Epochs of this student;")
    described = [field for section in ("StudentSection", "TrainingSection") for field in _described(sections[section])]
    assert len(described) > 20


def _described(section: dict[str, Any]) -> list[str]:
    return [name for name, field in section["properties"].items() if "description" in field]


def test_schema_of_one_recipe_alone_is_refused(tmp_path):
    called = edc("recipes", "digits", "--schema", cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (2, "")
    assert "--schema: has no effect on digits" in called.stderr
    assert list(tmp_path.iterdir()) == []
