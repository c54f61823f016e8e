"""The JSON Schema of a recipe, for editors: what the sections are, and the shorter forms that stand for them."""

from typing import Any, get_args

from edc.recipe.data_section import ExtraSection
from edc.recipe.recipe import Recipe

__all__ = ["recipe_schema"]

TEXT, OVER_0 = {"type": "string"}, {"type": "number", "exclusiveMinimum": 0}
OF_OTHER_STUDENT = {
    "type": "object",
    "properties": {"as_long_as": TEXT, "times": OVER_0},
    "required": ["as_long_as"],
    "additionalProperties": False,
}
EXTRA = {"$ref": "#/$defs/ExtraSection"}

INSTEAD_OF_SECTION: dict[str, dict[str, Any]] = {
    "NetworkSection": TEXT,  # its name
    "CheckpointSection": TEXT,  # its file
    "ExtraSection": {"enum": [*get_args(ExtraSection.model_fields["kind"].annotation)]},
}
INSTEAD_OF_VALUE: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("DataSection", "extra"): (EXTRA, {"type": "null"}),
    ("StudentSection", "epochs"): (OF_OTHER_STUDENT,),
    ("CheckpointSection", "weights"): ({"const": "auto"},),
    ("NetworkSection", "weights"): ({"const": "auto"},),
    ("CheckpointSection", "trust"): ({"const": False},),
    ("CheckpointSection", "classes"): ({"type": "array", "items": {"type": ["string", "integer"]}},),
}
"""What a recipe may say in place of what a section holds: validators turn it into that, which pydantic cannot know."""


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe as it is written, which is shipped as `recipes/recipe.schema.json`."""
    schema = Recipe.model_json_schema(mode="validation")
    sections = schema["$defs"]
    for (section, field), values in INSTEAD_OF_VALUE.items():
        sections[section]["properties"][field] = _or(sections[section]["properties"][field], *values)
    for section, value in INSTEAD_OF_SECTION.items():
        sections[section] = _or(sections[section], value)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _or(schema: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """Returns what allows `others` beside `schema`, under the same title and description."""
    outside: dict[str, Any] = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    inside = {key: value for key, value in schema.items() if key not in outside}
    allowed = inside["anyOf"] if set(inside) == {"anyOf"} else [inside]
    return {**outside, "anyOf": [*allowed, *others]}
