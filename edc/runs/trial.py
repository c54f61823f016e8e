"""A few steps of a training, as the run itself would take them: a dry run times them, a profile looks into them.

They go through `train_student` and `obtain_teacher` in a temporary folder, so errors, choices and the exchange between
processes are those of a run.
"""

import dataclasses

import torch

from edc.data import DataSet, FileImages
from edc.data.bad_images import BadImages
from edc.data.data_set import limit, take
from edc.recipe import Recipe, StudentSection, TeachersSection
from edc.runs.student import learned_by

__all__ = ["few_images", "few_learned", "few_steps"]

STEPPED = ("epochs", "warmup_epochs", "learning_rate")
"""What `few_steps` sets for all, whatever one student has otherwise."""


def few_steps(recipe: Recipe) -> Recipe:
    """Returns the recipe with one epoch for every training, of steps too small to diverge.

    No checkpoint is written on the way, and nothing is started from weights of a library, a file or a teacher: a step
    takes as long without them.
    """
    checkpoints = tuple(
        c if c.file else c.model_copy(update={"network": c.network and c.network.bare()})
        for c in recipe.teachers.checkpoints
    )
    shared = {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-9, "checkpoint_every": 2}

    def as_shared(section: TeachersSection | StudentSection) -> dict[str, object]:
        return {"epochs": None, "training": section.training and section.training.without(*STEPPED)}

    own_network = recipe.teachers.network and recipe.teachers.network.bare()
    students = {name: s.model_copy(update={"start": None, **as_shared(s)}) for name, s in recipe.students.items()}
    return recipe.model_copy(
        update={
            "network": recipe.network.bare(),
            "training": recipe.training.model_copy(update=shared),
            "teachers": recipe.teachers.model_copy(
                update={**as_shared(recipe.teachers), "network": own_network, "checkpoints": checkpoints}
            ),
            "students": students,
        }
    )


def few_images(data: DataSet, num_steps: int, *, batch_size: int, num_processes: int) -> DataSet:
    """Returns training images for so many steps, repeated if there are not as many, and hardly any others.

    Extra images are all there: a step has its share of them. Where some images of the split may be unreadable, any of
    these few may: a share of a few says nothing about that of the split, which the run itself counts.
    """
    few = limit(data.validation, num_processes)
    num_images = num_steps * (batch_size - (data.extra.num_rows(batch_size) if data.extra else 0))
    train = take(data.train, torch.arange(num_images) % len(data.train))
    if isinstance(train, FileImages) and train.bad.max_fraction:
        train = dataclasses.replace(train, bad=BadImages(max_fraction=1.0))
    return dataclasses.replace(data, train=train, validation=few, test=few)


def few_learned(recipe: Recipe, name: str, data: DataSet, num_steps: int, *, num_processes: int) -> DataSet:
    """Returns as many of the images that student `name` learns from as it has in so many steps."""
    student = recipe.students[name]
    batch_size = recipe.training_of(student).batch_size
    return few_images(learned_by(student, data), num_steps, batch_size=batch_size, num_processes=num_processes)
