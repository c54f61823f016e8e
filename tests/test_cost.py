"""The cost of a run in METHOD.md's units, held against the forward passes that really happen."""

import pytest
import torch
from training_cases import TRAINING, plain, small_data

from edc.batch_ensemble import ensemble_size_of, to_batch_ensemble
from edc.cost import estimate_costs, units_per_step
from edc.recipe import Recipe, StudentSection
from edc.step import Batch
from edc.student import student_loss
from edc.teacher import TeacherEnsemble

METHODS = [
    ("kd", "none", 7),
    ("kd", "tdiv", 10),
    ("kd", "ods", 9),
    ("latent_be", "none", 16),
    ("latent_be", "tdiv_sdiv", 22),
]


@pytest.mark.parametrize(("method", "perturbation", "units"), METHODS)
def test_units_are_those_of_the_method(method, perturbation, units):
    assert units_per_step(StudentSection(method=method, perturbation=perturbation), 4) == units


@pytest.mark.parametrize("form", ["joint", "sequential"])
@pytest.mark.parametrize(("method", "perturbation", "units"), METHODS)
def test_units_count_the_passes_that_happen(method, perturbation, units, form):
    """Rows through each network are counted: forward passes, and backward passes to the images or to the weights."""
    passes = {"forward": 0.0, "input backward": 0.0, "training": 0.0}
    teachers = TeacherEnsemble([plain(m) for m in range(4)])
    network = plain(9) if method == "kd" else to_batch_ensemble(plain(9), 4)
    network.train()

    def count(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        share = len(output) / 16
        passes["forward"] += share
        if output.requires_grad:
            key = "training" if module.training else "input backward"
            output.register_hook(lambda _gradient: passes.__setitem__(key, passes[key] + share))

    for member in (*teachers.members, network):
        member.register_forward_hook(count)
    images = small_data().train.images[:16].float() / 255
    batch = Batch(images, torch.zeros(16), torch.Generator().manual_seed(0), slice(None), 16)
    loss_of = student_loss(StudentSection(method=method, perturbation=perturbation), teachers, form=form)
    for part in loss_of(network, network, batch):
        part().backward()
    assert passes["training"] == ensemble_size_of(network)
    assert passes["forward"] + passes["input backward"] + 2 * passes["training"] == units


def test_estimate_has_a_line_for_every_training(accelerator):
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "data": {"kind": "synthetic", "num_images": 64, "image_size": 8},
            "network": "cifar_resnet8",
            "training": TRAINING.model_dump(),
            "teachers": {"ensemble_size": 2, "epochs": 5},
            "students": {"kd": {"method": "kd", "epochs": 9}, "be": {"perturbation": "tdiv_sdiv"}},
        }
    )
    from edc.data import load_data

    costs = estimate_costs(recipe, load_data(recipe.data), accelerator=accelerator)
    found = [(cost.name, cost.units_per_step, cost.num_steps) for cost in costs]
    assert found == [("2 teachers", 3, 40), ("kd", 5, 36), ("be", 14, 24)]
    for cost in costs:
        assert 0 < cost.seconds_per_step < 10
        assert cost.seconds == cost.num_steps * cost.seconds_per_step
