"""The user's own teachers as a run has them: read as they were when its students began to learn from them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edc.console import console
from edc.data import DataSet
from edc.errors import RunError, first_line
from edc.networks import Normalisation
from edc.recipe import CheckpointSection, Recipe
from edc.runs.folder import RunFolder
from edc.system.documents import json_from_text
from edc.teachers.ensemble import load_own_teacher, load_own_teachers
from edc.teachers.reading import OwnTeacher, Reading

__all__ = ["own_teachers_of", "readings_of"]


def own_teachers_of(recipe: Recipe, data: DataSet, run: RunFolder) -> list[OwnTeacher]:
    """Returns the recipe's own teachers for `run`, in which students may have begun to learn; none if it lists none.

    A run that was made before readings were recorded keeps the one of then: the raw weights of a file with both, the
    data's normalisation where timm has its own, and the file's where the recipe has another. It says so, with what a
    new run would do.

    Raises:
        RunError: a teacher is read otherwise now than when the students began.
        And what `load_own_teachers` raises.
    """
    own = load_own_teachers(recipe, data)
    if not own or not run.has_begun:
        return own
    recorded = run.inputs() or {}
    if not any(_key(m) in recorded for m in range(len(own))):
        return [_as_then(recipe, data, m, now, _changes(recipe, data, m, now)) for m, now in enumerate(own)]
    for m, now in enumerate(own):
        then = _reading(recorded.get(_key(m), "{}"), run)
        if (in_file := now.reading.in_file) and then == _with_normalisation(now.reading, in_file).identity():
            own[m] = _as_then(recipe, data, m, now, {"mean": in_file[0], "std": in_file[1]})
            continue
        fields = [field for field, value in now.reading.identity().items() if then.get(field) != value]
        if fields:
            found = ", ".join(
                f"{field} was {then.get(field)!r} and is {now.reading.identity()[field]!r}" for field in fields
            )
            raise RunError(
                f"{run.path}: teacher {m} is read otherwise now than when students began to learn from it: {found}. "
                "Restore what the recipe names (a file of classes, the version of timm), or choose another folder with "
                "--run."
            )
    return own


def readings_of(own: Sequence[OwnTeacher], run: RunFolder) -> dict[str, str]:
    """Returns how the teachers of `run` are read, for inputs.json; nothing for a run that has begun without it."""
    readings = {_key(m): json.dumps(one.reading.identity(), sort_keys=True) for m, one in enumerate(own)}
    recorded = run.inputs() or {}
    return readings if not run.has_begun or any(key in recorded for key in readings) else {}


def _reading(text: str, run: RunFolder) -> dict[str, Any]:
    try:
        return dict(json_from_text(text))
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{run.inputs_path}: damaged ({first_line(error)}); restore it, or choose another folder with --run"
        ) from None


def _key(member: int) -> str:
    return f"how teacher {member} is read"


def _with_normalisation(reading: Reading, normalisation: Normalisation) -> Reading:
    return replace(reading, mean=normalisation[0], std=normalisation[1])


def _changes(recipe: Recipe, data: DataSet, member: int, now: OwnTeacher) -> dict[str, Any]:
    """Returns in which fields of its checkpoint a teacher was read otherwise before readings were recorded."""
    checkpoint, reading = recipe.teachers.checkpoints[member], now.reading
    update: dict[str, Any] = {}
    if checkpoint.file and reading.has_both and reading.is_ema and checkpoint.weights is None:
        update["weights"] = "raw"
    if checkpoint.file and reading.normalisation_of == "timm":
        update |= {"mean": data.mean, "std": data.std}
    if reading.in_file:
        update |= {"mean": reading.in_file[0], "std": reading.in_file[1]}
    return update


def _as_then(recipe: Recipe, data: DataSet, member: int, now: OwnTeacher, update: dict[str, Any]) -> OwnTeacher:
    """Returns a teacher read as an older edc did, in the fields of `update`, and says so; the same one without any."""
    if not update:
        return now
    checkpoint, reading = recipe.teachers.checkpoints[member], now.reading
    then: CheckpointSection = checkpoint.model_copy(update=update)
    whose = "its file's" if reading.in_file else "the data's"
    was = " and ".join(
        "its raw weights" if field == "weights" else f"{whose} mean and std" for field in update if field != "std"
    )
    console.print(
        f"warning: teacher {member} ({checkpoint.file}) has {was}, because this run was made so by an older edc. A new "
        f"run would read it otherwise: {reading.words}. To use that, choose another folder with --run.",
        highlight=False,
        markup=False,
    )
    return load_own_teacher(recipe, data, member, then)
