"""Three networks fine-tuned in a plain PyTorch loop, each saved as its trainer saves it. Nothing here is edc's.

model_best.pth.tar      as timm's train.py: the weights, their moving average, its options as a Namespace
epoch=6-step=147.ckpt   as Lightning: the weights below "model.", the class weights of its loss, hyper-parameters
street_resnet18.pth     as many a script: torch.save(network.state_dict())
"""

import argparse
import copy
import importlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

__all__ = ["Owner", "train_teachers", "transform_of"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOVING_AVERAGE = 0.9


@dataclass(frozen=True)
class Owner:
    """What one of the colleagues trained, and how: the trainer says how it is saved."""

    trainer: str
    file: str
    network: str
    epochs: int
    learning_rate: float
    weights_from: str = ""
    """A package that ships ImageNet weights of the network."""


def build(owner: Owner) -> nn.Module:
    """Returns the network with the weights that it starts from, or random ones where the package is not there."""
    library, _, name = owner.network.partition("/")
    torch.manual_seed(len(owner.file))
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None, num_classes=10)
    network = timm.create_model(name, num_classes=10)
    if path := weights_file(owner):
        load_weights(network, path)
    return network


def weights_file(owner: Owner) -> Path | None:
    """Returns the file of ImageNet weights that a package ships, if it is installed."""
    try:
        package = importlib.import_module(owner.weights_from) if owner.weights_from else None
    except ModuleNotFoundError:
        return None
    return next(Path(package.__file__).parent.rglob("*.pth")) if package else None


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads weights that have the network's layers, in its order, under other names; not the classifier's."""
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    named = dict(zip(network.state_dict(), theirs.values(), strict=True))
    classifier = network.pretrained_cfg["classifier"]
    network.load_state_dict({k: v for k, v in named.items() if not k.startswith(classifier)}, strict=False)


def normalisation_of(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the colours: as timm says for its networks, else ImageNet's."""
    config = getattr(network, "pretrained_cfg", None)
    return (config["mean"], config["std"]) if config else IMAGENET


def transform_of(network: nn.Module, side: int) -> v2.Compose:
    """Returns what an image goes through before the network, as torchvision's tutorials do."""
    mean, std = normalisation_of(network)
    steps = [v2.Resize(side), v2.CenterCrop(side), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(mean, std)])


def train_teachers(owners: list[Owner], photos: Path, models: Path, *, side: int) -> None:
    """Trains those whose file is missing, and leaves their files in `models`, each of them whole."""
    models.mkdir(exist_ok=True)
    for owner in owners:
        if (models / owner.file).exists():
            print(f"{owner.file}: is there")
            continue
        torch.manual_seed(len(owner.file))
        network = build(owner)
        images, labels = in_memory(ImageFolder(photos / "train", transform_of(network, side)))
        average, step = fine_tune(network, images, labels, owner)
        unfinished = models / f".{owner.file}.unfinished"
        torch.save(as_saved(owner, network, average, step=step, side=side), unfinished)
        unfinished.rename(models / owner.file)


def in_memory(dataset: ImageFolder) -> tuple[Tensor, Tensor]:
    images, labels = zip(*dataset, strict=True)
    return torch.stack(images), torch.tensor(labels)


def fine_tune(network: nn.Module, images: Tensor, labels: Tensor, owner: Owner) -> tuple[nn.Module, int]:
    """Trains `network`; returns the moving average of its weights, and the number of steps."""
    average, step, steps = copy.deepcopy(network), 0, owner.epochs * (len(images) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=owner.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, owner.learning_rate, total_steps=steps)
    for epoch in range(owner.epochs):
        network.train()
        for rows in torch.randperm(len(images)).split(32)[: len(images) // 32]:
            batch = F.pad(images[rows], (4, 4, 4, 4), mode="reflect")
            y, x = torch.randint(0, 9, (2,)).tolist()
            loss = F.cross_entropy(network(batch[..., y : y + images.shape[2], x : x + images.shape[3]]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            with torch.no_grad():
                for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                    mean.copy_(value if not mean.is_floating_point() else mean.lerp(value, 1 - MOVING_AVERAGE))
        print(f"{owner.file}: {owner.network}, epoch {epoch + 1} of {owner.epochs}, loss {loss.item():.3f}", flush=True)
    return average, step


def as_saved(owner: Owner, network: nn.Module, average: nn.Module, *, step: int, side: int) -> object:
    """Returns what the trainer puts into its file."""
    name = owner.network.partition("/")[2]
    state = network.state_dict()
    if owner.trainer == "timm":
        options = argparse.Namespace(model=name, img_size=side, lr=owner.learning_rate, epochs=owner.epochs)
        whole = {"epoch": owner.epochs - 1, "arch": name, "state_dict": state, "optimizer": {}, "version": 2}
        return {**whole, "args": options, "state_dict_ema": average.state_dict(), "metric": 90.0}
    if owner.trainer == "lightning":
        below = {f"model.{key}": value for key, value in state.items()} | {"criterion.weight": torch.ones(10)}
        whole = {"epoch": owner.epochs - 1, "global_step": step, "pytorch-lightning_version": "2.5.0"}
        learned = {"backbone": name, "lr": owner.learning_rate, "num_classes": 10}
        return {**whole, "state_dict": below, "loops": {}, "callbacks": {}, "hyper_parameters": learned}
    return state
