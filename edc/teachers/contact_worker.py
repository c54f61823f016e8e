"""The process in which `first_contact` has teachers of strangers opened and tried.

It reads lines of JSON (what the recipe and the data are, then numbers of checkpoints), and answers each with one.
"""

import json
import os
import sys
from typing import Any

import torch

from edc.data import DataSet
from edc.data.images import MemoryImages
from edc.errors import CheckpointError, EdcError, first_line
from edc.recipe import Recipe
from edc.teachers.ensemble import load_own_teacher


def main() -> None:
    """Opens what it is told to until its input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # TorchScript can print
    recipe, data = _described(json.loads(sys.stdin.readline()))
    print(json.dumps({"error": None}), file=answers)
    for line in sys.stdin:
        member, answer = json.loads(line), dict[str, str | None](error=None)
        try:
            load_own_teacher(recipe, data, member, recipe.teachers.checkpoints[member])
        except EdcError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever a file makes libraries raise, it cannot be used
            source = f"teachers.checkpoints.{member}: {recipe.teachers.checkpoints[member].file}"
            said = f"{type(error).__name__}: {first_line(error)}"
            answer = {"error": CheckpointError.__name__, "message": f"{source}: cannot be opened and tried ({said})"}
        print(json.dumps(answer), file=answers)


def _described(facts: dict[str, Any]) -> tuple[Recipe, DataSet]:
    none = MemoryImages(torch.empty(0, *facts["image_shape"], dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    how: Any = {name: tuple(facts[name]) for name in ("class_names", "image_shape", "mean", "std")}
    return Recipe.model_validate(facts["recipe"]), DataSet(none, none, none, **how)


if __name__ == "__main__":
    main()
