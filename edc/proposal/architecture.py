"""Which network a state dict is of: as its file or the files beside it say, else by its keys and shapes.

Nothing is believed unread: a name counts if the weights fit that network key by key and shape by shape.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from edc.errors import CheckpointError, EdcError
from edc.networks import build_network, load_weights
from edc.recipe import NETWORK_NAME, NetworkSection
from edc.system.documents import json_from_text, read_text, yaml_from_text
from edc.teachers.weights_file import Held, fits, nearest, state_dicts_in
from edc.train.checkpoint import NotLoaded

__all__ = ["Architecture", "Said", "architecture_of", "said_by"]

BESIDE = ("config.json", "args.yaml", "hparams.yaml", "../hparams.yaml", "teacher.json")
"""What the Hugging Face hub, timm, Lightning and edc leave beside weights."""
NAME_KEYS = re.compile(
    r"(arch|architecture|model|model_name|model_type|backbone|backbone_name|encoder|encoder_name|net|network|base_model"
    r"|name|variant|timm_model|timm_name)\Z"
)
SIZE_KEYS = re.compile(r"(img_size|image_size|input_size|crop_size|train_crop_size|val_crop_size|imgsz|resolution)\Z")
MOST_SAID, DEPTH = 20, 4
SECONDS_TO_MATCH = 60.0
"""Of computing, for the names of all networks; those whose key names are alike come first."""
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Of images, tried for a network that was named: a transformer's weights are of one size."""
ALIKE = 0.5
"""Share of the smaller one's keys that two networks of one family have in common."""
USUAL = (
    "resnet",
    "efficientnet",
    "mobilenetv3",
    "vision_transformer",
    "convnext",
    "swin_transformer",
    "regnet",
    "densenet",
)
"""Families of timm and torchvision that are looked at first."""


@dataclass(frozen=True)
class Said:
    """What a file of weights, its name or a file beside it says of its network."""

    names: tuple[tuple[str, str], ...]
    """Networks by the names of edc, and where that was said."""
    size: int | None = None
    """Side of its images in pixels."""


@dataclass(frozen=True)
class Architecture:
    """The network of a file of weights."""

    name: str
    num_classes: int
    image_size: int
    why: str
    """Where its name was said, or how it was found."""


def said_by(path: Path, document: Any) -> Said:
    """Returns what `document`, which the file at `path` holds, and the files beside it say of its network."""
    names: dict[str, str] = {}
    sizes: list[int] = []
    for where, content in [(f"{path.name} says", document), *_beside(path)]:
        for key, value in _values(content):
            if isinstance(value, str) and NAME_KEYS.match(key):
                for name in _networks_called(value):
                    names.setdefault(name, f"{where} {key}: {value}")
            elif SIZE_KEYS.match(key) and (size := _side(value)):
                sizes.append(size)
    for name in _networks_in_name(path.stem):
        names.setdefault(name, f"the name {path.name}")
    return Said(tuple(names.items())[:MOST_SAID], sizes[0] if sizes else None)


def architecture_of(
    path: Path,
    document: Any,
    said: Said,
    *,
    num_classes: int,
    num_channels: int,
    image_size: int,
    asked: Sequence[tuple[str, str]] = (),
    known: Sequence[tuple[str, str]] = (),
) -> Architecture:
    """Returns the network that the weights in `document` are of.

    Args:
        num_classes: of the data; a classifier of another number is told from one that does not fit.
        image_size: that a network gets which takes any.
        asked, known: networks to try before and after those that the file says, and why.

    Raises:
        CheckpointError: no weights, or of no network that was tried; it says which were.
    """
    held = state_dicts_in(document)
    if not held:
        raise CheckpointError(f"{path}: holds no state dict (names to tensors)")
    shapes = [Held(one.name, {k: v.to("meta") for k, v in one.state.items()}, one.is_ema) for one in held]
    likely: dict[str, str] = {}
    for name, why in (*asked, *said.names, *known):
        likely.setdefault(name, why)
    tried, end = 0, time.process_time() + SECONDS_TO_MATCH  # not of the clock: the answer is the same on a busy machine
    for name, why in chain(likely.items(), _by_keys(shapes, num_channels, end)):
        tried += 1
        for classes in dict.fromkeys([num_classes, *_rows_of_last(shapes)]):
            sizes = SIZES if name in likely else ()
            for size in dict.fromkeys([said.size or image_size, image_size, *_own_size(name), *sizes]):
                network = _on_meta(name, classes, num_channels, size)
                if network is not None and any(fits(network, one) for one in shapes):
                    return Architecture(name, classes, size, why)
    keys = max(shapes, key=lambda one: len(one.state)).state
    names = ", ".join([*likely][:5]) or "none was named"
    by_keys = "by keys, those of timm and torchvision"
    if time.process_time() > end:
        by_keys += f" until {SECONDS_TO_MATCH:.0f} s of computing were over, which were too few for all"
    give = "If it is another, give" if likely else "Give"
    raise CheckpointError(
        f"{path}: its {len(keys)} weights ({', '.join([*keys][:3])}, ...) fit none of the {tried} networks that were "
        f"tried ({names}; {by_keys}). {_difference(likely, shapes, num_channels, said.size or image_size)}{give} its "
        f"name: --network {path.name}=timm/NAME or torchvision/NAME. A network that neither has is given whole, as "
        "TorchScript, .pt2 or ONNX"
    )


def _difference(likely: Mapping[str, str], held: Sequence[Held], num_channels: int, size: int) -> str:
    """Returns how the weights differ from the first of the networks that were named, in words."""
    classes = (_rows_of_last(held) or [1000])[0]
    for name, why in likely.items():
        network = _on_meta(name, classes, num_channels, size)
        if network is None:
            continue
        try:
            load_weights(network, nearest(network, held)[0].state, source=name, num_classes=None)
        except CheckpointError as error:
            return f"As {name}, {why}: {str(error).splitlines()[1].strip()}. "
    return ""


def _beside(path: Path) -> Iterator[tuple[str, Any]]:
    for name in BESIDE:
        file = path.parent / name
        try:
            text = read_text(file)
            yield f"{name} says", json_from_text(text) if file.suffix == ".json" else yaml_from_text(text)
        except (OSError, ValueError):  # none, or none that says anything
            continue


def _values(document: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of a document's mappings, also of options that a trainer kept as an object."""
    if isinstance(document, NotLoaded):
        document = document.held
    if depth > DEPTH or not isinstance(document, Mapping):
        return
    for key, value in document.items():
        if isinstance(key, str) and not isinstance(value, torch.Tensor):
            yield key, value
            yield from _values(value, depth + 1)


def _side(value: Any) -> int | None:
    found = value[-1] if isinstance(value, list | tuple) and value else value
    return found if type(found) is int and 8 <= found <= 8192 else None


@cache
def _library_names() -> dict[str, dict[str, list[str]]]:
    """Returns the names of each library's networks by the file that defines them."""
    import timm
    from torchvision import models

    of_torchvision: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        family = models.get_model_builder(name).__module__.rpartition(".")[2]
        of_torchvision.setdefault(family, []).append(name)
    return {
        "timm": {family: timm.list_models(module=family) for family in timm.list_modules()},
        "torchvision": of_torchvision,
    }


@cache
def _all_names() -> dict[str, frozenset[str]]:
    return {library: frozenset(n for names in of.values() for n in names) for library, of in _library_names().items()}


def _networks_called(text: str) -> list[str]:
    """Returns the networks that a text like resnet18, timm/resnet18.a1_in1k or torchvision.models.resnet18 may mean."""
    if NETWORK_NAME.match(text) and "/" not in text:
        return [text]
    last = text.rpartition("/")[2].lower().replace("-", "_")
    words = dict.fromkeys([last, last.partition(".")[0], last.rpartition(".")[2]])
    libraries = [library for library in _all_names() if library in text.lower()] or [*_all_names()]
    return [f"{library}/{word}" for word in words for library in libraries if word in _all_names()[library]]


def _networks_in_name(stem: str) -> list[str]:
    """Returns the networks whose name stands in that of a file, the longest first."""
    text = stem.lower().replace("-", "_")
    found = [
        f"{library}/{name}"
        for library, names in _all_names().items()
        for name in names
        if re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![0-9])", text)
    ]
    return sorted(found, key=lambda name: -len(name))[:5]


def _by_keys(held: Sequence[Held], num_channels: int, end: float) -> Iterator[tuple[str, str]]:
    """Yields networks of the families with such keys: first the usual ones, then all, until `end`."""
    families = [
        (library, family, sorted(names, key=lambda name: (len(name), name)))
        for library, of in _library_names().items()
        for family, names in of.items()
        if names
    ]
    families.sort(key=lambda one: USUAL.index(one[1]) if one[1] in USUAL else len(USUAL))
    for library, _, names in families:
        if time.process_time() > end:
            return
        first = _on_meta(f"{library}/{names[0]}", 10, num_channels, None)
        if first is None or _alike(first.network.state_dict().keys(), held) < ALIKE:
            continue
        for name in names:
            if time.process_time() > end:
                return
            yield f"{library}/{name}", "by its keys and shapes"


def _alike(expected: Any, held: Sequence[Held]) -> float:
    """Returns which share of the smaller's keys two networks have in common, whatever stands before them."""
    best = 0.0
    for one in held:
        ends = {key[start:] for key in one.state for start in (0, *(m.end() for m in re.finditer(r"\.", key[:40])))}
        best = max(best, len(ends & set(expected)) / min(len(one.state), len(expected)))
    return best


def _rows_of_last(held: Sequence[Held]) -> list[int]:
    """Returns how many classes the weights may tell apart: the rows of their last matrix."""
    return [
        [len(v) for v in one.state.values() if v.ndim == 2][-1]
        for one in held
        if any(v.ndim == 2 for v in one.state.values())
    ]


@cache
def _own_size(name: str) -> tuple[int, ...]:
    """Returns the size of images that a network of timm is defined for, if it is."""
    library, _, model = name.partition("/")
    if library != "timm":
        return ()
    import timm

    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return (config.input_size[-1],) if config is not None else ()


def _on_meta(name: str, num_classes: int, num_channels: int, size: int | None) -> Any:
    """Returns the network without memory for its weights; None if it cannot be built so."""
    section = NetworkSection(name=name)
    side = size or (*_own_size(name), 224)[0]
    statistics: Any = {"mean": (0.0,) * num_channels, "std": (1.0,) * num_channels}
    shape = (num_channels, side, side)
    for device in ("meta", "cpu"):  # torchvision's RegNets compute their widths with tensors
        try:
            with torch.device(device):
                return build_network(section, num_classes=num_classes, image_shape=shape, **statistics)
        except NotImplementedError:
            continue
        except (EdcError, RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError, AttributeError):
            break
    return None
