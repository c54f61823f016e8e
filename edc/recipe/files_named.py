"""Whether the files and folders that a recipe names are there, asked before torch loads."""

from collections.abc import Iterator
from pathlib import Path

from edc.errors import CheckpointError, DataError
from edc.recipe.data_section import FILE_KINDS, DataSection, ExtraSection
from edc.recipe.recipe import Recipe
from edc.recipe.teachers_section import CLASS_ORDERS

__all__ = ["require_named_files"]

START = "file of weights to start from"


def require_named_files(recipe: Recipe, *, trains: bool = True, with_teachers: bool = True) -> None:
    """Raises if something is not there that the recipe names by its path.

    Args:
        trains: whether students, and teachers without checkpoints, will start from files.
        with_teachers: whether the user's own teachers will be read.

    Raises:
        DataError: a folder of images.
        CheckpointError: files of weights or of class names; all that are missing.
    """
    sections: dict[str, DataSection | ExtraSection] = {"data": recipe.data}
    several = len(recipe.data.extra) > 1
    for number, extra in enumerate(recipe.data.extra):
        sections[f"data.extra.{number}" if several else "data.extra"] = extra
    for field, section in sections.items():
        if section.root is not None and _is_missing_folder(section.kind, section.root):
            also = " or --data-root" if field == "data" else ""
            raise DataError(
                f"{field}.root: no folder {section.root.absolute()}; point {field}.root{also} at the images"
            )
    named = [*(_of_teachers(recipe) if with_teachers else ()), *(_of_starts(recipe) if trains else ())]
    missing = [f"{field}: {file.absolute()}: no such {what}" for field, what, file in named if not file.exists()]
    if missing:
        raise CheckpointError("\n".join(dict.fromkeys(missing)))


def _is_missing_folder(kind: str, root: Path) -> bool:
    """Returns whether images lie in a folder that is not there; an address (s3:/...) is no folder."""
    return kind in FILE_KINDS and ":" not in root.as_posix() and not root.exists()


def _of_teachers(recipe: Recipe) -> Iterator[tuple[str, str, Path]]:
    for m, checkpoint in enumerate(recipe.teachers.checkpoints):
        if checkpoint.file is not None:
            yield f"teachers.checkpoints.{m}.file", "checkpoint", checkpoint.file
        if isinstance(checkpoint.classes, str) and checkpoint.classes not in CLASS_ORDERS:
            yield f"teachers.checkpoints.{m}.classes", "file of class names", Path(checkpoint.classes)


def _of_starts(recipe: Recipe) -> Iterator[tuple[str, str, Path]]:
    if not recipe.teachers.checkpoints and recipe.teacher_network.start_file:
        yield recipe.teacher_start_field, START, recipe.teacher_network.start_file
    for name, student in recipe.students.items():
        if file := recipe.network_of(student).start_file:
            yield recipe.start_field(student, f"students.{name}"), START, file
