"""The command that hands out the recipes that edc ships: recipes."""

import difflib
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from edc.cli.options import Json, print_json, say, table_console
from edc.errors import FailedError, RequestError

__all__ = ["ShippedRecipe", "add_commands", "shipped_recipes"]

IN_WHEEL = Path(__file__).parents[1] / "recipe" / "shipped"
"""Where the wheel has them: pyproject.toml puts the repository's recipes there."""
IN_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that came with edc, and what its head says of it."""

    name: str
    file: str
    about: str
    needs: str


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this file to the command line."""
    app.command(epilog="Example: edc recipes digits")(recipes)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Copy this recipe to the current folder; default: list all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with edc, or copy one of them here to change it."""
    shipped = shipped_recipes()
    if name is None:
        if as_json:
            print_json({"recipes": [asdict(recipe) for recipe in shipped]})
        from edc.cli.tables.recipes import print_recipes

        print_recipes(shipped, console=table_console(as_json))
        say("copy one with: edc recipes NAME")
        return
    copied = _copy(_named(name, shipped))
    if as_json:
        print_json({"written": str(copied)})
    say(f"written: {copied}   next: {shlex.join(['edc', 'distill', str(copied), '--dry-run'])}")


def shipped_recipes() -> list[ShippedRecipe]:
    """Returns the recipes that came with this edc, by name: those of its wheel, or those of its repository.

    Raises:
        FailedError: there are none, so the installation is damaged.
    """
    is_repository = (IN_REPOSITORY / "pyproject.toml").is_file()
    folder = IN_REPOSITORY / "recipes" if is_repository and not IN_WHEEL.is_dir() else IN_WHEEL
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise FailedError(f"{folder}: found no recipes, expected those that come with edc; install edc again")
    return [_described(file) for file in files]


def _described(file: Path) -> ShippedRecipe:
    """Returns what the comments at the head of a recipe say: its first line, and the paragraph `needs`."""
    comments = file.read_text().split("\nname:", maxsplit=1)[0].splitlines()
    lines = [line.removeprefix("#").rstrip() for line in comments if line.startswith("#")]
    paragraphs = re.split(r"\n (?=[a-z]+\b {2})", "\n".join(lines))  # a keyword, then at least two blanks
    needs = next((text.removeprefix("needs") for text in paragraphs if text.startswith("needs ")), "")
    return ShippedRecipe(file.stem, str(file), lines[0].strip(), " ".join(needs.split()))


def _named(name: str, shipped: list[ShippedRecipe]) -> ShippedRecipe:
    by_name = {recipe.name: recipe for recipe in shipped}
    found = by_name.get(name.removesuffix(".yaml"))
    if found is None:
        nearest = difflib.get_close_matches(name.removesuffix(".yaml"), by_name, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(by_name)}"
        raise RequestError(f"NAME: found {name!r}, which is no recipe of edc; {hint}")
    return found


def _copy(recipe: ShippedRecipe) -> Path:
    """Copies a recipe to the current folder and returns where it is; what is there already stays as it is."""
    target, text = Path(f"{recipe.name}.yaml"), Path(recipe.file).read_bytes()
    try:
        with target.open("xb") as file:
            file.write(text)
    except FileExistsError:
        raise RequestError(
            f"{target}: is there already and is never overwritten; move it away, or call the command in another folder"
        ) from None
    except OSError as error:
        raise FailedError(
            f"{target}: cannot be written ({error.strerror}); call the command in another folder"
        ) from None
    return target
