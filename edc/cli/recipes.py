"""The command that lists and copies the recipes that edc ships: recipes."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edc.cli.options import Json, print_json, say, table_console
from edc.errors import FailedError, RequestError, edc_command

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this file to the command line."""
    app.command(epilog="Example: edc recipes digits")(recipes)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Copy this recipe to the current folder; default: list all.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, by which editors check and complete.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the recipes that come with edc, or copy one of them here to change it."""
    if schema:
        if name is not None:
            raise RequestError(f"--schema: has no effect on {name}, because all recipes have one schema; leave one out")
        from edc.recipe.schema import recipe_schema

        print_json(recipe_schema())
        return
    from edc.recipe.shipped import shipped_recipe, shipped_recipes

    if name is None:
        from edc.cli.tables.recipes import print_recipes

        found = shipped_recipes()
        if as_json:
            print_json({"recipes": [asdict(recipe) for recipe in found]})
        print_recipes(found, console=table_console(as_json))
        say("copy one with: edc recipes NAME")
        return
    copied = _copied(Path(shipped_recipe(name).file))
    if as_json:
        print_json({"written": str(copied)})
    say("its first line is for editors, which find the schema after: edc recipes --schema > recipe.schema.json")
    say(f"written: {copied}   next: {edc_command('distill', copied, '--dry-run')}")


def _copied(source: Path) -> Path:
    """Copies a recipe to the current folder and returns its path; never overwrites a file."""
    target, content = Path(source.name), source.read_bytes()
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise RequestError(
            f"{target}: already exists and is never overwritten; move it away, or call the command in another folder"
        ) from None
    except OSError as error:
        raise FailedError(
            f"{target}: cannot be written ({error.strerror}); call the command in another folder"
        ) from None
    return target
