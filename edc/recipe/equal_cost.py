"""Training at equal cost: the cost of a step, and the number of epochs for `epochs: {as_long_as: NAME}`."""

import difflib
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from edc.recipe.data_section import DataSection, num_extra_rows
from edc.recipe.sections import StudentSection
from edc.recipe.teachers_section import TeachersSection
from edc.recipe.training_section import TrainingSection

__all__ = ["units_of_perturbation", "units_per_step", "with_numbers_of_epochs"]

AS_LONG_AS, TIMES = "as_long_as", "times"


def units_per_step(student: StudentSection, ensemble_size: int, *, has_extra: bool = False) -> int:
    """Returns the forward-pass units of one step of a student: 7 for KD and 22 for LatentBE + TDiv-SDiv at M = 4.

    With `answers: split` it is 4 and 10, for any M; with `alpha: 0` a network that learns from labels alone takes 3.

    Args:
        has_extra: whether the data have extra images.
    """
    is_split = student.answers == "split"
    num_answers = (1 if is_split else ensemble_size) if student.asks_teachers(has_extra=has_extra) else 0
    num_learning = 1 if is_split or student.method == "kd" else ensemble_size
    return num_answers + 3 * num_learning + units_of_perturbation(student)


def units_of_perturbation(student: StudentSection) -> int:
    """Returns the forward-pass units that moving the images of a step takes."""
    return {"none": 0, "gaussian": 0, "ods": 2, "tdiv": 3, "tdiv_sdiv": 6}[student.perturbation]


def with_numbers_of_epochs(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe as read, with a number in place of each `epochs: {as_long_as: NAME, times: 1}`.

    The number is `times` * epochs of NAME * units of NAME / units of the student, rounded to the nearest whole epoch.
    The units are those of an epoch, which has more steps if the student learns from extra images. A section with
    another mistake gets no number; its own check reports the mistake.

    Raises:
        ValueError: one line, with the field, for each student whose number cannot be known.
    """
    students = recipe.get("students")
    if not isinstance(students, Mapping):
        return dict(recipe)
    wishes = {
        name: student["epochs"]
        for name, student in students.items()
        if isinstance(student, Mapping) and isinstance(student.get("epochs"), Mapping)
    }
    if not wishes:
        return dict(recipe)
    problems = [problem for name, wish in wishes.items() if (problem := _problem(name, wish, wishes, students))]
    if problems:
        raise ValueError("; ".join(problems))
    numbers = {name: _num_epochs(name, recipe, students, wishes) for name in wishes}
    replaced = {name: {**students[name], "epochs": number} for name, number in numbers.items()}
    return {**recipe, "students": {**students, **replaced}}


def _problem(name: Any, wish: Mapping[Any, Any], wishes: Mapping[Any, Any], students: Mapping[Any, Any]) -> str | None:
    """Returns what is wrong with one wish."""
    field = f"students.{name}.epochs"
    if unknown := [key for key in wish if key not in (AS_LONG_AS, TIMES)]:
        return f"{field}.{unknown[0]}: unknown key; known: {AS_LONG_AS}, {TIMES}"
    if AS_LONG_AS not in wish:
        return f"{field}: found {dict(wish)!r}; expected a number, or {{{AS_LONG_AS}: the name of a student}}"
    times = wish.get(TIMES, 1)
    if isinstance(times, bool) or not isinstance(times, int | float) or not 0 < times < math.inf:
        return f"{field}.{TIMES}: found {times!r}, expected a number over 0"
    fault = _fault_of_the_other(name, wish[AS_LONG_AS], wishes, students)
    return fault and f"{field}.{AS_LONG_AS}: {fault}"


def _fault_of_the_other(name: Any, other: Any, wishes: Mapping[Any, Any], students: Mapping[Any, Any]) -> str | None:
    """Returns why student `name` cannot train as long as `other`; in a circle, only the first gets a message."""
    if other == name:
        return f"found {other!r}, the student itself; expected another student"
    if not isinstance(other, str) or other not in students:
        nearest = difflib.get_close_matches(str(other), [str(known) for known in students if known != name], n=1)
        known = ", ".join(str(known) for known in students if known != name)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {known}" if known else "there is none"
        return f"found {other!r}, which is not a student; {hint}"
    path = [name]
    while isinstance(other, str) and other in wishes and other not in path:
        path.append(other)
        other = wishes[other].get(AS_LONG_AS)
    if other == name and path[0] == min(path, key=list(wishes).index):
        return f"{' -> '.join(map(str, [*path, name]))} is a circle; give one of them a number of epochs"
    return None


def _num_epochs(name: str, recipe: Mapping[str, Any], students: Mapping[str, Any], wishes: Mapping[str, Any]) -> Any:
    """Returns the epochs of a student; None if a section is wrong."""
    wish = wishes.get(name)
    try:
        training = TrainingSection.model_validate(recipe.get("training") or {})
        data = DataSection.model_validate(recipe.get("data"))
        ensemble_size = TeachersSection.model_validate(recipe.get("teachers") or {}).size
        if wish is None:
            student = StudentSection.model_validate(students[name] or {})
            return student.epochs or (student.training and student.training.epochs) or training.epochs
        student, other = (
            StudentSection.model_validate({**(students[one] or {}), "epochs": None}) for one in (name, wish[AS_LONG_AS])
        )
    except (ValidationError, TypeError):
        return None
    epochs = _num_epochs(wish[AS_LONG_AS], recipe, students, wishes)
    cost, other_cost = (_cost(each, data, training.batch_size, ensemble_size) for each in (student, other))
    if epochs is None or cost is None or other_cost is None:
        return None
    return max(1, math.floor(Fraction(wish.get(TIMES, 1)) * epochs * other_cost / cost + Fraction(1, 2)))


def _cost(student: StudentSection, data: DataSection, batch_size: int, ensemble_size: int) -> Fraction | None:
    """Returns the cost of an epoch in forward passes of one image, per labelled image of the data.

    A step uses the labelled images of one batch. None: a batch holds none, which is refused elsewhere.
    """
    batch_size = (student.training and student.training.batch_size) or batch_size
    num_extra = num_extra_rows(batch_size, data.extra_share) if data.extra and student.extra else 0
    units = units_per_step(student, ensemble_size, has_extra=bool(data.extra))
    return Fraction(units * batch_size, batch_size - num_extra) if num_extra < batch_size else None
