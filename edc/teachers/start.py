"""Loads the weights a network starts from, of a file or a teacher. A classifier of other classes is drawn anew."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor, nn

from edc.console import console
from edc.data import DataSet
from edc.errors import CheckpointError
from edc.networks import Classifier, build_network, load_weights
from edc.recipe import NetworkSection
from edc.system.files import sha256_of
from edc.teachers.file_teacher import FileTeacher
from edc.teachers.weights_file import weights_for

__all__ = ["FromFile", "say_start", "start_digest", "start_from_file", "start_from_teacher"]


@dataclass(frozen=True)
class FromFile:
    """What a network got from a file: `anew` is what it did not get, `words` which weights of the file it got."""

    anew: tuple[str, ...]
    words: str


def start_from_file(network: Classifier, section: NetworkSection, *, field: str) -> FromFile:
    """Loads the file that `section` starts from into the freshly initialised `network` that `section` describes.

    If the file has no classifier, or one of another number of classes, the network keeps its own.

    Args:
        field: the recipe's field that names the file, for messages (for example network.start).

    Raises:
        CheckpointError: no such file, no weights in it, or another architecture; it names the first keys that differ.
    """
    path = _existing(section, field)
    taken = weights_for(network, path, source=f"{field}: {path}", which=section.weights or "auto")
    state = taken.state
    has_normalisation = "mean" in state and "std" in state
    own = network.state_dict() if has_normalisation else network.network.state_dict()
    head = _head(network, own)
    anew = _is_of_other_classes(state, own, head)
    if anew:
        state = {key: value for key, value in state.items() if key not in head} | {key: own[key] for key in head}
    if has_normalisation:
        state |= _normalisation_of_recipe(network, section)
    load_weights(network, state, source=f"{field}: {path}", num_classes=None)
    return FromFile(head if anew else (), taken.words)


def start_from_teacher(network: Classifier, section: NetworkSection, teacher: nn.Module, *, source: str) -> None:
    """Loads all weights of `teacher`, and its normalisation unless `section` has its own, into `network`.

    Raises:
        CheckpointError: the teacher has another architecture.
    """
    state = teacher.network.state_dict() if isinstance(teacher, FileTeacher) else teacher.state_dict()
    if isinstance(teacher, FileTeacher) and not isinstance(teacher.network, Classifier):
        state = {f"network.{key}": value for key, value in state.items()}
        state |= {"mean": teacher.mean, "std": teacher.std}
    if isinstance(teacher, FileTeacher) and (order := teacher.class_order) is not None:
        state = state | {key: state[key].index_select(0, order) for key in _head(network, state)}
    load_weights(network, state | _normalisation_of_recipe(network, section), source=source, num_classes=None)


def say_start(label: str, start: str, got: FromFile | None = None) -> None:
    """Prints what a network starts from, which of a file's weights those are, and what is drawn anew."""
    words = f"{start}: {got.words}" if got and got.words else start
    head = f"; {', '.join(got.anew)} are of other classes there: drawn anew from the seed" if got and got.anew else ""
    console.print(f"{label}: starts from {words}{head}", highlight=False, markup=False)


def start_digest(section: NetworkSection, data: DataSet, *, field: str) -> str | None:
    """Returns the SHA-256 of the file that `section` starts from, and, where it has raw weights too, that its moving
    average is taken; None if it starts from no file.
    """
    if section.start_file is None:
        return None
    path = _existing(section, field)
    state = path.absolute(), path.stat().st_mtime_ns, path.stat().st_size
    return _digest(*state) + _average_in(*state, section, data.num_classes, data.image_shape, f"{field}: {path}")


@cache
def _average_in(
    path: Path,
    _changed_ns: int,
    _size_bytes: int,
    section: NetworkSection,
    num_classes: int,
    image_shape: tuple[int, int, int],
    source: str,
) -> str:
    """Returns where in the file the moving average is that is taken in place of raw weights; "" if none is."""
    channels = image_shape[0]
    statistics = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    network = build_network(section.bare(), num_classes=num_classes, image_shape=image_shape, **statistics)
    taken = weights_for(network, path, source=source, which=section.weights or "auto")
    return f" {taken.name}" if taken.is_ema and taken.has_both else ""


@cache
def _digest(path: Path, _changed_ns: int, _size_bytes: int) -> str:
    return sha256_of(path)


def _existing(section: NetworkSection, field: str) -> Path:
    path = section.start_file
    assert path is not None  # callers ask only if the section names a file
    if not path.is_file():
        raise CheckpointError(f"{field}: {path.absolute()}: no such file of weights to start from")
    return path


def _head(network: Classifier, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Returns the classifier's keys in `state`: as timm names them for its networks, else those of the last matrix."""
    prefix = "network." if "mean" in state else ""
    told = (getattr(network.network, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = [prefix + name for name in ((told,) if isinstance(told, str) else told)]
    if not names:
        matrices = [key for key, value in state.items() if value.ndim == 2 and key.endswith(".weight")]
        names = [key.removesuffix(".weight") for key in matrices[-1:]]
    return tuple(key for key in state if key.rpartition(".")[0] in names)


def _is_of_other_classes(state: dict[str, Tensor], own: dict[str, Tensor], head: tuple[str, ...]) -> bool:
    """Returns whether `state` has no head, or one that differs from `own` only in the number of classes."""
    if not any(key in state for key in head):
        return True
    alike = all(key in state and state[key].shape[1:] == own[key].shape[1:] for key in head)
    return alike and any(len(state[key]) != len(own[key]) for key in head)


def _normalisation_of_recipe(network: Classifier, section: NetworkSection) -> dict[str, Tensor]:
    return {} if section.mean is None else {"mean": network.mean, "std": network.std}
