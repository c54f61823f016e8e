"""Options of a recipe that would change nothing: an error in a recipe that is asked for.

The resolved recipe of a run has every field with its default, so only other values count. Runs of older edcs may hold
such values, and still load: their recipes are not asked again.
"""

from collections.abc import Iterator

from edc.recipe.recipe import Recipe
from edc.recipe.sections import StudentSection
from edc.recipe.teachers_section import TeachersSection

__all__ = ["without_effect"]


def without_effect(recipe: Recipe) -> list[str]:
    """Returns each field that has no effect, with its value and the reason."""
    found = [*_momentum(recipe), *_factor_rate(recipe), *_teachers(recipe.teachers)]
    for name, student in recipe.students.items():
        found += _student(recipe, student, f"students.{name}")
    if recipe.data.augmentation == "none" and not _is_default(recipe.data.crop_padding, recipe.data, "crop_padding"):
        found.append(_said("data.crop_padding", recipe.data.crop_padding, "augmentation 'none'"))
    return found


def _momentum(recipe: Recipe) -> Iterator[str]:
    """Yields momenta that no SGD uses: AdamW has its own."""
    sections: dict[str, TeachersSection | StudentSection] = {f"students.{n}": s for n, s in recipe.students.items()}
    if not recipe.teachers.checkpoints:
        sections["teachers"] = recipe.teachers
    uses_shared = False
    for field, section in sections.items():
        own = section.training.momentum if section.training else None
        is_adamw = recipe.training_of(section).optimizer == "adamw"
        if own is not None and is_adamw:
            yield _said(f"{field}.training.momentum", own, "optimizer 'adamw', which has momenta of its own")
        uses_shared = uses_shared or (own is None and not is_adamw)
    if not uses_shared and not _is_default(recipe.training.momentum, recipe.training, "momentum"):
        yield _said("training.momentum", recipe.training.momentum, "optimizer 'adamw', which has momenta of its own")


def _factor_rate(recipe: Recipe) -> Iterator[str]:
    """Yields rates of members' factors where no network has members; a student's own is refused by its section."""
    of_teachers = recipe.teachers.training and recipe.teachers.training.factor_rate
    if of_teachers is not None:
        yield _said("teachers.training.factor_rate", of_teachers, "teachers, which have no members")
    shared = recipe.training.factor_rate
    if shared is not None and all(student.method == "kd" for student in recipe.students.values()):
        yield _said("training.factor_rate", shared, "method 'kd' alone (a single network has no factors)")


def _teachers(teachers: TeachersSection) -> Iterator[str]:
    if not teachers.checkpoints:
        return
    for field in ("seed", "epochs"):
        if not _is_default(value := getattr(teachers, field), teachers, field):
            yield _said(f"teachers.{field}", value, "checkpoints, which lists trained teachers")


def _student(recipe: Recipe, student: StudentSection, field: str) -> Iterator[str]:
    size = student.perturbation_grey_levels
    if student.perturbation == "none" and not _is_default(size, student, "perturbation_grey_levels"):
        yield _said(f"{field}.perturbation_grey_levels", size, "perturbation 'none'")
    asks_teachers = student.asks_teachers(has_extra=bool(recipe.data.extra))
    if student.method == "kd" and student.answers == "split" and student.pair != "row" and not asks_teachers:
        yield _said(f"{field}.answers", "'split'", "alpha 0 and method 'kd', which learns from no teacher")
    if not asks_teachers and not _is_default(student.temperature, student, "temperature"):
        yield _said(f"{field}.temperature", student.temperature, "alpha 0, which learns from labels alone")


def _is_default(value: object, section: object, field: str) -> bool:
    return bool(value == type(section).model_fields[field].default)  # type: ignore[attr-defined]


def _said(field: str, value: object, reason: str) -> str:
    return f"{field}: found {value}, which has no effect with {reason}; leave it out"
