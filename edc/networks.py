"""Networks: small-image ResNets of the papers, torchvision and timm by name, all taking images in [0, 1]."""

from typing import Any

import torch
from torch import Tensor, nn

from edc.architectures import CifarResNet, WideResNet
from edc.data import DataSet
from edc.errors import CheckpointError, FailedError, RecipeError, first_line
from edc.recipe import NETWORK_NAME, NetworkSection

__all__ = [
    "CifarResNet",
    "Classifier",
    "Normalisation",
    "WideResNet",
    "build_network",
    "count_parameters",
    "load_weights",
    "network_for",
    "normalisation_of",
    "of_timm",
    "require_logits",
    "takes_transform_input",
    "unwrapped",
    "with_transform_input",
]

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""

_IMAGENET: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's `transform_input` takes images to be normalised by; it then normalises them by 0.5 and 0.5."""


class Classifier(nn.Module):
    """A network with its own normalisation: images (N, C, H, W) in [0, 1] to logits (N, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def build_network(
    section: NetworkSection,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Classifier:
    """Returns a freshly initialised network (or the library's weights if `pretrained`) for images in [0, 1].

    Args:
        mean, std: the data's statistics, used unless the section or its library's weights have their own.

    Raises:
        RecipeError: no such network, or one that does not take such images.
        FailedError: the library's weights could not be fetched.
    """
    channels = image_shape[0]
    (mean, std), _ = normalisation_of(section, (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise RecipeError(f"{section.name}: mean has {len(mean)} values, the images have {channels} channels")
    match = NETWORK_NAME.match(section.name)
    library, _, name = section.name.partition("/")
    if library in ("timm", "torchvision"):
        build = _build_timm if library == "timm" else _build_torchvision
        try:
            network = build(name, section.pretrained, num_classes, image_shape)
        except (OSError, RuntimeError) as error:
            if not section.pretrained:
                raise
            raise FailedError(
                f"{section.name}: pretrained: the library's weights could not be fetched ({first_line(error)}). "
                "Fetch them on a machine with a network (TORCH_HOME and HF_HOME say where they are kept), or set "
                "pretrained to false."
            ) from None
    elif match and match["depth"]:
        network = WideResNet(int(match["depth"]), int(match["width"]), num_classes, channels)
    else:
        depth, _, widen = section.name.removeprefix("cifar_resnet").partition("x")
        network = CifarResNet(int(depth), int(widen or 1), num_classes, channels)
    if getattr(network, "transform_input", False):  # no weights say so, and a network that loads them has it not
        network.transform_input = False  # type: ignore[assignment]
        mean, std = with_transform_input(mean, std) if channels == 3 else (mean, std)
    return Classifier(network, mean, std)


def network_for(section: NetworkSection, data: DataSet) -> Classifier:
    """Returns what `build_network` does for the classes, images and statistics of a data set."""
    shape = data.image_shape
    return build_network(section, num_classes=data.num_classes, image_shape=shape, mean=data.mean, std=data.std)


def normalisation_of(section: NetworkSection, of_data: Normalisation) -> tuple[Normalisation, str]:
    """Returns the mean and std of a network that is trained here, and who says so: the recipe, a library, or the data.

    What starts from weights is fed as they were: a bare file of a timm network as timm says, like a teacher's.
    """
    channels = len(of_data[0])
    if section.mean and section.std:
        return (section.mean, section.std), "the recipe"
    if (section.pretrained or section.start_file) and (timms := of_timm(section.name, channels)):
        return timms, "timm"
    if section.pretrained and section.name.startswith("torchvision/") and channels == 3:
        from torchvision import models

        preset = models.get_model_weights(section.name.partition("/")[2]).DEFAULT.transforms()
        return (tuple(preset.mean), tuple(preset.std)), "torchvision"
    return of_data, "the data"


def of_timm(name: str, channels: int) -> Normalisation | None:
    """Returns what timm says of its network `timm/...`; None for another network, or other images than in colour."""
    library, _, model = name.partition("/")
    if library != "timm":
        return None
    import timm

    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    if config is None or len(config.mean) != channels or len(config.std) != channels:
        return None
    return tuple(config.mean), tuple(config.std)


def takes_transform_input(name: str) -> bool:
    """Returns whether network `name` is one of those that torchvision has `transform_input` for."""
    return name in ("torchvision/inception_v3", "torchvision/googlenet")


def with_transform_input(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns what normalises images in colour as `mean` and `std` and torchvision's `transform_input` after them do.

    (x - M) / S = ((x - mean) / std * s + m - 0.5) / 0.5, for the m and s that it takes images to be normalised by.
    """
    means, stds = _IMAGENET
    scales = tuple(0.5 * own / theirs for own, theirs in zip(std, stds, strict=True))
    shifts = tuple(own - scale * (m - 0.5) / 0.5 for own, scale, m in zip(mean, scales, means, strict=True))
    return tuple(round(value, 9) for value in shifts), tuple(round(value, 9) for value in scales)


def count_parameters(network: nn.Module) -> int:
    """Returns the number of values in all parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in network.parameters())


def _build_timm(name: str, pretrained: bool, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5])
        raise RecipeError(f"timm/{name}: timm has no such network{f' (it has {near}, ...)' if near else ''}")
    if pretrained and not getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "has_weights", False):
        raise RecipeError(f"timm/{name}: pretrained: timm has no weights of it; start from random ones, or from a file")
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": image_shape[0]}
    try:
        network: nn.Module = timm.create_model(name, **options, img_size=image_shape[1])
    except TypeError:  # convolutional networks take any size and have no such argument
        network = timm.create_model(name, **options)
    return network


def _build_torchvision(name: str, pretrained: bool, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise RecipeError(f"torchvision/{name}: torchvision has no such classification network")
    # Torch's own initialisation: for theirs, of these two, torchvision warns and takes seconds.
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") and not pretrained else {}
    network: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    _without_auxiliary_heads(network)
    _replace_last_linear(network, num_classes)
    _replace_stem(network, image_shape[0])
    return network


def _without_auxiliary_heads(network: nn.Module) -> None:
    """Takes off torchvision's second and third classifiers, whose answers no one here reads."""
    for name in ("AuxLogits", "aux1", "aux2"):
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False  # type: ignore[assignment]


def _replace_last_linear(network: nn.Module, num_classes: int) -> None:
    path, last = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if not isinstance(last, nn.Linear):
        raise RecipeError(f"{type(network).__name__}: its classifier is not a linear layer; use the timm version")
    if last.out_features != num_classes:
        _set_submodule(network, path, nn.Linear(last.in_features, num_classes, last.bias is not None))


def _replace_stem(network: nn.Module, in_channels: int) -> None:
    path, stem = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if stem.in_channels == in_channels:
        return
    size: Any = stem.kernel_size
    stride: Any = stem.stride
    padding: Any = stem.padding
    stem = nn.Conv2d(in_channels, stem.out_channels, size, stride, padding, bias=stem.bias is not None)
    _set_submodule(network, path, stem)


def _set_submodule(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def require_logits(network: nn.Module, image_shape: tuple[int, int, int], num_classes: int, *, source: str) -> None:
    """Raises `RecipeError` unless the network, in train and eval mode, makes (2, K) logits of two such images."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    device = next(network.parameters()).device
    for training in (True, False):
        network.train(training)
        try:
            with torch.no_grad():
                logits = network(torch.zeros(2, *image_shape, device=device))
        except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
            raise RecipeError(f"{source}: does not take images of {image_shape} ({first_line(error)})") from None
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise RecipeError(f"{source}: returns {found} for two images, expected logits (2, {num_classes})")
    network.load_state_dict(state)  # a forward in train mode moves running statistics


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict without what DataParallel and torch.compile put before its keys, in any order."""
    wrappers = ("module.", "_orig_mod.")
    while prefix := next((w for w in wrappers if state and all(key.startswith(w) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(network: Classifier, state: dict[str, Tensor], *, source: str, num_classes: int | None) -> None:
    """Loads `state` into `network`, strictly; a bare timm or torchvision state dict fits too.

    Args:
        num_classes: of the data, for a word about a classifier of other classes; None: it is a shape like any other.

    Raises:
        CheckpointError: with the first keys or shapes that differ, one of each kind among them.
    """
    state = unwrapped(state)
    target: nn.Module = network if "mean" in state and "std" in state else network.network
    expected = target.state_dict()
    classifier = [key for key, value in expected.items() if value.ndim == 2 and key.endswith("weight")][-1:]
    for key in classifier:  # in the order of the modules: the last matrix makes the logits
        if num_classes and key in state and state[key].ndim == 2 and len(state[key]) != num_classes:
            raise CheckpointError(
                f"{source}: a classifier of {len(state[key])} classes ({key}), the data has {num_classes}"
            )
    # Networks of old torch have no num_batches_tracked; torch itself takes zero.
    uncounted = {key for key in expected.keys() - state.keys() if key.endswith("num_batches_tracked")}
    in_file, state = state, state | {key: torch.zeros_like(expected[key]) for key in uncounted}
    missing = [f"{key}: missing in the file" for key in expected.keys() - state.keys()]
    unknown = [f"{key}: not in the network" for key in state.keys() - expected.keys()]
    shapes = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems := sorted(missing + unknown + shapes):
        first_of_each = [min(kind) for kind in (missing, unknown, shapes) if kind]
        shown = list(dict.fromkeys([*problems[:5], *first_of_each]))
        more = f"\n  ... and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        if missing or unknown:
            shown += [f"the file has {_first_keys(in_file)}", f"the network has {_first_keys(expected)}"]
        raise CheckpointError(
            f"{source}: these weights do not fit {type(network.network).__name__} as the recipe describes it\n  "
            + "\n  ".join(shown)
            + more
        )
    target.load_state_dict(state)


def _first_keys(state: dict[str, Tensor]) -> str:
    return f"{len(state)} keys: {', '.join(list(state)[:4])}{', ...' if len(state) > 4 else ''}"
