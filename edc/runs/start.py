"""The weights that the students of a run start from: random, the library's, a file's, or the best teacher's."""

import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from edc import metrics
from edc.console import console
from edc.data import DataSet
from edc.errors import CheckpointError, FailedError, first_line
from edc.networks import Classifier, network_for
from edc.recipe import NetworkSection, Recipe
from edc.runs.folder import RunFolder
from edc.teachers.ensemble import TeacherEnsemble, are_trained, teacher_key
from edc.teachers.file_teacher import FileTeacher
from edc.teachers.from_file import format_of
from edc.teachers.from_library import has_library_weights, place_of_library_weights
from edc.teachers.start import say_start, start_digest, start_from_file, start_from_teacher
from edc.train.distributed import raised_together
from edc.train.evaluate import labels_of, predict_logits

__all__ = [
    "as_taught",
    "require_fetchable",
    "require_start_files",
    "require_teachers_to_start_from",
    "start_digests",
    "start_student",
]

MOST_SECONDS = 10.0
"""That the place of weights may take to answer."""


def start_student(
    plain: Classifier,
    recipe: Recipe,
    name: str,
    data: DataSet,
    teachers: TeacherEnsemble,
    *,
    run: RunFolder,
    accelerator: Accelerator,
) -> None:
    """Loads the weights that student `name` starts from, of a file or a teacher, into the freshly initialised `plain`.

    The teacher is the one with the best validation accuracy; ties go to the first.
    """
    network, field = _start_of(recipe, name)
    if network.start is None:
        return
    if network.start_file:
        with raised_together(accelerator):
            network = _as_then(network, field, data, run)
            got, start = start_from_file(plain, network, field=field), str(network.start_file)
    else:
        training = recipe.training_of(recipe.teachers)
        labels = labels_of(data.validation)

        def accuracy(teacher: nn.Module) -> float:  # as summary.json has it, which names this teacher: never in bf16
            (logits,) = predict_logits(teacher, data.validation, recipe.data, training, accelerator)
            return metrics.accuracy(metrics.log_probs_from_logits(logits), labels)

        accuracies = [accuracy(teacher) for teacher in teachers.members]
        best = max(range(len(teachers)), key=accuracies.__getitem__)
        start_from_teacher(plain, network, teachers[best], source=f"{field}: teacher {best}")
        got, start = None, f"teacher {best}, whose validation accuracy is {100 * accuracies[best]:.2f} %"
    if accelerator.is_main_process:
        say_start(name, start, got)


def start_digests(recipe: Recipe, data: DataSet, run: RunFolder) -> dict[str, str]:
    """Returns a digest of each file that a student of `run` starts from, by the field that names it."""
    digests: dict[str, str] = {}
    for field, network in dict(_start_of(recipe, name)[::-1] for name in recipe.students).items():
        then = _as_then(network, field, data, run)
        if then != network:
            console.print(
                f"warning: {field}: students start from the raw weights of {network.start_file}, because this run was "
                "begun so by an older edc. A new run would take the moving average in it.",
                highlight=False,
                markup=False,
            )
        if (digest := start_digest(then, data, field=field)) is not None:
            digests[field] = digest
    return digests


def _as_then(network: NetworkSection, field: str, data: DataSet, run: RunFolder) -> NetworkSection:
    """Returns the network with the weights of its start file that students of `run` began from.

    Of a file that has raw weights and a moving average, edc 0.1.0 took the raw ones.
    """
    if network.start_file is None or network.weights or not run.has_begun:
        return network
    recorded, now = (run.inputs() or {}).get(field), start_digest(network, data, field=field)
    was_raw = recorded != now and recorded == (now or "").partition(" ")[0]
    return network.model_copy(update={"weights": "raw"}) if was_raw else network


def as_taught(recipe: Recipe, data: DataSet, run: RunFolder) -> Recipe:
    """Returns the recipe with its teachers as the students of `run` began to learn from them, and says so.

    Of a start file that has raw weights and a moving average, edc 0.1.0 took the raw ones for teachers, too.
    """
    network = recipe.teacher_network
    if recipe.teachers.checkpoints or network.start_file is None or network.weights or not run.has_begun:
        return recipe
    raw = recipe.teachers.model_copy(update={"network": network.model_copy(update={"weights": "raw"})})
    then = recipe.model_copy(update={"teachers": raw})
    recorded, keys = (run.inputs() or {}).get("teacher 0"), [teacher_key(each, data, 0)[0] for each in (recipe, then)]
    if keys[0] == keys[1] or recorded != keys[1]:
        return recipe
    console.print(
        f"warning: {recipe.teacher_start_field}: teachers started from the raw weights of {network.start_file}, "
        f"because {run.path} was begun so by an older edc. A new run would take the moving average in it.",
        highlight=False,
        markup=False,
    )
    return then


def require_start_files(recipe: Recipe, data: DataSet) -> None:
    """Tries to load every file that a student, or a teacher that is trained here, starts from.

    Raises:
        CheckpointError: a file is missing, has no weights, or has those of another architecture.
    """
    starts = dict(_start_of(recipe, name)[::-1] for name in recipe.students)
    if not recipe.teachers.checkpoints:
        starts[recipe.teacher_start_field] = recipe.teacher_network
    for field, network in starts.items():
        if network.start_file:
            start_from_file(network_for(network.bare(), data), network, field=field)


def require_teachers_to_start_from(recipe: Recipe, data: DataSet, own: Sequence[nn.Module]) -> None:
    """Tries each of the user's own teachers, if a student starts from the best of them.

    Raises:
        CheckpointError: a teacher has another architecture than the student, or answers in probabilities.
    """
    for name in recipe.students:
        network, field = _start_of(recipe, name)
        if network.start != "teacher":
            continue
        for m, (teacher, checkpoint) in enumerate(zip(own, recipe.teachers.checkpoints, strict=True)):
            source = f"{field}: found 'teacher', but teachers.checkpoints.{m}"
            found = format_of(checkpoint.file) if checkpoint.file else "state_dict"
            kind = found if checkpoint.format == "auto" else checkpoint.format
            if kind != "state_dict":
                raise CheckpointError(
                    f"{source} is a whole network ({kind}); a student starts from teachers that are state dicts of its "
                    f"own network, {network.name}"
                )
            if isinstance(teacher, FileTeacher) and teacher.output == "probabilities":
                raise CheckpointError(f"{source} answers in probabilities; a student needs one that answers in logits")
            start_from_teacher(network_for(network.bare(), data), network, teacher, source=source)


def require_fetchable(recipe: Recipe, data: DataSet, *, teachers_path: Path) -> None:
    """Raises `FailedError` if a run could not begin, because weights of a library are neither here nor within reach."""
    for field, name in _wanted(recipe, data, teachers_path):
        if has_library_weights(name):
            continue
        url = place_of_library_weights(name)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=MOST_SECONDS):
                pass
        except (OSError, ValueError, HTTPException) as error:
            raise FailedError(
                f"{field}: the weights of {name} are not here, and cannot be fetched from {url} ({first_line(error)}). "
                "Fetch them on a machine with a network (TORCH_HOME and HF_HOME say where they are kept), or start "
                "from random weights"
            ) from None


def _start_of(recipe: Recipe, name: str) -> tuple[NetworkSection, str]:
    """Returns the network of student `name`, and the field that says what it starts from."""
    student = recipe.students[name]
    return recipe.network_of(student), recipe.start_field(student, f"students.{name}")


def _wanted(recipe: Recipe, data: DataSet, teachers_path: Path) -> dict[tuple[str, str], None]:
    """Returns the networks of libraries whose weights the run needs, with the field that asks for them."""
    found: dict[tuple[str, str], None] = {}
    for m, checkpoint in enumerate(recipe.teachers.checkpoints):
        if checkpoint.file is None and checkpoint.network:
            found[f"teachers.checkpoints.{m}", checkpoint.network.name] = None
    teacher = recipe.teacher_network
    trains = not recipe.teachers.checkpoints and not are_trained(recipe, data, teachers_path=teachers_path)
    if trains and teacher.pretrained:
        found[recipe.teacher_start_field, teacher.name] = None
    for name, student in recipe.students.items():
        if recipe.network_of(student).pretrained:
            found[recipe.start_field(student, f"students.{name}"), recipe.network.name] = None
    return found
