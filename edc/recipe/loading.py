"""Reading a recipe: YAML, overrides, and one message that lists every mistake."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edc.errors import RecipeError, cut, shown
from edc.recipe import Recipe
from edc.recipe.without_effect import without_effect
from edc.system.documents import MOST_YAML_BYTES, read_text, yaml_from_text

__all__ = ["load_recipe", "recipe_from_document"]

MOST_MISTAKES = 20
"""That a message lists."""
MOST_PARTS = 20
"""Of a field's path in an override."""


def load_recipe(path: Path | str, *, overrides: Iterable[str] = (), data_root: Path | None = None) -> Recipe:
    """Returns the recipe in `path` with `a.b=value` overrides applied.

    Raises:
        RecipeError: one message with every mistake, each by its field path.
    """
    path = Path(path)
    try:
        text = read_text(path, most_bytes=MOST_YAML_BYTES)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe{_nearby_recipes(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from None
    try:
        document = yaml_from_text(text)
    except ValueError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise RecipeError(
            f"{path}: found {type(document).__name__}, expected a mapping with data, network and students"
        )
    for override in overrides:
        _apply_override(document, override)
    if data_root is not None:
        data = document.setdefault("data", {})
        if isinstance(data, dict):
            data["root"] = str(data_root)
    recipe = recipe_from_document(document, source=str(path))
    is_of_a_run = path.with_name("inputs.json").is_file()  # it is what it was, and goes on
    if not is_of_a_run and (mistakes := without_effect(recipe)):
        found = f"{path}: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}"
        raise RecipeError("\n  ".join([found, *mistakes]))
    return recipe


def recipe_from_document(document: dict[str, Any], *, source: str) -> Recipe:
    """Returns the validated recipe; `source` is its name in error messages."""
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        lines = [cut(_describe(item), 600) for item in mistakes[:MOST_MISTAKES]]
        if len(mistakes) > MOST_MISTAKES:
            lines.append(f"... and {len(mistakes) - MOST_MISTAKES} more")
        found = f"{source}: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}"
        raise RecipeError("\n  ".join([found, *lines])) from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    override = cut(override, 200)
    *parents, last = path.split(".")
    if not separator or not path or len(parents) >= MOST_PARTS:
        raise RecipeError(f"--set {override}: expected field.path=value, for example training.epochs=10")
    try:
        value = yaml_from_text(text)
    except ValueError as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from None
    section: Any = document
    for i, key in enumerate(parents):
        where = f"--set {override}: {cut('.'.join(parents[: i + 1]), 100)}"
        if isinstance(section, list):
            if key not in map(str, range(len(section))):
                raise RecipeError(f"{where}: the list has {len(section)} entries, of which 0 is the first")
            child = section[int(key)]
        else:
            child = section.setdefault(key, {})
        if isinstance(child, str) and key == "network":  # `network: wrn28x4` is short for a mapping
            child = section[key] = {"name": child}
        if not isinstance(child, dict | list):
            raise RecipeError(f"{where} is {shown(child)}, not a section")
        section = child
    if isinstance(section, list):
        raise RecipeError(f"--set {override}: {'.'.join(parents)} is a list; say which entry and which field of it")
    section[last] = value


def _describe(item: Any) -> str:
    """Returns `field.path: what is wrong`, with the nearest key for an unknown one."""
    location = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(str(item["loc"][-1]), _keys_at(item["loc"][:-1]), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(_keys_at(item['loc'][:-1]))}"
        return f"{cut(location, 200)}: unknown key{hint}"
    if item["type"] == "missing":
        return f"{location}: missing; it is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":  # our own messages already say what was found
        return message if location == "recipe" else f"{location}: {message}"
    return f"{location}: found {shown(item['input'])}; {message[0].lower()}{message[1:]}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Returns the keys that the section at `location` knows."""
    model: type[BaseModel] = Recipe
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a student's name or a list index: the section type is already right
        found = _section_in(field.annotation)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in getattr(annotation, "__args__", ()) if (found := _section_in(argument))), None)


def _nearby_recipes(path: Path) -> str:
    """Returns a hint: recipes of a similar name, or the ones in the same folder."""
    if not path.parent.is_dir():
        return f" (and no folder {path.parent})"
    names = sorted(file.name for file in path.parent.glob("*.yaml"))
    nearest = difflib.get_close_matches(path.name, names, n=1)
    if nearest:
        return f"; did you mean {path.parent / nearest[0]}?"
    return f"; {path.parent} has: {', '.join(names)}" if names else ""
