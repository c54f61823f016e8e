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
from edc.recipe import Recipe
from edc.recipe.equal_cost import units_per_step
from edc.runs.folder import RunFolder
from edc.runs.student import form_of, learned_by, train_student
from edc.runs.trial import few_images, few_steps
from edc.teachers.ensemble import build_teacher, load_own_teachers, load_teachers, obtain_teacher
from edc.train.distributed import one_of_a_machine_first

__all__ = ["Cost", "estimate_costs", "units_per_step"]

WARMUP_STEPS, TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class Cost:
    """One training: `units` are forward passes of one batch (backward counts 2, input-only backward 1)."""

    name: str
    units_per_step: int
    num_steps: int
    seconds_per_step: float
    member_form: MemberForm | None = None
    """How the members of a student go through a step, as the run would choose it here; None: there is one network."""

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
    size, short, batch_size = recipe.teachers.size, few_steps(recipe), recipe.training.batch_size
    few_of = partial(
        few_images,
        num_steps=WARMUP_STEPS + TIMED_STEPS,
        batch_size=batch_size,
        num_processes=accelerator.num_processes,
    )
    costs = []
    with tempfile.TemporaryDirectory(prefix="edc-dry-run-") as temporary:
        run = RunFolder(Path(temporary) / "run")
        own = one_of_a_machine_first(lambda: load_own_teachers(short, data), accelerator)
        own = own or [build_teacher(short, data, fresh=False) for _ in range(size)]
        teachers = load_teachers(short, data, own=own, teachers_path=run.teachers_path, accelerator=accelerator)
        if not recipe.teachers.checkpoints:
            few = few_of(replace(data, extra=None))
            train = partial(obtain_teacher, short, few, 0, teachers_path=run.teachers_path, accelerator=accelerator)
            seconds = _seconds_per_step(train, accelerator.device)
            num_steps = recipe.training_of(recipe.teachers).epochs * steps_per_epoch(data.train, batch_size)
            costs.append(Cost(f"{size} teachers", 3, num_steps * size, seconds))
        for name, student in recipe.students.items():
            learned = learned_by(student, data)
            learn = partial(train_student, short, name, few_of(learned), teachers, run=run, accelerator=accelerator)
            seconds = _seconds_per_step(learn, accelerator.device)
            steps = steps_per_epoch(data.train, batch_size, learned.extra)
            num_steps = recipe.training_of(student).epochs * steps
            form = form_of(recipe, name, run=run)
            costs.append(Cost(name, units_per_step(student, size), num_steps, seconds, form))
    return costs


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
