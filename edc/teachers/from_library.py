"""Teachers that are networks of torchvision or timm with the library's own weights, size and normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from edc.errors import CheckpointError, RecipeError
from edc.networks import build_network
from edc.recipe import CheckpointSection
from edc.teachers.class_order import order_of
from edc.teachers.file_teacher import FileTeacher, in_order_of_data
from edc.teachers.from_file import require_classifier
from edc.teachers.reading import OwnTeacher, Reading

__all__ = [
    "has_library_weights",
    "load_library_teacher",
    "name_of_library_weights",
    "place_of_library_weights",
]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class _Weights:
    """A library's data on its default weights: side of the images in pixels, mean and standard deviation."""

    name: str
    num_classes: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_library_teacher(
    checkpoint: CheckpointSection, *, field: str, class_names: Sequence[str], image_shape: tuple[int, int, int]
) -> OwnTeacher:
    """Returns `checkpoint.network` with the library's weights, frozen, in eval mode, and tried on images.

    It resizes images to its own size and normalises them as it was trained, unless `checkpoint` says otherwise. Its
    logits are assumed to be in the order of the data's classes, unless `checkpoint.classes` says otherwise; nothing in
    the library could confirm that.

    Args:
        field: what messages call it, for example teachers.checkpoints.0.
        image_shape: (C, H, W) of the data, before the teacher's own resizing.

    Raises:
        RecipeError: no such network or weights, weights that cannot be fetched, or images that it does not take.
        CheckpointError: its classes are not as many as the data's.
    """
    section, num_classes = checkpoint.network, len(class_names)
    assert section is not None  # the recipe's rule
    source = f"{field}: {section.name}"
    weights = _weights_of(section.name, source)
    if weights.num_classes != num_classes:  # the library would put a new, untrained classifier there
        raise CheckpointError(
            f"{source}: a classifier of {weights.num_classes} classes, the data has {num_classes}; train it on your "
            "classes first, and give it as a file"
        )
    if image_shape[0] != len(weights.mean):
        raise RecipeError(f"{source}: takes {len(weights.mean)} channels, the images have {image_shape[0]}")
    size = checkpoint.input_size or weights.input_size
    mean, std = checkpoint.mean or section.mean or weights.mean, checkpoint.std or section.std or weights.std
    own, shape = section.model_copy(update={"mean": mean, "std": std}), (len(mean), size, size)
    network = build_network(own, num_classes=num_classes, image_shape=shape, mean=mean, std=std).eval()
    fed: Any = {name: tuple(getattr(network, name).flatten().tolist()) for name in ("mean", "std")}
    teacher = FileTeacher(network.network, input_size=size, output=checkpoint.output, **fed)
    require_classifier(teacher, source, image_shape, num_classes, checkpoint.output)
    says = "the recipe" if checkpoint.mean or section.mean else section.name.partition("/")[0]
    order = order_of(checkpoint.classes, class_names, field=field)
    return in_order_of_data(teacher, Reading(mean, std, says, size), checkpoint, order)


def name_of_library_weights(checkpoint: CheckpointSection) -> str:
    """Returns the library's own name of the weights: a later version of it may have better ones as its default."""
    assert checkpoint.network is not None  # the recipe's rule
    return _weights_of(checkpoint.network.name, checkpoint.network.name).name


def _weights_of(name: str, source: str) -> _Weights:
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        try:
            config = timm.get_pretrained_cfg(model)
        except RuntimeError:  # a tag that it does not know
            config = None
        if config is None or not config.has_weights:
            raise RecipeError(f"{source}: timm has no weights under this name; give the teacher as a file")
        name = f"timm/{config.architecture}.{config.tag}"
        return _Weights(name, config.num_classes, config.input_size[-1], tuple(config.mean), tuple(config.std))
    from torchvision import models

    if model not in models.list_models(module=models):
        raise RecipeError(f"{source}: torchvision has no such classification network")
    default = models.get_model_weights(model).DEFAULT
    preset = default.transforms()
    name = f"torchvision/{model} {default}"
    return _Weights(name, len(default.meta["categories"]), preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def has_library_weights(name: str) -> bool:
    """Returns whether the library has fetched its weights of network `name` already, so that no network is needed."""
    hub, url = _hub_and_url(name)
    if hub:
        from huggingface_hub import try_to_load_from_cache

        return any(isinstance(try_to_load_from_cache(hub, file), str) for file in HUB_FILES)
    return bool(url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name).is_file()


def place_of_library_weights(name: str) -> str:
    """Returns the address that answers if the library can fetch its weights of network `name`; "" if it has none."""
    hub, url = _hub_and_url(name)
    if hub:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(hub, "config.json"))
    return url


def _hub_and_url(name: str) -> tuple[str, str]:
    """Returns the repository of the weights on the hub, or their address elsewhere; the other one is empty."""
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(model)
        return (str(config.hf_hub_id or ""), str(config.url or "")) if config else ("", "")
    from torchvision import models

    return "", str(models.get_model_weights(model).DEFAULT.url)
