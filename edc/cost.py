"""What a run will cost: in forward passes of one network, and in time measured on this machine."""

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from edc.data import DataSet, steps_per_epoch, train_batches
from edc.member_forms import MemberForm
from edc.recipe import Recipe, StudentSection
from edc.schedule import build_optimizer
from edc.seeding import generator_for
from edc.step import Batch, LossOf, backward_through, to_device
from edc.student import build_student, student_loss
from edc.teacher import TeacherEnsemble, build_teacher, teacher_loss

__all__ = ["Cost", "estimate_costs", "units_per_step"]

WARMUP_STEPS, TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class Cost:
    """One training: `units` are forward passes of one batch (backward counts 2, input-only backward 1)."""

    name: str
    units_per_step: int
    num_steps: int
    seconds_per_step: float

    @property
    def seconds(self) -> float:
        return self.num_steps * self.seconds_per_step


def units_per_step(student: StudentSection, ensemble_size: int) -> int:
    """Returns the forward-pass units of one step of a student: 7 for KD and 22 for LatentBE + TDiv-SDiv at M = 4."""
    perturbation = {"none": 0, "gaussian": 0, "ods": 2, "tdiv": 3, "tdiv_sdiv": 6}[student.perturbation]
    num_members = ensemble_size if student.method == "latent_be" else 1
    return ensemble_size + 3 * num_members + perturbation


def estimate_costs(recipe: Recipe, data: DataSet, *, accelerator: Accelerator) -> list[Cost]:
    """Returns the cost of each training of the run, from a few timed steps of networks with random weights."""
    steps = steps_per_epoch(data.train, recipe.training.batch_size)
    size = recipe.teachers.size
    teachers = TeacherEnsemble([build_teacher(recipe, data) for _ in range(size)]).to(accelerator.device)
    costs = []
    if not recipe.teachers.checkpoints:
        seconds = _seconds_per_step(build_teacher(recipe, data), teacher_loss, recipe, data, accelerator)
        num_steps = recipe.training_of(recipe.teachers).epochs * steps
        costs.append(Cost(f"{size} teachers", 3, num_steps * size, seconds))
    for name, student in recipe.students.items():
        form: MemberForm = "sequential" if student.member_form == "sequential" else "joint"
        loss_of = student_loss(student, teachers, form=form)
        seconds = _seconds_per_step(build_student(recipe, name, data), loss_of, recipe, data, accelerator)
        costs.append(Cost(name, units_per_step(student, size), recipe.training_of(student).epochs * steps, seconds))
    return costs


def _seconds_per_step(
    network: nn.Module, loss_of: LossOf, recipe: Recipe, data: DataSet, accelerator: Accelerator
) -> float:
    """Returns the median time of a step, data loading included."""
    training, device = recipe.training, accelerator.device
    network = network.to(device).train()
    optimizer = build_optimizer(network, training)
    batches = train_batches(data.train, recipe.data, batch_size=training.batch_size, seed=0, epoch=0)
    times = []
    started = time.perf_counter()
    for number, (pixels, labels) in enumerate(batches):
        batch = Batch(
            images=to_device(pixels, device, training),
            labels=labels.to(device),
            generator=generator_for("dry run", number),
            rows=slice(None),
            num_rows=len(labels),
        )
        optimizer.zero_grad(set_to_none=True)
        backward_through(loss_of, network, network, batch, training=training, accelerator=accelerator)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
        if len(times) == WARMUP_STEPS + TIMED_STEPS:
            break
    timed = sorted(times[WARMUP_STEPS:] or times)
    return timed[len(timed) // 2]
