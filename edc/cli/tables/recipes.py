"""The table of `edc recipes`."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from edc.recipe.shipped import ShippedRecipe

__all__ = ["print_recipes"]


def print_recipes(recipes: Sequence[ShippedRecipe], *, console: Console) -> None:
    """Prints one row per recipe: its name, what it is, and what it needs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    table.add_column("needs")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.about, recipe.needs)
    console.print(table)
