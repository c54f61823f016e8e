"""The cost of a run in the units of docs/method.md, held against the forward passes that really happen."""

from collections import Counter

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from training_cases import TRAINING, plain, small_data

from edc.data import DataSet, load_data
from edc.method.batch_ensemble import ensemble_size_of, to_batch_ensemble
from edc.method.step import Batch
from edc.recipe import Recipe, StudentSection
from edc.runs.cost import TIMED_STEPS, WARMUP_STEPS, estimate_costs, units_per_step
from edc.runs.student import student_step
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.checkpoint import save_state

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
    section = StudentSection(method=method, perturbation=perturbation)
    for loss in student_step(section, teachers, training=TRAINING, form=form).losses(network, network, batch):
        loss.backward()
    assert passes["training"] == ensemble_size_of(network)
    assert passes["forward"] + passes["input backward"] + 2 * passes["training"] == units


@pytest.mark.parametrize("perturbation", ["tdiv", "tdiv_sdiv"])
@pytest.mark.parametrize("pair", ["step", "row"])
def test_a_pair_for_each_row_runs_as_many_rows_as_one_for_all(perturbation, pair):
    rows = Counter()

    def count(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        rows["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda _: rows.update({"training" if module.training else "to images": len(output)}))

    teachers, network = TeacherEnsemble([plain(m) for m in range(4)]), to_batch_ensemble(plain(9), 4).train()
    for member in (*teachers.members, network):
        member.register_forward_hook(count)
    batch = Batch(small_data().train.images[:16].float() / 255, torch.zeros(16), torch.Generator(), slice(None), 16)
    section = StudentSection(perturbation=perturbation, answers="split", pair=pair)
    for loss in student_step(section, teachers, training=TRAINING).losses(network, network, batch):
        loss.backward()
    units = (rows["forward"] + rows["to images"] + 2 * rows["training"]) / 16
    assert units == units_per_step(section, 4)


@pytest.mark.parametrize(
    ("fields", "units"),
    [
        ({"method": "kd"}, 3),
        ({"answers": "split"}, 3),
        ({"method": "latent_be"}, 12),
        ({"method": "kd", "perturbation": "tdiv"}, 6),
    ],
)
def test_labels_alone_ask_no_teacher_and_give_the_same_gradients_as_if_they_did(fields, units):
    asked = []
    teachers = TeacherEnsemble([plain(m) for m in range(4)])
    for teacher in teachers.members:
        teacher.register_forward_hook(lambda _module, _inputs, output: asked.append(output.requires_grad))
    images, labels = small_data().train.images[:16].float() / 255, torch.arange(16) % 3
    section = StudentSection(**fields, alpha=0.0)

    def gradients(data: DataSet | None) -> list[torch.Tensor]:
        network = plain(9) if section.method == "kd" else to_batch_ensemble(plain(9), 4)
        batch = Batch(images, labels, torch.Generator().manual_seed(0), slice(None), 16)
        for loss in student_step(section, teachers, training=TRAINING, data=data).losses(network, network, batch):
            loss.backward()
        return [parameter.grad for parameter in network.parameters()]

    with_teachers = gradients(None)  # some images may lack labels
    assert len(asked) > 2
    asked.clear()
    alone = gradients(small_data())
    assert len(asked) == (2 if section.perturbation == "tdiv" else 0)  # one moves the images, the other is its target
    assert all(map(torch.equal, alone, with_teachers))
    assert units_per_step(section, 4) == units
    assert units_per_step(section, 4, has_extra=True) == units_per_step(StudentSection(**fields), 4)
    assert units_per_step(section.model_copy(update={"extra": False}), 4, has_extra=True) == units


def test_estimate_has_a_line_for_every_training(accelerator, monkeypatch):
    monkeypatch.setattr("edc.runs.student.Observer.__call__", None)  # a trial of steps is not observed
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "data": {"kind": "synthetic", "num_images": 64, "image_size": 8},
            "network": "cifar_resnet8",
            "training": TRAINING.model_dump(),
            "teachers": {"ensemble_size": 2, "epochs": 5},
            "students": {"kd": {"method": "kd", "epochs": 9, "ema": 0.9}, "be": {"perturbation": "tdiv_sdiv"}},
        }
    )
    costs = estimate_costs(recipe, load_data(recipe.data), accelerator=accelerator)
    found = [(cost.name, cost.units_per_step, cost.num_steps, cost.member_form) for cost in costs]
    assert found == [("2 teachers", 3, 40, None), ("kd", 5, 36, None), ("be", 14, 24, "joint")]
    assert [cost.averaged_steps for cost in costs] == [None, pytest.approx(10), None]
    for cost in costs:
        assert 0 < cost.seconds_per_step < 10
        assert cost.seconds == cost.num_steps * cost.seconds_per_step


def test_steps_are_timed_with_the_users_own_teachers_and_in_the_form_the_run_would_choose(
    tmp_path, accelerator, monkeypatch
):
    """Rows through each network, in train mode (the students) and in eval mode (the teachers), are counted."""
    for m in range(3):
        save_state(tmp_path / f"{m}.safetensors", plain(m).state_dict())
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "data": {"kind": "synthetic", "num_images": 64, "image_size": 8, "num_classes": 3},
            "network": "wrn10x1",
            "training": TRAINING.model_dump(),
            "teachers": {
                "checkpoints": [
                    {"file": str(tmp_path / f"{m}.safetensors"), "network": "cifar_resnet8"} for m in range(3)
                ]
            },
            "students": {"be": {}},
        }
    )
    rows: Counter[tuple[str, bool, int]] = Counter()

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows[type(module).__name__, module.training, len(inputs[0])] += 1

    monkeypatch.setattr("edc.train.member_form.free_memory_bytes", lambda: 1)
    hook = register_module_forward_pre_hook(count)
    try:
        (cost,) = estimate_costs(recipe, load_data(recipe.data), accelerator=accelerator)
    finally:
        hook.remove()
    assert cost.member_form == "sequential"
    steps = WARMUP_STEPS + TIMED_STEPS
    assert rows["CifarResNet", False, 16] == 3 * steps
    assert rows["WideResNet", True, 16] == 3 * steps, "three members, one after another"
    assert rows["WideResNet", True, 48] == 0
