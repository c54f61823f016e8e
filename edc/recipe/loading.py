"""Reading a recipe: YAML, overrides, and one message that lists every mistake."""

import difflib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from edc.errors import RecipeError
from edc.recipe import Recipe

__all__ = ["load_recipe", "recipe_from_document"]


def load_recipe(path: Path | str, *, overrides: Iterable[str] = (), data_root: Path | None = None) -> Recipe:
    """Returns the recipe in `path` with `a.b=value` overrides applied.

    Raises:
        RecipeError: one message with every mistake, each by its field path.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe{_nearby_recipes(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
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
    return recipe_from_document(document, source=str(path))


def recipe_from_document(document: dict[str, Any], *, source: str) -> Recipe:
    """Returns the validated recipe; `source` is its name in error messages."""
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        lines = [_describe(item) for item in error.errors(include_url=False)]
        raise RecipeError(f"{source}: {len(lines)} mistake{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines)) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently keeps the last of two equal keys; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, f"found {key!r} as a key, expected a name", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}; keep one of them", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _apply_override(document: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"--set {override}: expected field.path=value, for example training.epochs=10")
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from None
    *parents, last = path.split(".")
    section: Any = document
    for i, key in enumerate(parents):
        where = f"--set {override}: {'.'.join(parents[: i + 1])}"
        if isinstance(section, list):
            if not key.isdigit() or int(key) >= len(section):
                raise RecipeError(f"{where}: the list has {len(section)} entries, of which 0 is the first")
            child = section[int(key)]
        else:
            child = section.setdefault(key, {})
        if isinstance(child, str) and key == "network":  # `network: wrn28x4` is short for a mapping
            child = section[key] = {"name": child}
        if not isinstance(child, dict | list):
            raise RecipeError(f"{where} is {child!r}, not a section")
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
        return f"{location}: unknown key{hint}"
    if item["type"] == "missing":
        return f"{location}: missing; it is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":  # our own messages already say what was found
        return message if location == "recipe" else f"{location}: {message}"
    return f"{location}: found {item['input']!r}; {message[0].lower()}{message[1:]}"


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
