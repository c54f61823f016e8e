"""The steps of a run: data, teachers, students, summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from edc.console import console
from edc.data import DataSet, load_training_data, steps_per_epoch
from edc.data.data_set import as_looked_at
from edc.data.overlap import warn_of_overlap
from edc.errors import RecipeError, first_line
from edc.method.batch_ensemble import member_logits, to_batch_ensemble
from edc.networks import Classifier, count_parameters, network_for, require_logits
from edc.recipe import NetworkSection, Recipe, TrainingSection
from edc.runs.folder import HOW_EPOCHS_ARE_CHOSEN, HOW_IMAGES_ARE_READ, TEST_IMAGES, RunFolder, run_folder
from edc.runs.own_teachers import own_teachers_of, readings_of
from edc.runs.start import as_taught, require_start_files, require_teachers_to_start_from, start_digests
from edc.runs.student import build_plain, learned_by, train_student
from edc.runs.summary import summarise
from edc.system.files import exclusive_lock, require_free_disk
from edc.teachers.ensemble import fetch_teacher_weights, load_teachers, teacher_digests
from edc.teachers.reading import OwnTeacher
from edc.teachers.roll_call.call import call_roll
from edc.train.distributed import by_main, locked_by_main, one_of_a_machine_first, raised_together
from edc.train.evaluate import norms_of
from edc.train.placement import deterministic_if, require_tf32_has_effect
from edc.train.sync_batchnorm import require_batchnorm_rows, require_sharable, require_synchronisable

__all__ = ["distill", "distill_all", "require_trainable"]


PAIRS_MIXED = "the pairs of labelled and extra images that views mix (drawn anew since edc shuffles them)"


def distill(recipe: Recipe, *, run: RunFolder | Path | str, accelerator: Accelerator | None = None) -> dict[str, Any]:
    """Runs `recipe` to its end in the folder `run`, continuing where an earlier call stopped; returns the summary."""
    run, accelerator = run_folder(run), accelerator or Accelerator()
    finished = by_main(lambda: _finished(recipe, run), accelerator)
    if finished is not None:
        if accelerator.log_with and accelerator.is_main_process:
            console.print(f"{run.path}: is finished, so nothing is sent to a tracker", highlight=False, markup=False)
        return finished
    by_main(lambda: _require_free(run), accelerator)  # said at once, not after the data and the teachers are read
    with deterministic_if(recipe.training.deterministic):
        return _distill(recipe, run, accelerator)


def _distill(recipe: Recipe, run: RunFolder, accelerator: Accelerator) -> dict[str, Any]:
    data = one_of_a_machine_first(lambda: _as_begun(load_training_data(recipe.data), run), accelerator)
    with raised_together(accelerator):  # all that can be wrong with the request, before the folder is claimed
        require_free_disk(run.path, require_trainable(recipe, data, accelerator=accelerator), "this run")
    own = one_of_a_machine_first(lambda: own_teachers_of(recipe, data, run), accelerator)
    own_teachers = [one.network for one in own]
    with raised_together(accelerator):
        require_teachers_to_start_from(recipe, data, own_teachers)
    taught = by_main(lambda: as_taught(recipe, data, run), accelerator)
    loading: Any = {"teachers_path": run.teachers_path, "accelerator": accelerator}
    if own:  # before anything is written
        teachers = load_teachers(recipe, data, own=own_teachers, **loading)
        roll = call_roll(recipe, data, teachers, own, accelerator=accelerator)
    one_of_a_machine_first(lambda: _fetch_weights(taught, data, run), accelerator)
    by_main(lambda: warn_of_overlap(data), accelerator)
    by_main(lambda: run.require_claimable(recipe), accelerator)
    with locked_by_main(run.lock_path, held_by_other=_busy(run), accelerator=accelerator, vanishes=True):
        by_main(lambda: _claim(recipe, taught, data, run, own), accelerator)
        if not own:
            teachers = load_teachers(taught, data, **loading)
            roll = call_roll(recipe, data, teachers, (), accelerator=accelerator)
        students = {
            name: train_student(recipe, name, data, teachers, run=run, accelerator=accelerator)
            for name in recipe.students
        }
        summary = summarise(recipe, data, teachers, students, run=run, accelerator=accelerator, roll=roll)
        by_main(lambda: run.write_summary(summary), accelerator)
        accelerator.wait_for_everyone()
    return summary


def distill_all(recipes: Mapping[RunFolder, Recipe], *, accelerator: Accelerator) -> None:
    """Runs recipes one after another, each in its folder; finished ones are left alone.

    Raises:
        RunError: one of the folders is another recipe's, said before anything is trained.
    """
    for run, recipe in recipes.items():
        by_main(lambda run=run, recipe=recipe: run.require_claimable(recipe), accelerator)  # type: ignore[misc]
    for number, (run, recipe) in enumerate(recipes.items(), start=1):
        if len(recipes) > 1 and accelerator.is_main_process:
            state = "finished" if run.summary_path.is_file() else "to be trained"
            console.print(f"{run.path} ({number} of {len(recipes)}, seed {recipe.seed}): {state}", highlight=False)
        distill(recipe, run=run, accelerator=accelerator)


def _claim(recipe: Recipe, taught: Recipe, data: DataSet, run: RunFolder, own: Sequence[OwnTeacher]) -> None:
    teachers = {f"teacher {m}": digest for m, digest in enumerate(teacher_digests(taught, data))}
    extra = {"the extra images": data.extra.fingerprint()} if data.extra else {}
    if data.extra and any(section.extra and section.mixed_views for section in recipe.students.values()):
        # Until rows were shuffled for it, every labelled image was mixed with an extra one: another training.
        extra[PAIRS_MIXED] = "drawn at random"
    inputs = {"the images": data.fingerprint()} | extra | teachers | readings_of(own, run)
    if not run.records(HOW_IMAGES_ARE_READ):
        run.warn_of_images_read_otherwise(data)
    else:
        inputs |= {HOW_IMAGES_ARE_READ: "turned by EXIF, grey ones of 16 bits scaled"}
    if run.records(HOW_EPOCHS_ARE_CHOSEN):
        inputs |= {HOW_EPOCHS_ARE_CHOSEN: "as deploy_by says"}
    inputs |= {TEST_IMAGES: data.test.fingerprint()}
    run.claim(recipe, inputs | start_digests(recipe, data, run))


def _as_begun(data: DataSet, run: RunFolder) -> DataSet:
    """Returns the data for `run`, whose students may have begun to learn from images as an older edc read them."""
    return data if run.records(HOW_IMAGES_ARE_READ) else as_looked_at(data)


def _fetch_weights(recipe: Recipe, data: DataSet, run: RunFolder) -> None:
    """Lets the libraries fetch the weights that the run will need, so that missing ones are known at once."""
    from_library = [name for name, section in recipe.students.items() if recipe.network_of(section).pretrained]
    for name in from_library[:1]:  # they are one network
        build_plain(recipe, data, name=name)
    fetch_teacher_weights(recipe, data, teachers_path=run.teachers_path)


def _busy(run: RunFolder) -> str:
    return f"{run.path}: another process is at work on this run; wait for it, or choose another folder with --run"


def _require_free(run: RunFolder) -> None:
    """Raises `RunError` if another process is at work on the run; changes nothing."""
    if run.lock_path.exists():
        with exclusive_lock(run.lock_path, held_by_other=_busy(run), vanishes=True):
            pass


def _finished(recipe: Recipe, run: RunFolder) -> dict[str, Any] | None:
    """Returns the summary of a run of `recipe` that is finished; raises `RunError` if the folder is another's."""
    run.require_claimable(recipe)
    return run.summary() if run.summary_path.is_file() else None


def require_trainable(recipe: Recipe, data: DataSet, *, accelerator: Accelerator) -> int:
    """Tries the recipe's networks and batches on `data`, and returns the bytes that a run of it needs on disk.

    Raises:
        RecipeError: a network that does not take the images, or has nothing to convert to members; a batch that the
            processes cannot share, or that leaves BatchNorm a single image; a BatchNorm they cannot synchronise.
        DataError: fewer training images than a batch.
    """
    trainings = _trainings(recipe)
    for one in trainings:
        require_tf32_has_effect(one.training, accelerator.device, field=one.field)
        require_sharable(one.training, num_processes=accelerator.num_processes, field=one.field)
    if not recipe.teachers.checkpoints:
        field = recipe.batch_field(recipe.teachers, "teachers")
        steps_per_epoch(data.train, recipe.training_of(recipe.teachers).batch_size, field=field)
    for name, section in recipe.students.items():
        field, extra = recipe.batch_field(section, f"students.{name}"), learned_by(section, data).extra
        steps_per_epoch(data.train, recipe.training_of(section).batch_size, extra, field=field)
    student, teacher = _tried(recipe.network, data), _tried(recipe.teacher_network, data)
    for one in trainings:
        network = teacher if one.of_teachers else student
        require_batchnorm_rows(
            network, one.training, num_processes=accelerator.num_processes, label=one.label, field=one.field
        )
        if accelerator.num_processes > 1 and one.training.sync_batchnorm:
            require_synchronisable(network, accelerator.device)
    require_start_files(recipe, data)
    for name, section in recipe.students.items():
        if section.answers == "split":
            _require_rows_for_all(recipe, name, num_processes=accelerator.num_processes)
        if section.mixed_views:
            _require_pairs(recipe, name, num_processes=accelerator.num_processes)
        if section.choose == "validation" and section.ema is None and not norms_of(student):
            raise RecipeError(
                f"students.{name}.choose: found 'validation', which has no effect: {recipe.network.name} has no "
                "BatchNorm to re-estimate, and there is no ema; leave it out"
            )
    if any(section.method == "latent_be" for section in recipe.students.values()):
        _try_members(student, data, source=recipe.network.name)
    # Final weights of every network, and one checkpoint: the network, its momentum, and the best one so far. What is
    # chosen from stays beside what is chosen, and a checkpoint holds the average and its best, too.
    student_bytes, teacher_bytes = 4 * count_parameters(student), 4 * count_parameters(teacher)
    num_teachers = 0 if recipe.teachers.checkpoints else recipe.teachers.size
    largest = max(student_bytes, teacher_bytes)
    num_averages = sum(section.ema is not None for section in recipe.students.values())
    num_weights = len(recipe.students) + sum(section.chooses for section in recipe.students.values()) + num_averages
    num_states = 10 if num_averages else 6
    return student_bytes * num_weights + teacher_bytes * num_teachers + num_states * largest


@dataclass(frozen=True)
class _Training:
    """A schedule that a run has, what has it, and the field that says how large its batches are."""

    training: TrainingSection
    label: str
    field: str
    of_teachers: bool = False


def _trainings(recipe: Recipe) -> list[_Training]:
    """Returns the schedules of a run: of students, one for all that have the shared one, and of teachers."""
    found = dict.fromkeys(
        _Training(
            recipe.training_of(section),
            f"student {name}" if section.training else "the student",
            recipe.batch_field(section, f"students.{name}"),
        )
        for name, section in recipe.students.items()
    )
    teachers = recipe.training_of(recipe.teachers), "a teacher", recipe.batch_field(recipe.teachers, "teachers")
    trains = not recipe.teachers.checkpoints
    return [*found, *([_Training(*teachers, of_teachers=True)] if trains else [])]


def _require_rows_for_all(recipe: Recipe, name: str, *, num_processes: int) -> None:
    """Raises `RecipeError` if a batch, divided among the teachers, would leave one of them with too few images.

    Each M rows in a row have one of each teacher (`draw_owners`), so the whole ones within a part are what is certain.
    """
    section = recipe.students[name]
    training, num_teachers = recipe.training_of(section), recipe.teachers.size
    field = recipe.batch_field(section, f"students.{name}")
    _, smallest = training.rows_at_once(num_processes)
    fewest = min(end // num_teachers - -(-start // num_teachers) for start, end in training.parts(num_processes))
    if fewest < 2:
        raise RecipeError(
            f"students.{name}.answers: 'split' divides each batch among {num_teachers} teachers, and {smallest} images "
            f"go through the networks at once ({field}.batch_size {training.batch_size} on "
            f"{num_processes} process{'es' * (num_processes > 1)}, micro_batch_size {training.micro_batch_size}): one "
            f"of them may get {max(fewest, 0)}, and 2 are needed. Multiples of {num_teachers} from {2 * num_teachers} "
            "on are enough"
        )


def _require_pairs(recipe: Recipe, name: str, *, num_processes: int) -> None:
    """Raises `RecipeError` where images that are mixed would not come in pairs in every process and micro-batch."""
    section = recipe.students[name]
    training, field = recipe.training_of(section), recipe.batch_field(section, f"students.{name}")
    micro, smallest = training.rows_at_once(num_processes)
    if micro % 2 or smallest % 2:
        mixed = " and ".join(section.mixed_views)
        raise RecipeError(
            f"students.{name}.views: {mixed} mix images in pairs, of {micro} that go through the networks at once "
            f"({field}.batch_size {training.batch_size} on {num_processes} process{'es' * (num_processes > 1)}, "
            f"micro_batch_size {training.micro_batch_size}); expected an even number in each process and micro-batch"
        )


def _try_members(student: Classifier, data: DataSet, *, source: str) -> None:
    """Raises errors that only members cause, as a `RecipeError`: now, not after hours."""
    images = torch.zeros(2, *data.image_shape)
    members = to_batch_ensemble(student, 2, example=images).eval()
    try:
        with torch.no_grad():
            member_logits(members, images)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise RecipeError(f"{source}: does not run with members ({first_line(error)}); use method 'kd'") from None


def _tried(section: NetworkSection, data: DataSet) -> Classifier:
    """Returns the network, tried on two images, without the library's own weights: only its shape is asked about."""
    network = network_for(section.bare(), data)
    require_logits(network, data.image_shape, data.num_classes, source=section.name)
    return network
