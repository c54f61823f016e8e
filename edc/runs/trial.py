"""A few steps of a training as the run itself would make them: what a dry run times, and a profile looks into.

They go through `train_student` and `obtain_teacher`, in a folder that is thrown away: what those refuse, choose or
share among processes is refused, chosen and shared here too.
"""

import dataclasses

import torch

from edc.data import DataSet
from edc.data.data_set import limit, take
from edc.recipe import Recipe, StudentSection, TeachersSection

__all__ = ["few_images", "few_steps"]

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


def few_images(data: DataSet, num_images: int, *, num_processes: int) -> DataSet:
    """Returns so many training images, repeated if there are not as many, and hardly any others."""
    few = limit(data.validation, num_processes)
    return dataclasses.replace(
        data, train=take(data.train, torch.arange(num_images) % len(data.train)), validation=few, test=few
    )
