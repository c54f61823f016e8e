"""What a run will cost: in forward passes of one network, and in time measured on this machine."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook

from edc.data import DataSet, steps_per_epoch
from edc.method.kinds import MemberForm
from edc.recipe import Recipe, StudentSection, TeachersSection
from edc.recipe.equal_cost import units_per_step
from edc.runs.folder import RunFolder
from edc.runs.start import require_teachers_to_start_from
from edc.runs.student import form_of, learned_by, train_student
from edc.runs.trial import few_images, few_steps
from edc.teachers.ensemble import build_teacher, load_own_teachers, load_teachers, obtain_teacher
from edc.train.average import decay_of
from edc.train.distributed import one_of_a_machine_first

__all__ = ["Cost", "estimate_costs", "units_per_step"]

WARMUP_STEPS, TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class Cost:
    """One training; a unit is a forward pass of a batch (backward counts 2, input-only backward 1)."""

    name: str
    units_per_step: int
    num_steps: int
    seconds_per_step: float
    member_form: MemberForm | None = None
    """How the members of a student go through a step, as the run would choose it here; None: there is one network."""
    shared_batches: float = 1.0
    """How many batches of the recipe's shared size a batch of this training is."""
    averaged_steps: float | None = None
    """How many of the last steps a moving average is of, as far as one number says it; None: there is no average."""

    @property
    def units(self) -> int:
        """Forward passes of a batch of the shared size, in all, as summary.json has them."""
        return round(self.units_per_step * self.num_steps * self.shared_batches)

    @property
    def seconds(self) -> float:
        return self.num_steps * self.seconds_per_step


def estimate_costs(recipe: Recipe, data: DataSet, *, accelerator: Accelerator) -> list[Cost]:
    """Returns the cost of each training of the run, from a few steps of it in a folder that is thrown away.

    All processes take part, each with its share of every batch. The user's own teachers answer if the recipe lists
    them, else untrained ones, which take as long. Call `require_trainable` first: it raises a run's other errors.

    Raises:
        CheckpointError, RecipeError: a user's teacher that cannot teach, as in a run.
    """
    size, short = recipe.teachers.size, few_steps(recipe)
    costs = []
    with tempfile.TemporaryDirectory(prefix="edc-dry-run-") as temporary:
        run = RunFolder(Path(temporary) / "run")
        read = one_of_a_machine_first(lambda: load_own_teachers(short, data), accelerator)
        own = [one.network for one in read]
        require_teachers_to_start_from(recipe, data, own)
        own = own or [build_teacher(short, data, fresh=False) for _ in range(size)]
        teachers = load_teachers(short, data, own=own, teachers_path=run.teachers_path, accelerator=accelerator)
        if not recipe.teachers.checkpoints:
            few, num_steps = _timed(recipe, recipe.teachers, replace(data, extra=None), accelerator)
            train = partial(obtain_teacher, short, few, 0, teachers_path=run.teachers_path, accelerator=accelerator)
            seconds = _seconds_per_step(train, accelerator.device)
            costs.append(
                Cost(f"{size} teachers", 3, num_steps * size, seconds, None, recipe.shared_batches(recipe.teachers))
            )
        for name, student in recipe.students.items():
            few, num_steps = _timed(recipe, student, learned_by(student, data), accelerator)
            learn = partial(train_student, short, name, few, teachers, run=run, accelerator=accelerator, observed=False)
            seconds = _seconds_per_step(learn, accelerator.device)
            form = form_of(recipe, name, run=run)
            units = units_per_step(student, size, has_extra=data.extra is not None)
            averaged = None if student.ema is None else 1 / (1 - decay_of(student.ema, num_steps=num_steps))
            costs.append(Cost(name, units, num_steps, seconds, form, recipe.shared_batches(student), averaged))
    return costs


def _timed(
    recipe: Recipe, section: TeachersSection | StudentSection, learned: DataSet, accelerator: Accelerator
) -> tuple[DataSet, int]:
    """Returns the images of the steps that are timed of one training, and how many steps the whole of it has."""
    training = recipe.training_of(section)
    few = few_images(
        learned,
        WARMUP_STEPS + TIMED_STEPS,
        batch_size=training.batch_size,
        num_processes=accelerator.num_processes,
    )
    return few, training.epochs * steps_per_epoch(learned.train, training.batch_size, learned.extra)


def _seconds_per_step(train: Callable[[], object], device: torch.device) -> float:
    """Returns the median time from the end of one optimiser step of `train` to the end of the next, data included."""
    ends: list[float] = []

    def after_step(*_: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    hook = register_optimizer_step_post_hook(after_step)
    try:
        train()
    finally:
        hook.remove()
    return statistics.median(end - start for start, end in pairwise(ends[WARMUP_STEPS - 1 :]))
