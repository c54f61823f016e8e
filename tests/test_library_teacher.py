"""Teachers with a library's own weights: taken as the library has them, with its size and normalisation, or refused.

Nothing is fetched: the libraries find weights of our own making where they would have put theirs.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torchvision import models

from edc.errors import CheckpointError, RecipeError
from edc.recipe import CheckpointSection
from edc.teachers.from_library import load_library_teacher

CLASSES = 1000
TORCHVISION, TIMM = "mobilenet_v3_small", "resnet10t"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_SIZE, TIMM_STATISTICS = 40, ((0.5, 0.4, 0.3), (0.3, 0.4, 0.5))


def moved(network: nn.Module) -> nn.Module:
    """Gives BatchNorm statistics of its own, so that the mode of the network shows in what it answers."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    return network.eval()


@pytest.fixture
def torchvision_network(tmp_path, monkeypatch) -> nn.Module:
    """The network whose weights torchvision finds in its cache."""
    torch.manual_seed(0)
    network = moved(models.get_model(TORCHVISION, weights=None))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = Path(models.get_model_weights(TORCHVISION).DEFAULT.url).name
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub/checkpoints" / name)
    return network


@pytest.fixture
def timm_network(tmp_path, monkeypatch) -> nn.Module:
    """The network whose weights timm is told to find in a file, trained at a size and normalisation of its own."""
    torch.manual_seed(0)
    network = moved(timm.create_model(TIMM))
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    mean, std = TIMM_STATISTICS
    config = timm.get_pretrained_cfg(TIMM)
    own = PretrainedCfg(
        **config.to_dict(remove_source=True) | {"input_size": (3, TIMM_SIZE, TIMM_SIZE), "mean": mean, "std": std},
        file=str(tmp_path / "timm.pth"),
    )
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, TIMM, own)
    return network


def teacher(
    name: str, *, image_shape: tuple[int, int, int] = (3, 32, 32), classes: int = CLASSES, **options: Any
) -> Any:
    checkpoint = CheckpointSection(network={"name": name, "pretrained": True}, **options)
    return load_library_teacher(
        checkpoint,
        field="teachers.checkpoints.0",
        class_names=tuple(f"class{k}" for k in range(classes)),
        image_shape=image_shape,
    ).network


def written_out(network: nn.Module, images: Tensor, size: int, mean: Any, std: Any) -> Tensor:
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return network(torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1))


def test_torchvisions_weights_answer_at_their_size_with_their_normalisation(torchvision_network):
    found = teacher(f"torchvision/{TORCHVISION}")
    smaller = teacher(f"torchvision/{TORCHVISION}", input_size=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = written_out(torchvision_network, images, 224, *IMAGENET)
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-5)
        expected = written_out(torchvision_network, images, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        torch.testing.assert_close(smaller(images), expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_timms_weights_answer_at_their_size_with_their_normalisation(timm_network):
    found, images = teacher(f"timm/{TIMM}"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = written_out(timm_network, images, TIMM_SIZE, *TIMM_STATISTICS)
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [f"torchvision/{TORCHVISION}", f"timm/{TIMM}"])
def test_other_classes_are_refused_where_the_library_would_put_an_untrained_classifier(name):
    message = rf"checkpoints.0: {name}: a classifier of 1000 classes, the data has 10; train it on your classes first"
    with pytest.raises(CheckpointError, match=message):
        teacher(name, classes=10)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("torchvision/resnet9000", (3, 32, 32), r"torchvision/resnet9000: torchvision has no such"),
        ("timm/resnet9000", (3, 32, 32), r"timm/resnet9000: timm has no weights under this name"),
        ("timm/test_resnet.nosuchtag", (3, 32, 32), r"timm/test_resnet.nosuchtag: timm has no weights under this name"),
        (f"torchvision/{TORCHVISION}", (1, 32, 32), r"takes 3 channels, the images have 1"),
    ],
)
def test_what_a_library_does_not_have_is_refused(name, shape, message):
    with pytest.raises(RecipeError, match=message):
        teacher(name, image_shape=shape)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "file: missing; expected a file, or network"),
        ({"network": "timm/resnet18"}, "file: missing"),
        ({"network": {"name": "timm/resnet18", "pretrained": True}, "format": "onnx"}, "no effect without a file"),
    ],
)
def test_teacher_without_a_file_is_a_librarys(entry, message):
    with pytest.raises(ValueError, match=message):
        CheckpointSection.model_validate(entry)
