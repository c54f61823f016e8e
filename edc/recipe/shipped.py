"""The recipes that come with edc, and the comments at the head of each."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from edc.errors import FailedError, RequestError

__all__ = ["ShippedRecipe", "shipped_recipe", "shipped_recipes"]

IN_WHEEL = Path(__file__).parent / "files"
"""Their folder in the wheel: pyproject.toml puts the repository's recipes there."""
IN_REPOSITORY = Path(__file__).parents[2]
FOR_EDITORS = "yaml-language-server: $schema="
"""The first line of a recipe says where its JSON Schema is."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that came with edc, and the comments at its head."""

    name: str
    file: str
    about: str
    needs: str


def shipped_recipes() -> list[ShippedRecipe]:
    """Returns the recipes that came with this edc, by name, from its wheel or its repository.

    Raises:
        FailedError: there are none, so the installation is damaged.
    """
    is_repository = (IN_REPOSITORY / "pyproject.toml").is_file()
    folder = IN_REPOSITORY / "recipes" if is_repository and not IN_WHEEL.is_dir() else IN_WHEEL
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise FailedError(f"{folder}: found no recipes, expected those that come with edc; install edc again")
    return [_described(file) for file in files]


def shipped_recipe(name: str) -> ShippedRecipe:
    """Returns the recipe called `name`, with or without its file suffix; raises `RequestError` if there is none."""
    by_name = {recipe.name: recipe for recipe in shipped_recipes()}
    stem = name.removesuffix(".yaml")
    if stem not in by_name:
        nearest = difflib.get_close_matches(stem, by_name, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(by_name)}"
        raise RequestError(f"NAME: found {name!r}, which is no recipe of edc; {hint}")
    return by_name[stem]


def _described(file: Path) -> ShippedRecipe:
    """Returns the recipe with two parts of its head comments: the first line for people, and the paragraph `needs`."""
    comments = file.read_text().split("\nname:", maxsplit=1)[0].splitlines()
    lines = [line.removeprefix("#").rstrip() for line in comments if line.startswith("#") and FOR_EDITORS not in line]
    paragraphs = re.split(r"\n (?=[a-z]+\b {2})", "\n".join(lines))  # a keyword, then at least two blanks
    needs = next((text.removeprefix("needs") for text in paragraphs if text.startswith("needs ")), "")
    return ShippedRecipe(file.stem, str(file), lines[0].strip(), " ".join(needs.split()))
