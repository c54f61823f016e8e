"""Learning rates of layers: timm's for its networks, the closed form for others, and steps by hand in float64."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_cases import DATA, TRAINING, plain, raise_signal_at, run_case

from edc.data import DataSet, load_data
from edc.errors import Interrupted
from edc.method.batch_ensemble import to_batch_ensemble
from edc.method.step import LabelStep
from edc.networks import Classifier, build_network
from edc.recipe import NetworkSection, TrainingSection
from edc.train.loop import fit
from edc.train.schedule import build_optimizer, layers_of, learning_rate_at

DECAY = 0.7


def built(name: str, image_size: int = 32) -> Classifier:
    shape = (3, image_size, image_size)
    return build_network(NetworkSection(name=name), num_classes=4, image_shape=shape, mean=(0.5,) * 3, std=(0.5,) * 3)


def scales(network: nn.Module) -> dict[str, float]:
    """Returns the share of the learning rate that the optimizer gives each parameter, by name."""
    optimizer = build_optimizer(network, TrainingSection(layer_decay=DECAY))
    of_parameter = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of_parameter[id(parameter)] for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/vit_tiny_patch16_224", "timm/efficientnet_lite0"])
def test_layers_of_a_timm_network_are_timms(name: str) -> None:
    network = built(name)
    groups = timm.optim.param_groups_layer_decay(network.network, layer_decay=DECAY)
    expected = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = scales(network)
    assert len(set(found.values())) > 5
    for parameter_name, parameter in network.named_parameters():
        assert found[parameter_name] == pytest.approx(expected[id(parameter)], rel=1e-12), parameter_name


def test_layers_of_a_torchvision_resnet_are_those_that_timm_says_of_its_own() -> None:
    ours, timms = (layers_of(built(f"{library}/resnet18")) for library in ("torchvision", "timm"))
    assert ours == timms


@pytest.mark.parametrize(("name", "num_blocks"), [("wrn10x1", 3), ("wrn16x1", 6), ("cifar_resnet8", 3)])
def test_layers_are_the_stem_each_block_and_the_classifier(name: str, num_blocks: int) -> None:
    found = scales(built(name, 8))
    assert found["network.stem.weight"] == pytest.approx(DECAY ** (num_blocks + 1), rel=1e-12)
    for block in range(num_blocks):
        of_block = {scale for key, scale in found.items() if key.startswith(f"network.blocks.{block}.")}
        assert [*of_block] == pytest.approx([DECAY ** (num_blocks - block)], rel=1e-12)
    assert found["network.classifier.weight"] == found["network.classifier.bias"] == 1.0
    before_norm = "stem" if name.startswith("cifar") else f"blocks.{num_blocks - 1}.conv2"
    assert found["network.norm.weight"] == found[f"network.{before_norm}.weight"]


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 4, 3)
        self.flat = nn.Flatten()
        self.classifier = nn.Linear(4, 2)


def test_what_comes_before_the_first_layer_is_in_it() -> None:
    assert layers_of(NormFirst()) == {
        "token": 0,
        "norm.weight": 0,
        "norm.bias": 0,
        "stem.weight": 0,
        "stem.bias": 0,
        "classifier.weight": 1,
        "classifier.bias": 1,
    }


@pytest.mark.parametrize("name", ["timm/resnet18", "wrn10x1"])
def test_factors_of_members_learn_like_the_weight_that_they_multiply(name: str) -> None:
    network = built(name)
    alone = scales(network)
    found = scales(to_batch_ensemble(network, 2))
    factors = [key for key in found if key.endswith((".rho", ".sigma"))]
    assert len(factors) == 2 * sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    for key in factors:
        assert found[key] == alone[key.rpartition(".")[0] + ".weight"]
    assert {key: value for key, value in found.items() if key not in factors} == alone


@pytest.mark.parametrize("layer_decay", [None, DECAY])
def test_factors_have_a_rate_of_their_own_and_nothing_else_has(layer_decay: float | None) -> None:
    network = to_batch_ensemble(built("wrn10x1"), 3)
    network.sigma = nn.Parameter(torch.ones(2))  # a name of somebody else's network
    found = {}
    for factor_rate in (None, 0.1):
        training = TrainingSection(layer_decay=layer_decay, factor_rate=factor_rate)
        groups = build_optimizer(network, training).param_groups
        scale_of = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
        assert len(scale_of) == sum(len(group["params"]) for group in groups)  # each once
        found[factor_rate] = {name: scale_of[id(p)] for name, p in network.named_parameters()}
    num_factors = 0
    for name, scale in found[0.1].items():
        is_factor = name.endswith((".rho", ".sigma"))
        num_factors += is_factor
        assert scale == pytest.approx(found[None][name] * (0.1 if is_factor else 1.0), rel=1e-12), name
    assert num_factors == 2 * sum(isinstance(m, nn.Conv2d | nn.Linear) for m in built("wrn10x1").modules())


def test_factors_move_by_their_rate_in_a_step_by_hand() -> None:
    torch.manual_seed(0)
    network = to_batch_ensemble(nn.Sequential(nn.Linear(3, 2)), 2).double()
    images = torch.randn(4, 3, dtype=torch.float64)
    training = TrainingSection(factor_rate=0.25, momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    optimizer = build_optimizer(network, training)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["lr_scale"]  # as the loop does
    network(images).square().sum().backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in network.named_parameters()}  # type: ignore[union-attr]
    optimizer.step()
    for name, parameter in network.named_parameters():
        value, gradient = before[name]
        rate = 0.125 if name.endswith((".rho", ".sigma")) else 0.5
        torch.testing.assert_close(parameter.detach(), value - rate * gradient, rtol=1e-12, atol=0)
        assert gradient.abs().max() > 0


def test_without_it_all_parameters_are_one_group_as_before() -> None:
    (group,) = build_optimizer(plain(0), TRAINING).param_groups
    assert "lr_scale" not in group


def test_each_step_has_the_learning_rate_of_the_schedule_times_that_of_the_layer(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    seen: list[list[float]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])

    hook = register_optimizer_step_post_hook(look)
    training = TRAINING.model_copy(update={"layer_decay": DECAY})
    try:
        run_case("latent_be, float32", tmp_path, accelerator, training=training)
    finally:
        hook.remove()
    assert len(seen) == 24
    for step, rates in enumerate(seen):
        expected = [learning_rate_at(step, TRAINING, 4) * DECAY ** (4 - layer) for layer in range(5)]
        assert rates == pytest.approx(expected, rel=1e-12)


def whole_batches() -> DataSet:
    return load_data(DATA.model_copy(update={"augmentation": "none"}))


def test_steps_are_those_of_a_loop_by_hand_in_float64(tmp_path: Path, accelerator: Accelerator) -> None:
    """Three steps of all 64 images: SGD with Nesterov momentum and weight decay, written out."""
    training = TrainingSection(epochs=3, warmup_epochs=0, batch_size=64, learning_rate=0.05, layer_decay=DECAY)
    data = whole_batches()
    network, by_hand = plain(0, torch.float64), plain(0, torch.float64)
    looked: list[dict[str, Tensor]] = []

    def plain_of(trained: nn.Module) -> nn.Module:
        looked.append({key: value.clone() for key, value in trained.state_dict().items()})
        return trained

    fit(
        network,
        data,
        learn=LabelStep(),
        plain_of=plain_of,
        data_section=DATA.model_copy(update={"augmentation": "none"}),
        training=training,
        seed=7,
        folder=tmp_path,
        label="by hand",
        accelerator=accelerator,
    )
    images, labels = data.train.images.float() / 255, data.train.labels
    depth = {"stem": 0, "norm": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "classifier": 4}
    velocity: dict[str, Tensor] = {}
    by_hand.train()
    for step in range(3):
        rate = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 3))
        loss = nn.functional.cross_entropy(by_hand(images), labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        for (name, parameter), gradient in zip(by_hand.named_parameters(), gradients, strict=True):
            layer = next(number for part, number in depth.items() if name.startswith(f"network.{part}."))
            decayed = gradient + 5e-4 * parameter.detach()
            velocity[name] = decayed if step == 0 else 0.9 * velocity[name] + decayed
            parameter.data -= rate * DECAY ** (4 - layer) * (decayed + 0.9 * velocity[name])
        for name, value in by_hand.named_parameters():
            torch.testing.assert_close(looked[step][name], value.detach(), rtol=1e-9, atol=1e-11)


def test_resumed_training_ends_bit_equal(tmp_path: Path, accelerator: Accelerator, one_thread: None) -> None:
    training = TRAINING.model_copy(update={"layer_decay": DECAY})
    case = "teacher, float32"
    run_case(case, tmp_path / "whole", accelerator, training=training)
    run_case(case, tmp_path / "alike", accelerator)
    with pytest.raises(Interrupted):
        run_case(case, tmp_path / "cut", accelerator, training=training, before_step=raise_signal_at(9))
    run_case(case, tmp_path / "cut", accelerator, training=training, first_step=10)
    cut, whole, alike = (load_file(tmp_path / name / "weights.safetensors") for name in ("cut", "whole", "alike"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in cut.items())
    assert not torch.equal(alike["network.stem.weight"], whole["network.stem.weight"])
