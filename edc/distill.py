"""The steps of a run: data, teachers, students, and what became of them."""

from typing import Any

from accelerate import Accelerator

from edc.data import DataSet, load_data, steps_per_epoch
from edc.files import require_free_disk
from edc.networks import build_network, count_parameters, require_logits
from edc.recipe import NetworkSection, Recipe
from edc.run import RunFolder
from edc.student import train_student
from edc.summary import summarise
from edc.teacher import load_own_teachers, load_teachers

__all__ = ["distill"]


def distill(recipe: Recipe, *, run: RunFolder, accelerator: Accelerator) -> dict[str, Any]:
    """Runs `recipe` to its end in the folder `run`, going on where an earlier call stopped, and returns the summary."""
    run.require_claimable(recipe)
    if run.summary_path.is_file():
        return run.summary()
    data = load_data(recipe.data)
    # All that can be wrong with the request is looked at before the folder is claimed.
    steps_per_epoch(data.train, recipe.training.batch_size)
    require_free_disk(run.path, _needed_bytes(recipe, data), "this run")
    own_teachers = load_own_teachers(recipe, data)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.claim(recipe)
    accelerator.wait_for_everyone()
    teachers = load_teachers(recipe, data, teachers_path=run.teachers_path, accelerator=accelerator, own=own_teachers)
    students = {
        name: train_student(recipe, name, data, teachers, run=run, accelerator=accelerator) for name in recipe.students
    }
    summary = summarise(recipe, data, teachers, students, run=run, accelerator=accelerator)
    if accelerator.is_main_process:
        run.write_summary(summary)
    accelerator.wait_for_everyone()
    return summary


def _needed_bytes(recipe: Recipe, data: DataSet) -> int:
    """Tries both networks on two images, and returns what a run needs on disk: final weights and one checkpoint."""

    def size(section: NetworkSection) -> int:
        shape = data.image_shape
        # Without the library's weights: only the number of parameters is asked for.
        bare = section.model_copy(update={"pretrained": False})
        network = build_network(bare, num_classes=data.num_classes, image_shape=shape, mean=data.mean, std=data.std)
        require_logits(network, shape, data.num_classes, source=section.name)
        return 4 * count_parameters(network)

    student, teacher = size(recipe.network), size(recipe.teacher_network)
    num_trained = 0 if recipe.teachers.checkpoints else recipe.teachers.size
    return student * len(recipe.students) + teacher * num_trained + 6 * max(student, teacher)
