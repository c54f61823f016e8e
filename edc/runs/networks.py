"""The networks of a run by subject, as another process loads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from edc.data import DataSet, load_data
from edc.errors import RunError, edc_command
from edc.method.batch_ensemble import ensemble_size_of
from edc.recipe import Recipe
from edc.runs.choice import with_own_statistics
from edc.runs.folder import RunFolder
from edc.runs.own_teachers import own_teachers_of
from edc.runs.rows import member_temperature, rows_by_subject
from edc.runs.start import as_taught
from edc.runs.student import deployable, load_student
from edc.subject import Subject
from edc.teachers.ensemble import load_teachers, obtain_teacher, teacher_key

__all__ = ["SubjectNetworks", "load_subject", "prepare_run", "require_trained", "subjects_of"]


@dataclass(frozen=True)
class SubjectNetworks:
    """Networks in eval mode on the CPU whose members' probabilities are averaged.

    Several plain networks run in turn (an ensemble); or one network holds `members_per_network` members, for which it
    takes member-major rows m * N + n (a student before its fold). `member_temperature` divides each member's logits
    before that: the one in the run's summary, 1 if it has none yet.
    """

    networks: tuple[nn.Module, ...]
    members_per_network: int = 1
    member_temperature: float = 1.0


def subjects_of(recipe: Recipe) -> tuple[Subject, ...]:
    """Returns every network of a run: teachers, ensemble, students before and after the fold."""
    teachers = [Subject("teacher", member=m) for m in range(recipe.teachers.size)]
    students: list[Subject] = []
    for name, section in recipe.students.items():
        students += [Subject("members", name=name)] if section.method == "latent_be" else []
        students.append(Subject("student", name=name))
    return (*teachers, Subject("ensemble"), *students)


def prepare_run(run: Path, *, data_root: Path | None = None) -> None:
    """Reads the data set of a run, whose shapes and statistics its networks are built with; kept for the process."""
    _recipe_and_data(run.absolute(), data_root)


def load_subject(run: Path, subject: Subject, *, data_root: Path | None = None) -> SubjectNetworks:
    """Returns the networks of `subject`, one of `subjects_of`, in fp32 and any form; trains nothing.

    Raises:
        RunError: no such network in this run, or it is not trained yet.
    """
    folder = RunFolder(run)
    recipe, data = _recipe_and_data(run.absolute(), data_root)
    known, network = subjects_of(recipe), subject.network
    if network not in known:
        labels = ", ".join(each.label for each in known)
        raise RunError(f"{run}: no network {network.label!r} in this run; it has {labels}")
    if network.member is not None:
        return SubjectNetworks(_teachers(folder, recipe, data, [network.member]))
    if network.name is not None:
        return _student(folder, recipe, data, network.name, is_folded=network.role == "student")
    teachers = _teachers(folder, recipe, data, range(recipe.teachers.size))
    return SubjectNetworks(teachers, member_temperature=_member_temperature(folder, network))


def _member_temperature(folder: RunFolder, network: Subject) -> float:
    return member_temperature(rows_by_subject(folder.summary())[network]) if folder.summary_path.is_file() else 1.0


def _student(folder: RunFolder, recipe: Recipe, data: DataSet, name: str, *, is_folded: bool) -> SubjectNetworks:
    network = load_student(recipe, name, data, run=folder)
    if not is_folded:
        temperature = _member_temperature(folder, Subject("members", name=name))
        own = with_own_statistics(network, folder.student_path(name))
        return SubjectNetworks((own,), ensemble_size_of(own), member_temperature=temperature)
    return SubjectNetworks((deployable(network, recipe, name, data, accelerator=Accelerator(cpu=True)),))


def _teachers(folder: RunFolder, recipe: Recipe, data: DataSet, members: range | list[int]) -> tuple[nn.Module, ...]:
    accelerator = Accelerator(cpu=True)
    if recipe.teachers.checkpoints:
        own = [one.network for one in own_teachers_of(recipe, data, folder)]
        ensemble = load_teachers(recipe, data, teachers_path=folder.teachers_path, accelerator=accelerator, own=own)
        return tuple(ensemble[m] for m in members)
    taught = require_trained(folder, recipe, data, members)
    return tuple(
        obtain_teacher(taught, data, m, teachers_path=folder.teachers_path, accelerator=accelerator).eval()
        for m in members
    )


def require_trained(folder: RunFolder, recipe: Recipe, data: DataSet, members: Iterable[int]) -> Recipe:
    """Returns the recipe with its trained teachers as the run has them.

    Raises:
        RunError: one of these is not there; `obtain_teacher` would train it.
    """
    taught = as_taught(recipe, data, folder)
    for m in members:
        weights = folder.teachers_path / teacher_key(taught, data, m)[0] / "weights.safetensors"
        if not weights.is_file():
            raise RunError(
                f"{weights}: teacher {m} is not trained; train it with: "
                + edc_command("teach", folder.recipe_path, "--runs", folder.path.parent)
            )
    return taught


@cache
def _recipe_and_data(run: Path, data_root: Path | None) -> tuple[Recipe, DataSet]:
    recipe = RunFolder(run).recipe()
    data = recipe.data if data_root is None else recipe.data.model_copy(update={"root": data_root})
    return recipe, load_data(data)
