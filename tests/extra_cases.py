"""A small student that learns from labelled and extra images, in one process and in two."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from training_cases import DATA, Recorded, plain

from edc.data import DataSet, load_training_data
from edc.method.batch_ensemble import fold, to_batch_ensemble
from edc.recipe import ExtraSection, StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.runs.why.observer import Observer
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.loop import fit

SECTION = DATA.model_copy(update={"train_limit": 26, "extra": (ExtraSection(kind="remainder"),), "extra_share": 0.4})
"""26 labelled and 38 extra images; 10 and 6 of a batch: 2 steps an epoch, and a turn of 38 images takes 6.3 steps."""
TRAINING = TrainingSection(epochs=4, warmup_epochs=1, batch_size=16, learning_rate=0.02)
STEPS = 8
STUDENT = StudentSection(answers="split", alpha=0.6, perturbation="tdiv_sdiv")


def mixed_data() -> DataSet:
    return load_training_data(SECTION)


def train_mixed(
    folder: Path,
    accelerator: Accelerator,
    *,
    before_step: Callable[[int], None] = lambda step: None,
    first_step: int = 0,
) -> tuple[nn.Module, list[float]]:
    """Returns the student, in float64, and the losses of this process's rows."""
    teachers = TeacherEnsemble([plain(1, torch.float64), plain(2, torch.float64)])
    learn = Recorded(student_step(STUDENT, teachers, training=TRAINING), before_step=before_step, first_step=first_step)
    data = mixed_data()

    def plain_of(trained: nn.Module) -> nn.Module:
        return fold(trained, plain(0, torch.float64))

    observer = Observer(
        STUDENT, data, teachers, plain_of=plain_of, training=TRAINING, num_workers=0, accelerator=accelerator
    )
    network = fit(
        to_batch_ensemble(plain(0, torch.float64), 2),
        data,
        learn=learn,
        plain_of=plain_of,
        observe=observer,
        data_section=SECTION,
        training=TRAINING,
        seed=7,
        folder=folder,
        label="mixed",
        accelerator=accelerator,
    )
    return network, learn.seen
