"""What is done so that a GPU need not wait, shown without one: casts made once, tuned convolutions, images at hand."""

import importlib
import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TESTS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import DATA, TRAINING, plain, small_data

from edc.data import MemoryImages, near, train_batches
from edc.method.batch_ensemble import to_batch_ensemble
from edc.method.perturb import perturb
from edc.method.step import LabelStep, StudentStep, answers
from edc.train.loop import fit
from edc.train.placement import casts_kept

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (3, 8, 8)


class Casts(TorchDispatchMode):
    """Counts what is cast to bf16, by its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[tuple[int, ...]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        is_cast = function.name().split(".")[0] in ("aten::to", "aten::_to_copy") and result.dtype == torch.bfloat16
        if is_cast and args[0].dtype == torch.float32:
            self.found[tuple(result.shape)] += 1
        return result


def asked(teachers: list[nn.Module]) -> tuple[list[Tensor], Casts]:
    """Returns the answers of teachers in bf16, images that they moved, and what was cast for it."""
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    casts, student = Casts(), to_batch_ensemble(plain(0), 2)
    with casts, torch.autocast("cpu", torch.bfloat16):
        draws = torch.Generator().manual_seed(2)
        moved = perturb(images, "tdiv_sdiv", teachers=teachers, student=student, generator=draws)
        return [moved, *(answers(teacher, moved) for teacher in teachers)], casts


def test_frozen_teachers_answer_in_bf16_bit_for_bit_as_autocast_does_and_their_weights_are_cast_once():
    teachers = [plain(seed).eval().requires_grad_(False) for seed in (1, 2)]
    before = {name: value.clone() for name, value in teachers[0].state_dict().items()}
    kept = [casts_kept(teacher, torch.bfloat16, SHAPE) for teacher in teachers]
    (wanted, casts), (found, fewer) = asked(teachers), asked(kept)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    layers = [module for module in teachers[0].modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    weights = Counter(tuple(p.shape) for layer in layers for p in layer.parameters())
    assert len(layers) == 8, "the test looks at no weights"
    # two passes of each teacher: one that moves the images, one that answers
    per_step = {shape: 4 * number for shape, number in weights.items()}
    assert {shape: casts.found[shape] - fewer.found[shape] for shape in casts.found} == {
        shape: per_step.get(shape, 0) for shape in casts.found
    }
    for name, value in teachers[0].state_dict().items():  # the float32 network, which evaluation asks, is as it was
        assert torch.equal(value, before[name])
    assert casts_kept(teachers[0], None, SHAPE) is teachers[0]
    for module, its in zip(kept[0].modules(), teachers[0].modules(), strict=True):
        for value, of_teacher in zip(module._parameters.values(), its._parameters.values(), strict=True):
            assert value is of_teacher or its in layers, "holds the teacher's other parameters a second time"


class ReadsItsWeight(nn.Module):
    """A cosine classifier, whose weight autocast never sees as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).mean((2, 3))
        return features.float() @ nn.functional.normalize(self.head.weight).float().T


def test_network_that_would_answer_otherwise_is_asked_as_it_is():
    torch.manual_seed(0)
    network = ReadsItsWeight().eval().requires_grad_(False)
    assert casts_kept(network, torch.bfloat16, SHAPE) is network


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_convolutions_are_tuned_on_a_gpu_while_steps_of_one_shape_run(device, tmp_path, accelerator, monkeypatch):
    seen: dict[str, bool] = {}

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 3)

        def forward(self, images: Tensor) -> Tensor:
            seen["step" if self.training else "validation"] = torch.backends.cudnn.benchmark
            return self.layer(images.flatten(1))

    tuned = fit.__globals__["convolutions_tuned"]
    monkeypatch.setattr(
        "edc.train.loop.convolutions_tuned", lambda _, *, shapes_stay: tuned(device, shapes_stay=shapes_stay)
    )
    training = TRAINING.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    arguments = {"data_section": DATA, "training": training, "seed": 0, "folder": tmp_path, "label": "asks"}
    fit(Asks(), small_data(), learn=LabelStep(), plain_of=lambda n: n, accelerator=accelerator, **arguments)
    assert seen == {"step": device is CUDA, "validation": False}
    assert torch.backends.cudnn.benchmark is False
    assert StudentStep([], answers="split").shapes_stay
    assert not StudentStep([], answers="split", perturbation="tdiv_sdiv", pair="row").shapes_stay


def test_images_that_lie_on_a_device_are_gathered_and_cropped_there():
    """A meta tensor refuses to meet one of the CPU, and to be read."""
    data = small_data()
    there = MemoryImages(data.train.images.to("meta"), data.train.labels.to("meta"))
    batches = [*train_batches(there, DATA, batch_size=16, seed=0, epoch=0, device=CUDA)]
    wanted = [*train_batches(data.train, DATA, batch_size=16, seed=0, epoch=0, device=CPU)]
    assert DATA.augmentation == "crop_flip"
    assert len(batches) == len(wanted) == 4
    for (pixels, labels), (pixels_here, labels_here) in zip(batches, wanted, strict=True):
        assert pixels.device.type == labels.device.type == "meta"
        assert (pixels.shape, pixels.dtype) == (pixels_here.shape, pixels_here.dtype)
        assert (labels.shape, labels.dtype) == (labels_here.shape, labels_here.dtype)


def test_images_stay_where_they_are_for_a_cpu_for_randaugment_and_where_they_are_many(monkeypatch):
    data = small_data()
    assert near(data, CPU) is data
    assert near(data, CUDA, views=("randaugment",)) is data
    monkeypatch.setattr("edc.data.data_set.MOST_BYTES_NEAR", data.train.images.nbytes - 1)
    assert near(replace(data), CUDA).train is data.train


# What a step asks for


def test_a_step_asks_for_as_many_kernels_as_results_say_and_bf16_for_36_more_in_any_depth(monkeypatch):
    """Fewer than 2,000 in the joint form, in bf16 too: a step in bf16 differs at the ends of the networks alone."""
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    launches = importlib.import_module("launches")
    try:
        kernels = {
            (network, precision): launches.counted(network, "joint", "tdiv_sdiv", precision).kernels.total()
            for network, precision in (("wrn10x1", "fp32"), ("wrn10x1", "bf16"), ("wrn28x4", "fp32"))
        }
    finally:
        for name in ("launches", "gpu_steps"):
            sys.modules.pop(name)
    groups = json.loads((TESTS.parent / "results/launches.json").read_text()).values()
    joint = [row for group in groups for row in group["rows"] if (row["form"], row["step"]) == ("joint", "tdiv_sdiv")]
    said = {row["precision"]: row["kernels"] for row in joint}  # the last group is the code of today
    assert said["fp32"] < said["bf16"] < 2000
    if list(groups)[-1]["torch"].split("+")[0] == torch.__version__.split("+")[0]:
        assert kernels["wrn28x4", "fp32"] == said["fp32"]
        assert kernels["wrn10x1", "bf16"] - kernels["wrn10x1", "fp32"] == said["bf16"] - said["fp32"] == 36
