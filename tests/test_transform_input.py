"""torchvision's `transform_input`, which no state dict mentions: found by the roll call, kept by library weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchvision import models

from edc.data import DataSet
from edc.data.images import MemoryImages
from edc.errors import CheckpointError
from edc.networks import build_network
from edc.recipe import NetworkSection, Recipe
from edc.teachers.ensemble import load_own_teachers, load_teachers
from edc.teachers.roll_call.call import call_roll

CLASSES, IMAGES = 4, 24
SLOW = pytest.mark.slow
IMAGENETS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATAS = (0.45, 0.5, 0.55), (0.2, 0.25, 0.3)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def normalised(images: Tensor, by: Normalisation) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in by)
    return (images - mean) / std


def data_of(size: int) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, size // 4, size // 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    images = MemoryImages(pixels.repeat_interleave(4, 2).repeat_interleave(4, 3), labels)
    return DataSet(images, images, images, tuple("abcd"), (3, size, size), *DATAS)


def trained(build: Callable[..., Any], images: MemoryImages, by: Normalisation) -> dict[str, Tensor]:
    """Returns the weights of torchvision's own class that is right on all images, with `transform_input` after `by`."""
    torch.manual_seed(0)
    network = build(weights=None, num_classes=CLASSES, transform_input=True, aux_logits=False, init_weights=False)
    batch = normalised(images.images.float() / 255, by)
    features: list[Tensor] = []
    network.fc.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(batch)  # whose statistics it keeps
        network.eval()(batch)
        wanted = 10 * nn.functional.one_hot(images.labels, CLASSES).float()
        with_bias = torch.cat([features[-1], torch.ones(IMAGES, 1)], 1).double()
        solved = torch.linalg.lstsq(with_bias, wanted.double(), driver="gelsd").solution.float()
        network.fc.weight.copy_(solved[:-1].T)
        network.fc.bias.copy_(solved[-1])
        assert (network(batch).argmax(1) == images.labels).all()
    return network.state_dict()


HALF = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] (0.5 (Inception's; ImageNet's with "
SAID = {"mean": DATAS[0], "std": DATAS[1]}


@pytest.mark.parametrize(
    ("name", "size", "by", "asked", "fits"),
    [
        ("googlenet", 32, IMAGENETS, {}, HALF),
        pytest.param("inception_v3", 76, IMAGENETS, {}, HALF, marks=SLOW),
        pytest.param("googlenet", 32, DATAS, {}, "the data's mean and std with torchvision's", marks=SLOW),
        pytest.param("googlenet", 32, DATAS, SAID, "the recipe's mean and std with torchvision's", marks=SLOW),
    ],
)
def test_roll_call_stops_with_the_reading_that_fits(name, size, by, asked, fits, tmp_path: Path):
    data = data_of(size)
    torch.save(trained(getattr(models, name), data.validation, by), tmp_path / "w.pth")  # type: ignore[arg-type]

    def called(checkpoint: dict[str, Any]) -> float:
        recipe = Recipe.model_validate(
            {
                "name": "called",
                "data": {"kind": "synthetic", "image_size": size, "num_classes": CLASSES},
                "network": f"torchvision/{name}",
                "teachers": {"checkpoints": [{"file": str(tmp_path / "w.pth")} | checkpoint]},
                "students": {"kd": {"method": "kd"}},
            }
        )
        accelerator, own = Accelerator(cpu=True), load_own_teachers(recipe, data)
        networks = [one.network for one in own]
        teachers = load_teachers(recipe, data, teachers_path=tmp_path, accelerator=accelerator, own=networks)
        return call_roll(recipe, data, teachers, own, accelerator=accelerator).answered[0].acc

    with pytest.raises(CheckpointError) as caught:
        called(asked)
    best = str(caught.value).splitlines()[1]
    assert best.startswith("  100.0 %  mean: [")
    assert fits in best
    means, stds = (best.partition(f"{field}: [")[2].partition("]")[0] for field in ("mean", "std"))
    assert called({"mean": [float(v) for v in means.split(", ")], "std": [float(v) for v in stds.split(", ")]}) == 1.0


def test_librarys_weights_answer_the_same_when_a_network_without_them_loads_what_was_saved(monkeypatch):
    """The library's weights come in a network with `transform_input`; here it has random ones."""
    torch.manual_seed(0)
    librarys = models.googlenet(weights=None, num_classes=CLASSES, transform_input=True, init_weights=False).eval()
    monkeypatch.setattr(models, "get_model", lambda *_, **__: librarys)
    how: Any = {"num_classes": CLASSES, "image_shape": (3, 32, 32), "mean": DATAS[0], "std": DATAS[1]}
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = librarys(normalised(images, DATAS))
        started = build_network(NetworkSection(name="torchvision/googlenet", pretrained=True), **how).eval()
        monkeypatch.undo()
        bare = build_network(NetworkSection(name="torchvision/googlenet"), **how).eval()
        bare.load_state_dict(started.state_dict())
        for network in (started, bare):
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
