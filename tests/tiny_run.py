"""A run folder with networks that nobody trained: what the bench loads, without the minutes that a real run takes."""

from pathlib import Path

import torch

from edc.data import DataSet, load_data
from edc.method.batch_ensemble import BatchEnsembleConv2d, BatchEnsembleLinear
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.runs.student import build_student
from edc.teachers.ensemble import build_teacher, teacher_key
from edc.train.checkpoint import save_state

RECIPE = {
    "name": "tiny",
    "data": {"kind": "synthetic", "image_size": 8, "num_images": 32, "test": 24},
    "network": "wrn10x1",
    "teachers": {"ensemble_size": 3},
    "students": {"kd": {"method": "kd"}, "be": {"method": "latent_be"}},
}


def make_tiny_run(run: Path) -> tuple[Recipe, DataSet]:
    """Writes a run of three teachers, a KD student and a LatentBE student with distinct members."""
    recipe = Recipe.model_validate(RECIPE)
    data = load_data(recipe.data)
    folder = RunFolder(run)
    folder.claim(recipe)
    for m in range(recipe.teachers.size):
        torch.manual_seed(m)
        key, _ = teacher_key(recipe, data, m)
        save_state(folder.teachers_path / key / "weights.safetensors", build_teacher(recipe, data).state_dict())
    for name in recipe.students:
        network = build_student(recipe, name, data)
        for layer in network.modules():
            if isinstance(layer, BatchEnsembleConv2d | BatchEnsembleLinear):
                torch.nn.init.normal_(layer.rho, std=0.3)
                torch.nn.init.normal_(layer.sigma, std=0.3)
        save_state(folder.student_path(name) / "weights.safetensors", network.state_dict())
    return recipe, data
