"""A few steps of a training, as the run itself would take them: a dry run times them, a profile looks into them.

They go through `train_student` and `obtain_teacher` in a temporary folder, so errors, choices and the exchange between
processes are those of a run.
"""

import dataclasses

import torch

from edc.data import DataSet
from edc.data.data_set import limit, take
from edc.recipe import NetworkSection, Recipe

__all__ = ["few_images", "few_steps"]


def few_steps(recipe: Recipe) -> Recipe:
    """Returns the recipe with one epoch for every training, of steps too small to diverge.

    No checkpoint is written on the way, and no library's weights are fetched: a step takes as long without them.
    """

    def bare(section: NetworkSection | None) -> NetworkSection | None:
        return section and section.model_copy(update={"pretrained": False})

    checkpoints = tuple(
        c if c.file else c.model_copy(update={"network": bare(c.network)}) for c in recipe.teachers.checkpoints
    )
    shared = {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-9, "checkpoint_every": 2}
    return recipe.model_copy(
        update={
            "network": bare(recipe.network),
            "training": recipe.training.model_copy(update=shared),
            "teachers": recipe.teachers.model_copy(
                update={"epochs": None, "network": bare(recipe.teachers.network), "checkpoints": checkpoints}
            ),
            "students": {name: s.model_copy(update={"epochs": None}) for name, s in recipe.students.items()},
        }
    )


def few_images(data: DataSet, num_steps: int, *, batch_size: int, num_processes: int) -> DataSet:
    """Returns training images for so many steps, repeated if there are not as many, and hardly any others.

    Extra images are all there: a step has its share of them.
    """
    few = limit(data.validation, num_processes)
    num_images = num_steps * (batch_size - (data.extra.num_rows(batch_size) if data.extra else 0))
    return dataclasses.replace(
        data, train=take(data.train, torch.arange(num_images) % len(data.train)), validation=few, test=few
    )
