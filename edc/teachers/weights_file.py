"""The state dict of a network in a file of weights, whatever its trainer put around and beside it.

timm, torchvision's references, Lightning and plain loops save {"state_dict": ...}, {"model": ...}, {"net": ...}, a
moving average beside the raw weights, and a prefix before every key. Which of several is taken is what `weights` of a
checkpoint says; `auto` is timm's rule: the moving average if there is one.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edc.errors import CheckpointError
from edc.networks import Classifier, load_weights
from edc.train.checkpoint import NotLoaded, held_in, load_document

__all__ = ["Held", "Taken", "WhichWeights", "fits", "load_weights_file", "nearest", "state_dicts_in", "weights_for"]

WhichWeights = Literal["auto", "ema", "raw"]
FIRST = ("state_dict", "model", "model_state_dict", "net")
"""Of several state dicts that fit, the one under the first of these names is meant; timm's order comes first."""
AVERAGES = {"ema", "swa", "averaged", "average", "avg", "polyak"}
AUXILIARY = re.compile(r"aux(_?logits|_?head|_?classifier|_?fc)?\d*\.", re.IGNORECASE)
"""Heads that help a training and are not part of the answer."""
NOT_NETWORKS = re.compile("optim|sched|scaler|loss|criterion", re.IGNORECASE)
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into keys, wherever a module is wrapped."""
DEPTH = 3
MOST_PREFIX = 200
"""Characters of a key in which a prefix may end."""


@dataclass(frozen=True)
class Held:
    """A state dict in a file: the keys that lead to it, joined by dots; "" if it is the whole file."""

    name: str
    state: dict[str, Tensor]
    is_ema: bool


@dataclass(frozen=True)
class Taken:
    """The weights that are taken from a file, under the keys of the network, and what is said of that."""

    state: dict[str, Tensor]
    name: str
    """The keys that lead to them in the file."""
    is_ema: bool
    has_both: bool
    """Whether the file has a moving average and raw weights of this network."""
    prefix: str = ""
    """What was taken off the keys."""
    left_out: tuple[str, ...] = ()
    """Tensors that are not of the network, by key."""
    unread: tuple[str, ...] = ()
    """Averages that the file names and that are no state dict of this network."""
    others: tuple[str, ...] = ()
    """Where in the file other weights of this network are, of the same kind."""

    @property
    def words(self) -> str:
        """What was taken, for people; "" if there was nothing to choose."""
        kind, name = "moving average" if self.is_ema else "raw weights", self.name or "the whole file"
        parts = [f"{kind} ({name})"] if self.has_both or self.others else []
        if not parts and self.is_ema:
            parts = [f"moving average ({name}; the file has no other weights)"]
        if self.others:
            parts.append(f"not those of {', '.join(self.others)}, which are others of the same network")
        if self.prefix:
            parts.append(f"{self.prefix!r} taken off its keys")
        if self.left_out:
            shown = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
            parts.append(f"without {len(self.left_out)} that the network does not have ({shown})")
        if self.unread:
            parts.append(f"left out {', '.join(self.unread)}: no state dict of this network")
        return "; ".join(parts)


def load_weights_file(
    network: Classifier, path: Path, *, source: str, num_classes: int | None, which: WhichWeights = "auto"
) -> Taken:
    """Loads the weights in `path` into `network`, strictly, and returns which they were.

    Args:
        source: what messages call the file.
        num_classes: as for `edc.networks.load_weights`.

    Raises:
        CheckpointError: no weights of this network in it, several that could be meant, or not those of `which`.
    """
    taken = weights_for(network, path, source=source, which=which)
    load_weights(network, taken.state, source=source, num_classes=num_classes)
    return taken


def weights_for(network: Classifier, path: Path, *, source: str, which: WhichWeights = "auto") -> Taken:
    """Returns the weights in `path` for `network`; if none fit, those that fit best, which will not load strictly.

    Raises:
        CheckpointError: no state dict, several that could be meant, or not those of `which`.
    """
    document = load_document(path)
    held = state_dicts_in(document)
    if not held:
        raise CheckpointError(f"{path}: holds {held_in(document)}, expected a state dict (names to tensors)")
    fitting = [taken for each in held for taken in fits(network, each)]
    found = fitting or nearest(network, held)
    averages, raw = ([taken for taken in found if taken.is_ema is is_ema] for is_ema in (True, False))
    wanted = {"auto": averages or raw, "ema": averages, "raw": raw}[which]
    if not wanted:
        names = ", ".join(repr(taken.name or "the whole file") for taken in found)
        other = "moving average" if which == "ema" else "raw weights"
        raise CheckpointError(f"{source}: weights: found {which!r}, but the file has no {other}; it has {names}")
    taken = _the_one(wanted, source) if fitting else min(wanted, key=lambda one: _rank(one.name))
    unread = () if averages else tuple(_named_averages(document))
    return replace(taken, has_both=bool(averages and raw), unread=unread)


def _the_one(fitting: Sequence[Taken], source: str) -> Taken:
    """Returns the weights that are meant; raises if that cannot be told."""
    first, *others = sorted(fitting, key=lambda taken: _rank(taken.name))
    different = [each for each in others if not _equal(first.state, each.state)]
    if different and _rank(first.name) == _rank(different[0].name):
        names = ", ".join(repr(f"{taken.name} {taken.prefix}".strip()) for taken in (first, *different))
        raise CheckpointError(
            f"{source}: holds several state dicts of this network ({names}), and nothing says which is meant; save the "
            "one to a file of its own"
        )
    return replace(first, others=tuple(dict.fromkeys(each.name for each in different)))


def state_dicts_in(document: Any) -> list[Held]:
    """Returns the state dicts in a document, those near its top first."""
    held = list(_walk(document, (), set()))
    if isinstance(document, dict) and "current_model_state" in document:  # Lightning's weight averaging
        held = [Held(one.name, one.state, one.is_ema or one.name == "state_dict") for one in held]
    return held


def _walk(document: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[Held]:
    """Yields the state dicts in a document; `seen`, because a pickle can hold itself."""
    if isinstance(document, list | tuple) and not names:  # torch.save((network.state_dict(), epoch), ...)
        document = {str(place): value for place, value in enumerate(document)}
    if (
        not isinstance(document, Mapping)
        or id(document) in seen
        or len(names) > DEPTH
        or any(NOT_NETWORKS.search(name) for name in names)
    ):
        return
    seen.add(id(document))
    state = {key: value for key, value in document.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if state:
        is_ema = any(_is_average(name) for name in names) or "n_averaged" in state  # of torch's AveragedModel
        yield Held(".".join(names), state, is_ema)
    for key, value in document.items():
        if isinstance(key, str):
            yield from _walk(value, (*names, key), seen)


def _is_average(name: str) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return any(word.lower() in AVERAGES for word in words)


def _named_averages(document: Any) -> list[str]:
    keys = document if isinstance(document, Mapping) else ()
    return [
        key
        for key in keys
        if isinstance(key, str) and _is_average(key) and isinstance(document[key], Mapping | NotLoaded | list)
    ]


def _rank(name: str) -> int:
    last = name.rpartition(".")[2]
    return FIRST.index(last) if last in FIRST else len(FIRST)


def fits(network: Classifier, held: Held) -> list[Taken]:
    """Returns how `held` fits `network` whole: with the normalisation that edc saves, else without."""
    for one, wrappers in ((held, ""), _unwrapped_inside(held)):
        for target in (network, network.network):
            if found := _fits_in(target, one):
                return [replace(taken, prefix=wrappers + taken.prefix) for taken in found]
    return []


def _unwrapped_inside(held: Held) -> tuple[Held, str]:
    """Returns `held` without what wrappers of inner modules put into its keys, and what that was."""
    wrappers = dict.fromkeys(wrapper for key in held.state for wrapper in WRAPPERS.findall(key[:MOST_PREFIX]))
    state = {WRAPPERS.sub("", key): value for key, value in held.state.items()} if wrappers else {}
    return replace(held, state=state), "".join(wrappers)


def _fits_in(target: nn.Module, held: Held) -> list[Taken]:
    expected, found = target.state_dict(), []
    needed = {key: value for key, value in expected.items() if not key.endswith("num_batches_tracked")}
    for prefix, num_keys in _prefixes(held.state, needed).items():
        inside = {key.removeprefix(prefix): value for key, value in held.state.items() if key.startswith(prefix)}
        if num_keys < len(needed) or any(inside[key].shape != value.shape for key, value in needed.items()):
            continue
        unknown = [key for key in inside if key not in expected and not (held.is_ema and key == "n_averaged")]
        if all(AUXILIARY.match(key) for key in unknown):
            outside = [key for key in held.state if not key.startswith(prefix) and key != "n_averaged"]
            left_out = (*(prefix + key for key in unknown), *outside)
            is_ema = held.is_ema or any(_is_average(part) for part in prefix.split("."))
            known = {key: value for key, value in inside.items() if key in expected}
            found.append(Taken(known, held.name, is_ema, False, prefix, left_out))
    return found


def _prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Counter[str]:
    """Returns how many keys of `state` become expected ones when a prefix, "" among them, is taken off."""
    found: Counter[str] = Counter()
    for key in state:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key[:MOST_PREFIX]))]
        found.update(key[:start] for start in starts if key[start:] in expected)
    return found


def nearest(network: Classifier, held: Sequence[Held]) -> list[Taken]:
    """Returns what has the most keys in common with the network: to start from, or for a message of how it differs."""
    expected = network.state_dict() | network.network.state_dict()
    found: list[tuple[int, Taken]] = []
    for one in held:
        for prefix, num_keys in (_prefixes(one.state, expected) or {"": 0}).items():
            is_ema = one.is_ema or any(_is_average(part) for part in prefix.split("."))
            taken_off = "" if prefix == "network." else prefix  # as edc saves it
            state = {key.removeprefix(taken_off): value for key, value in one.state.items()}
            found.append((num_keys, Taken(state, one.name, is_ema, False)))
    most = max(num_keys for num_keys, _ in found)
    return [taken for num_keys, taken in found if num_keys == most]


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
